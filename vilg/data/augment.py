"""Augmented views of an image that leave what is said about it true (ERNIE-ViL 2.0, arXiv 2209.15270, section on data).

Crop, mirror, colour jitter, grey and blur are as for contrastive learning in general. But what names left or right is
not mirrored, what names a colour keeps its colours, and where places or counts are said nothing is cut away.
"""
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vilg.config import configclass

_SIDES = re.compile(r"[左右东西]|顺时针|逆时针|\b(?:left|right|east|west|clockwise|counterclockwise)\b", re.I)
# Written signs look wrong in a mirror.
_SIGNS = re.compile(r"[0-9A-Za-z]|字母|数字|文字|按键|按钮|问号|逗号|标志")
_COLOURS = re.compile(r"[红橙黄绿青蓝紫黑白灰粉棕褐金银色彩]|\b(?:red|orange|yellow|green|cyan|blue|purple|violet|black"
                      r"|white|gr[ae]y|pink|brown|gold|golden|silver|colou?r\w*|dark|bright|light)\b", re.I)
_PLACES = re.compile(r"[左右上下中角边侧央顶底]|\b(?:left|right|top|bottom|above|below|cent(?:er|re)|middle|corner)\b", re.I)
_COUNTS = re.compile(r"[零一二两三四五六七八九十几\d][个只颗条朵匹位双对群枚]|\b(?:one|two|three|four|five|six|\d+)\b", re.I)
JITTER = (0.4, 0.4, 0.4, 0.1)
"""Brightness, contrast, saturation (by up to that share) and hue (of the circle)."""
BLUR = (0.1, 2.0)
"""Radius in pixels of an image of :data:`BLUR_SIDE`, as published."""
BLUR_SIDE = 224


@configclass
class AugmentConfig:
    """How image views are augmented, where the texts allow it.

    ``crop``: the least share of the area that a random crop keeps, 1 for none. ``shift``: an image is moved by up to
    this share of its side, its border repeated. The others are probabilities.
    """

    crop: float = 0.6
    shift: float = 0.0
    mirror: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1 or not 0 <= self.shift <= 0.25:
            raise ValueError("crop is a share of the area above 0, shift one of the side up to 0.25")
        for name in ("mirror", "jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, from 0 to 1")


@dataclass(frozen=True)
class Allowed:
    """What may be done to an image without making a text about it false."""

    mirror: bool
    colours: bool
    crop: bool


def allowed(texts: list[str]) -> Allowed:
    """What all of ``texts`` stay true under. In doubt nothing is allowed: 黄瓜 is taken for a colour's name."""
    said = "\n".join(texts)
    return Allowed(not (_SIDES.search(said) or _SIGNS.search(said)), not _COLOURS.search(said),
                   not (_PLACES.search(said) or _COUNTS.search(said)))


def augment(image: np.ndarray, size: int, texts: list[str], config: AugmentConfig, rng: np.random.Generator
            ) -> np.ndarray:
    """A random view uint8 [size, size, 3] of ``image`` uint8 [H, W, 3], of which all of ``texts`` are still true."""
    may = allowed(texts)
    view = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC,
                                         _crop(image.shape, config.crop if may.crop else 1.0, rng))
    if config.shift:
        view = _shifted(view, round(config.shift * size), rng)
    if rng.random() < config.mirror and may.mirror:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < config.jitter and may.colours:
        view = _jittered(view, rng)
    if rng.random() < config.grey and may.colours:
        view = view.convert("L").convert("RGB")
    if rng.random() < config.blur:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR) * size / BLUR_SIDE))
    return np.asarray(view)


def _crop(shape: tuple[int, ...], least: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A square of at least ``least`` of the area of the largest one: left, top, right, bottom. That one is centred."""
    height, width = shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    if least < 1:
        part = side * rng.uniform(least, 1) ** 0.5
        left, top, side = left + rng.random() * (side - part), top + rng.random() * (side - part), part
    return left, top, left + side, top + side


def _shifted(image: Image.Image, most: int, rng: np.random.Generator) -> Image.Image:
    down, right = rng.integers(0, 2 * most + 1, 2)
    size = image.size[0]
    padded = np.pad(np.asarray(image), ((most, most), (most, most), (0, 0)), mode="edge")
    return Image.fromarray(padded[down:down + size, right:right + size])


def _jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in rng.permutation(len(enhancers)):
        image = enhancers[number](image).enhance(1 + rng.uniform(-1, 1) * JITTER[number])
    levels = np.array(image.convert("HSV"))
    levels[..., 0] += np.uint8(round(rng.uniform(-1, 1) * JITTER[3] * 256) % 256)  # hue is a circle of 256
    return Image.fromarray(levels, "HSV").convert("RGB")
