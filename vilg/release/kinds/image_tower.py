"""The folder of a dual encoder's image tower alone, whose patches a two-level model reads."""
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vilg.models.dual_encoder.image import ImageTower, ImageTowerConfig
from vilg.models.dual_encoder.preprocess import PreprocessConfig
from vilg.release.folder import Opened
from vilg.release.registry import Contents, Kind, chosen, register


@dataclass
class ReleasedTower:
    """An image tower and the levels that it expects."""

    tower: ImageTower
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)


@register("image_tower")
class ImageTowerFolder(Kind):
    """``kind: image_tower`` ↔ :class:`ReleasedTower`."""

    title = "an image tower"

    def pack(self, thing: ReleasedTower, replaced: dict[str, np.ndarray]) -> Contents:
        return Contents("image_tower", {"tower": thing.tower.config, "preprocess": thing.preprocess},
                        chosen(thing.tower, replaced))

    def restore(self, opened: Opened, **beside: Any) -> ReleasedTower:
        config = opened.section("tower", ImageTowerConfig)
        return ReleasedTower(opened.build(lambda: ImageTower(config)), opened.section("preprocess", PreprocessConfig))
