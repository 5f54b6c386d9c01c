"""Rules about images one by one: whether a file can be used at all, its sides, its shape, its pixels."""
from dataclasses import field

import numpy as np

from vilg.config import configclass
from vilg.data.filtering.texts import Reason
from vilg.data.images import MOST_PIXELS, image_size, read_image
from vilg.data.sample import BrokenSample, Reading


@configclass
class Range:
    """What lies from ``least`` to ``most``; null for no limit."""

    least: int | None = None
    most: int | None = None

    def __post_init__(self):
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least ({self.least}) is above most ({self.most}), so nothing would be kept")

    def holds(self, low: int, high: int) -> bool:
        """Whether both numbers, ``low`` the smaller, lie within."""
        return (self.least is None or low >= self.least) and (self.most is None or high <= self.most)


@configclass
class PictureRulesConfig:
    """``sides``: of an image, both, in pixels; ``aspect``: its longer side over the shorter at most (null: any);
    ``pixels``: how many it has. An image of more than ``pixels.most`` is never decoded."""

    sides: Range = field(default_factory=lambda: Range(least=64))
    aspect: float | None = 3.0
    pixels: Range = field(default_factory=lambda: Range(most=Reading.max_pixels))

    def __post_init__(self):
        if self.aspect is not None and self.aspect < 1:
            raise ValueError("aspect is the longer side over the shorter, so at least 1, or null for any")
        if self.pixels.most is not None and self.pixels.most > MOST_PIXELS:
            raise ValueError(f"pixels.most is at most {MOST_PIXELS}, above which Pillow opens no image")


class PictureRules:
    """The rules of a :class:`PictureRulesConfig`: the size by the file's header, then the whole image."""

    def __init__(self, config: PictureRulesConfig):
        self.config = config

    def look(self, content: bytes, name: str) -> np.ndarray | Reason:
        """An image file's bytes → uint8 [H, W, 3], or why it is dropped."""
        try:
            width, height = image_size(content, name)
            if reason := self._of_size(width, height):
                return reason
            return read_image(content, name, Reading(max_pixels=self.config.pixels.most or MOST_PIXELS))
        except BrokenSample as broken:
            return Reason("damaged", broken.reason)

    def _of_size(self, width: int, height: int) -> Reason | None:
        low, high = sorted((width, height))
        size = f"{width}x{height}"
        if not self.config.pixels.holds(width * height, width * height):
            return Reason("pixels", size)
        if not self.config.sides.holds(low, high):
            return Reason("sides", size)
        if self.config.aspect is not None and high > self.config.aspect * low:
            return Reason("aspect", size)
        return None
