"""Kernel distance, Inception Score, precision and recall: against torch-fidelity, scipy, and sums done plainly."""
import numpy as np
import pytest

from vilg.errors import DataError
from vilg.metrics.fidelity import inception_score, kernel_distance, precision_recall
from vilg.metrics.frechet import frechet_distance, gaussian


def made_features(count: int, seed: int, width: int = 24, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=[width, width]) / np.sqrt(width)
    return (np.abs(generator.normal(size=[count, width]) @ mix) + shift).astype("float32")


GENERATED, REAL = made_features(1300, 0, shift=0.2), made_features(1200, 1)


def test_kernel_distance_of_one_subset_by_plain_sums():
    x, y = (values[:40].astype("float64") for values in (GENERATED, REAL))

    def kernel(a, b):
        return (a @ b / 24 + 1) ** 3

    within = sum(kernel(a, b) for points in (x, y) for i, a in enumerate(points) for j, b in enumerate(points)
                 if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    found = kernel_distance(x, y, subsets=1, subset_size=40)
    assert found.mean == pytest.approx(within / (40 * 39) - 2 * across / 40 ** 2, rel=1e-10) and found.deviation == 0


def test_kernel_distance_is_near_zero_between_equals_and_grows_with_a_shift():
    same = kernel_distance(made_features(1200, 5), REAL, subsets=10, subset_size=500)
    apart = kernel_distance(GENERATED, REAL, subsets=10, subset_size=500)
    assert abs(same.mean) < 3 * same.deviation < apart.mean


def test_inception_score_is_one_for_doubt_and_the_classes_for_certainty():
    assert inception_score(np.zeros([100, 7])).mean == pytest.approx(1.0)
    certain = np.where(np.eye(5)[np.arange(500) % 5] > 0, 1e4, 0.0)
    assert inception_score(certain, shuffle_seed=None).mean == pytest.approx(5.0)


def test_inception_score_in_order_differs_from_shuffled():
    ordered = np.repeat(np.eye(10) * 20, 30, axis=0)
    assert inception_score(ordered, shuffle_seed=None).mean == pytest.approx(1.0, abs=1e-6)
    assert inception_score(ordered).mean > 7


@pytest.mark.parametrize("chunk", [7, 1000])
def test_precision_and_recall_by_plain_distances(chunk):
    generated, real = GENERATED[:90].astype("float64"), REAL[:70].astype("float64")

    def share(points, others):
        distances = np.linalg.norm(others[:, None] - others[None], axis=-1)
        reach = np.sort(distances, axis=1)[:, 3]
        return np.mean([(np.linalg.norm(point - others, axis=1) <= reach).any() for point in points])

    found = precision_recall(generated, real, chunk=chunk)
    assert (found.precision, found.recall) == (share(generated, real), share(real, generated))
    assert 0 < found.precision != found.recall < 1


@pytest.mark.parametrize("call, sentence", [
    (lambda: kernel_distance(GENERATED[:999], REAL), "999 generated and 1200 real"),
    (lambda: kernel_distance(GENERATED, REAL[:, :5]), "24 features and real ones 5"),
    (lambda: inception_score(np.zeros([9, 4])), "there are 9 images"),
    (lambda: precision_recall(GENERATED[:3], REAL), "there are 3 generated"),
    (lambda: precision_recall(GENERATED * np.inf, REAL), "not finite"),
])
def test_too_few_or_unlike_features_are_refused(call, sentence):
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=sentence):
        call()


@pytest.mark.extras
@pytest.mark.parametrize("count, tolerance", [(400, 1e-7), (20, 1e-6)])
def test_frechet_distance_equals_scipys_matrix_root(count, tolerance):
    linalg = pytest.importorskip("scipy.linalg")
    first, second = gaussian(GENERATED[:count]), gaussian(REAL[:count])
    root = linalg.sqrtm(first.covariance @ second.covariance)
    expected = (((first.mean - second.mean) ** 2).sum() + np.trace(first.covariance) + np.trace(second.covariance)
                - 2 * np.trace(np.real(root)))
    assert expected > 0.1
    assert frechet_distance(first, second) == pytest.approx(expected, rel=tolerance)


@pytest.fixture
def tensors():
    """The features as torch-fidelity, whose functions the tests below end in, takes them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_fidelity")
    return torch.tensor(GENERATED).double(), torch.tensor(REAL).double()


@pytest.mark.extras
def test_kernel_distance_equals_torch_fidelity(tensors):
    from torch_fidelity.metric_kid import kid_features_to_metric

    expected = kid_features_to_metric(*tensors, verbose=False)
    found = kernel_distance(GENERATED, REAL)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], abs=1e-8)
    assert found.deviation == pytest.approx(expected["kernel_inception_distance_std"], abs=1e-8)


@pytest.mark.extras
@pytest.mark.parametrize("shuffle", [True, False])
def test_inception_score_equals_torch_fidelity(tensors, shuffle):
    from torch_fidelity.metric_isc import isc_features_to_metric

    expected = isc_features_to_metric(tensors[0] * 3, shuffle=shuffle)
    found = inception_score(GENERATED.astype("float64") * 3, shuffle_seed=2020 if shuffle else None)
    assert found.mean == pytest.approx(expected["inception_score_mean"], abs=1e-8)
    assert found.deviation == pytest.approx(expected["inception_score_std"], abs=1e-8)


@pytest.mark.extras
def test_precision_and_recall_equal_torch_fidelity(tensors):
    from torch_fidelity.metric_prc import prc_features_to_metric

    expected = prc_features_to_metric(*tensors, verbose=False)
    found = precision_recall(GENERATED, REAL)
    # It takes the mean in float32, so the numbers of images within are compared, which are whole.
    assert found.precision == round(expected["precision"] * len(GENERATED)) / len(GENERATED)
    assert found.recall == round(expected["recall"] * len(REAL)) / len(REAL)
