"""What cosines mean: the fit of a calibration, and what it refuses."""
import numpy as np
import pytest

from vilg.config import from_dict
from vilg.errors import ConfigError, DataError
from vilg.models.dual_encoder.calibration import Calibration, fit_calibration


def test_a_known_calibration_is_found_again():
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-0.3, 0.9, 60_000)
    matches = rng.random(cosines.size) < Calibration(slope=14.0, offset=-4.2).probability(cosines)
    # Thinned so that as many match as do not, which the fit takes for granted.
    true, shuffled = cosines[matches], cosines[~matches]
    found = fit_calibration(true, shuffled)
    assert found.slope == pytest.approx(14.0, rel=0.05)
    assert found.offset == pytest.approx(-4.2 + np.log(len(shuffled) / len(true)), abs=0.3)


def test_a_greater_cosine_counts_for_more_and_stays_in_its_range():
    calibration = Calibration(slope=20.0, offset=-6.0)
    found = calibration.probability(np.linspace(-1, 1, 101))
    assert found.dtype == np.float32 and (np.diff(found[20:80]) > 0).all() and (np.diff(found) >= 0).all()
    assert 0 <= found.min() and found.max() <= 1 and calibration.probability(np.array([0.3])) == pytest.approx(0.5)
    assert np.isfinite(Calibration(slope=1e6, offset=0.0).probability(np.array([-1.0, 1.0]))).all()


def test_how_many_pairs_there_are_of_a_kind_does_not_matter():
    rng = np.random.default_rng(1)
    true, shuffled = rng.normal(0.5, 0.15, 3000), rng.normal(0.1, 0.15, 3000)
    one, other = fit_calibration(true, shuffled), fit_calibration(true, np.tile(shuffled, 5))
    assert one.slope == pytest.approx(other.slope, rel=0.01) and one.offset == pytest.approx(other.offset, rel=0.02)


def test_pairs_that_do_not_overlap_still_have_a_finite_fit():
    found = fit_calibration(np.full(50, 0.9) + np.arange(50) / 1e4, np.full(50, 0.1) - np.arange(50) / 1e4)
    assert np.isfinite([found.slope, found.offset]).all()
    assert (found.probability(np.array([0.1, 0.5, 0.9])) == pytest.approx([0.02, 0.5, 0.98], abs=0.03))


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DataError, match="5 true and 300 shuffled pairs are too few"):
        fit_calibration(np.ones(5), np.zeros(300))
    with pytest.raises(DataError, match="so the model tells nothing apart"):
        fit_calibration(np.zeros(50), np.ones(50))
    with pytest.raises(ConfigError, match="slope must be above 0"):
        from_dict(Calibration, {"slope": -1.0, "offset": 0.0})
