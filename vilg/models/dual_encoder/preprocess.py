"""From an image of any size to the pixels that an image tower reads: the three preprocessings of the public weights.

Baidu's published results come with its own; PaddleNLP has two others. A model says which is its own.
"""
from typing import Literal

import numpy as np
from PIL import Image

from vilg.config import configclass

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@configclass
class PreprocessConfig:
    """``fit``: the short side becomes the model's size and the middle is cut out, or the whole is squashed to a square.
    ``crop_offset``: how half a pixel is rounded where the cut begins. ``mean`` and ``std`` are of levels in [0, 1].
    """

    fit: Literal["short_side", "squash"] = "short_side"
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    crop_offset: Literal["floor", "round"] = "floor"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, not {list(self.std)}")


PREPROCESSINGS = {
    "baidu": PreprocessConfig(resample="bilinear", crop_offset="round"),
    "paddlenlp": PreprocessConfig(),
    "paddlenlp_squash": PreprocessConfig(fit="squash"),
}
"""The public ones, by name."""


def preprocess(image: np.ndarray, size: int, config: PreprocessConfig) -> np.ndarray:
    """Image uint8 [H, W, 3] → pixels float32 [3, size, size] as the tower reads them."""
    height, width = image.shape[:2]
    short, scaled = min(height, width), (size, size)  # (width, height)
    if config.fit == "short_side":
        scaled = tuple(size if side == short else int(size * side / short) for side in (width, height))
    resized = np.asarray(Image.fromarray(image).resize(scaled, _FILTERS[config.resample]))
    spare = [resized.shape[axis] - size for axis in (0, 1)]
    top, left = (each // 2 if config.crop_offset == "floor" else round(each / 2) for each in spare)
    return normalise(resized[top:top + size, left:left + size], config)


def normalise(images: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """Images uint8 [..., S, S, 3] of the model's size → pixels float32 [..., 3, S, S]."""
    levels = images.astype("float32") / np.float32(255)
    pixels = (levels - np.array(config.mean, "float32")) / np.array(config.std, "float32")
    return np.ascontiguousarray(np.moveaxis(pixels, -1, -3))
