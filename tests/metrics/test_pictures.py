import numpy as np
import pytest

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
