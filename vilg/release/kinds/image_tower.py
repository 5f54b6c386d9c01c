"""The folder of a dual encoder's image tower alone, whose patches a two-level model reads."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vilg.models.dual_encoder.image import ImageTower, ImageTowerConfig
from vilg.models.dual_encoder.preprocess import PreprocessConfig
from vilg.release.folder import Opened, describe, read
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


def read_tower(folder: str | Path) -> ReleasedTower:
    """The image tower of a released folder: a dual encoder's, or one that lies alone. Raises CheckpointError for other
    kinds."""
    if describe(folder)[0]["kind"] == "dual_encoder":
        thing = read(folder, "dual_encoder")
        return ReleasedTower(thing.model.image_tower, thing.preprocess)
    return read(folder, "image_tower")
