"""Raters' agreement, held against the krippendorff package and against sums done by hand."""
import numpy as np
import pytest

from vilg.errors import DataError
from vilg.metrics.agreement import bootstrap, item_means, mean_rating, ordinal_alpha, repeats_agreement

NAN = float("nan")
PERFECT = np.array([[1, 2, 3, 4], [1, 2, 3, 4]], "float64")


def made_ratings(seed: int, raters: int = 3, items: int = 200, seen: float = 0.7) -> np.ndarray:
    generator = np.random.default_rng(seed)
    ratings = np.clip(np.rint(generator.normal(3, 1, items) + generator.normal(0, 0.7, [raters, items])), 1, 5)
    ratings[generator.random([raters, items]) > seen] = NAN
    return ratings


@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_the_krippendorff_package(seed):
    krippendorff = pytest.importorskip("krippendorff")
    for ratings in (made_ratings(seed), made_ratings(seed, raters=8, items=30, seen=0.3), made_ratings(seed) * 2.5 - 7):
        expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement="ordinal")
        assert ordinal_alpha(ratings) == pytest.approx(expected, abs=1e-9)


def test_alpha_of_agreement_is_one_and_of_chance_near_zero():
    generator = np.random.default_rng(0)
    assert ordinal_alpha(PERFECT) == 1.0
    assert abs(ordinal_alpha(generator.integers(1, 6, [2, 20_000]))) < 0.03
    assert ordinal_alpha([[1, 2, 3], [3, 2, 1]]) < 0


def test_alpha_depends_on_ranks_and_not_on_distances():
    ratings = made_ratings(1)
    assert ordinal_alpha(np.exp(ratings)) == pytest.approx(ordinal_alpha(ratings), abs=1e-12)


@pytest.mark.parametrize("ratings, sentence", [
    ([[3, 3], [3, 3]], "all ratings are the same"), ([[1, NAN], [NAN, 2]], "two raters"), ([1, 2], "table"),
    ([[1, float("inf")]], "finite")])
def test_ratings_without_agreement_are_refused(ratings, sentence):
    with pytest.raises(DataError, match=sentence):
        ordinal_alpha(np.array(ratings, "float64"))


def test_means_count_every_item_alike():
    ratings = [[1, 5, 2], [3, NAN, NAN], [5, NAN, 4]]
    assert item_means(ratings).tolist() == [3, 5, 3]
    assert mean_rating(ratings) == pytest.approx(11 / 3)
    with pytest.raises(DataError, match="item 1 has no rating"):
        item_means([[1, NAN], [2, NAN]])


def test_bootstrap_is_seeded_and_covers_the_mean():
    ratings = made_ratings(3, seen=1.0)
    first, again, other = (bootstrap(mean_rating, ratings, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.value == mean_rating(ratings) and first.low < first.value < first.high and first.undefined == 0
    deviation = item_means(ratings).std() / np.sqrt(ratings.shape[1])
    assert first.high - first.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_bootstrap_covers_alpha_and_counts_resamples_without_one():
    ratings = made_ratings(4, items=60)
    found = bootstrap(ordinal_alpha, ratings, seed=0, resamples=200)
    assert found.low < found.value < found.high
    few = bootstrap(ordinal_alpha, np.array([[1, 2], [1, 2.0]]), seed=0, resamples=200)
    assert few.value == few.low == few.high == 1.0 and 60 < few.undefined < 140  # half draw one item twice


def test_repeats_agreement():
    found = repeats_agreement([1, 2, 3, 5], [1, 3, 3, 1])
    assert (found.pairs, found.equal, found.within_one, found.distance) == (4, 0.5, 0.75, 1.25)
    for second in ([1, 2], [1, 2, 3, NAN]):
        with pytest.raises(DataError, match="in pairs"):
            repeats_agreement([1, 2, 3, 5], second)
