"""How like two pictures are: PSNR and SSIM."""
import numpy as np

from vilg.errors import ShapeError


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures [H, W, 3]; infinite when they are equal."""
    error = np.mean((first.astype("float64") - second.astype("float64")) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0 ** 2 / error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 pictures [H, W, 3]: 11×11 Gaussian window, σ = 1.5,
    on luma.

    A picture with a side below 11 pixels has the window shrunk to that side, σ with it. Raises ShapeError for pictures
    of two sizes and for empty ones.
    """
    if first.shape != second.shape or not first.size:
        raise ShapeError(f"ssim compares two pictures of one size, not {list(first.shape)} and {list(second.shape)}")
    taps = _gaussian(min(11, *first.shape[:2]))
    x, y = _luma(first), _luma(second)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blur(x, taps), _blur(y, taps)
    var_x, var_y = _blur(x * x, taps) - mean_x ** 2, _blur(y * y, taps) - mean_y ** 2
    covariance = _blur(x * y, taps) - mean_x * mean_y
    score = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
             / ((mean_x ** 2 + mean_y ** 2 + c1) * (var_x + var_y + c2)))
    return float(score.mean())


def _luma(picture: np.ndarray) -> np.ndarray:
    return picture.astype("float64") @ np.array([0.299, 0.587, 0.114])


def _gaussian(size: int) -> np.ndarray:
    """``size`` taps that sum to one; σ is 1.5 at 11 taps and in proportion below."""
    places = np.arange(size) - (size - 1) / 2
    taps = np.exp(-0.5 * (places / (1.5 * size / 11)) ** 2)
    return taps / taps.sum()


def _blur(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        image = np.apply_along_axis(np.convolve, axis, image, taps, mode="valid")
    return image
