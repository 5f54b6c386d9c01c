import numpy as np
import pytest

from vilg.errors import ShapeError
from vilg.metrics.pictures import psnr, ssim
from vilg.metrics.retrieval import nearest_share


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 40, 3)).astype("uint8")


def test_psnr_is_the_textbook_formula():
    first = np.full((16, 16, 3), 100, dtype="uint8")
    assert psnr(first, first + 10) == pytest.approx(10 * np.log10(255 ** 2 / 100))
    assert psnr(first, first) == float("inf")


def test_ssim_is_one_for_equal_pictures_and_symmetric():
    first, second = picture(0), picture(1)
    assert ssim(first, first) == pytest.approx(1)
    assert ssim(first, second) == pytest.approx(ssim(second, first))
    assert ssim(first, second) < 0.2


def test_ssim_of_flat_pictures_is_the_luminance_term():
    first, second = np.full((20, 20, 3), 80, dtype="uint8"), np.full((20, 20, 3), 120, dtype="uint8")
    c1 = (0.01 * 255) ** 2
    assert ssim(first, second) == pytest.approx((2 * 80 * 120 + c1) / (80 ** 2 + 120 ** 2 + c1), rel=1e-6)


def test_nearest_share_counts_rows_nearest_to_their_own():
    truth = np.random.default_rng(0).normal(size=(20, 5))
    drawn = truth + 1e-3
    assert nearest_share(drawn, truth) == 1
    drawn[3] = truth[4]
    assert nearest_share(drawn, truth, chunk=7) == pytest.approx(19 / 20)


@pytest.mark.parametrize("height, width", [(10, 40), (8, 8), (3, 5), (1, 1)])
def test_ssim_of_small_pictures_tells_them_apart(height, width):
    first, second = picture(0)[:height, :width], picture(1)[:height, :width]
    assert ssim(first, first) == pytest.approx(1)
    assert ssim(first, second) == pytest.approx(ssim(second, first))
    assert -1 <= ssim(first, second) < 0.99
    flat = [np.full((height, width, 3), value, dtype="uint8") for value in (80, 120)]
    c1 = (0.01 * 255) ** 2
    assert ssim(*flat) == pytest.approx((2 * 80 * 120 + c1) / (80 ** 2 + 120 ** 2 + c1), rel=1e-6)


def test_ssim_of_two_sizes_is_refused():
    with pytest.raises(ShapeError, match="two pictures of one size"):
        ssim(picture(0), picture(0)[:20])


@pytest.mark.parametrize("offset, spread", [(0.0, 0.0), (1e3, 0.0), (1e6, 0.0), (0.0, 1e3)])
def test_nearest_share_does_not_cancel(offset, spread):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(3000, 16)).astype("float32")
    drawn = truth + rng.normal(0, 0.5, truth.shape).astype("float32")
    far = np.sign(np.arange(len(truth)) % 2 - 0.5)[:, None] * spread  # two tight crowds far apart
    truth, drawn = truth.astype("float64") + offset + far, drawn.astype("float64") + offset + far
    exact = np.stack([((row - truth) ** 2).sum(1) for row in drawn]).argmin(1)
    assert nearest_share(drawn, truth) == pytest.approx((exact == np.arange(len(truth))).mean(), abs=1e-9)
    assert 0.3 < nearest_share(drawn, truth) < 0.99
