"""How like two pictures are: PSNR and SSIM."""
import numpy as np


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures [H, W, 3]; infinite when they are equal."""
    error = np.mean((first.astype("float64") - second.astype("float64")) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0 ** 2 / error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 pictures [H, W, 3]: 11×11 Gaussian window, σ = 1.5,
    on luma."""
    x, y = _luma(first), _luma(second)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x ** 2, _blur(y * y) - mean_y ** 2
    covariance = _blur(x * y) - mean_x * mean_y
    score = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
             / ((mean_x ** 2 + mean_y ** 2 + c1) * (var_x + var_y + c2)))
    return float(score.mean())


def _luma(picture: np.ndarray) -> np.ndarray:
    return picture.astype("float64") @ np.array([0.299, 0.587, 0.114])


def _blur(image: np.ndarray) -> np.ndarray:
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        image = np.apply_along_axis(np.convolve, axis, image, taps, mode="valid")
    return image
