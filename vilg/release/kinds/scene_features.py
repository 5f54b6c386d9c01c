"""The folder of a feature network: its config and weights."""
from typing import Any

import numpy as np

from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig
from vilg.release.folder import Opened
from vilg.release.registry import Contents, Kind, chosen, register


@register("scene_features")
class SceneFeaturesFolder(Kind):
    """``kind: scene_features`` ↔ :class:`~vilg.models.scene_features.SceneFeatures`."""

    title = "a feature network (configs/end_to_end/scene_features.yaml trains one)"

    def pack(self, thing: SceneFeatures, replaced: dict[str, np.ndarray]) -> Contents:
        return Contents("scene_features", {"network": thing.config}, chosen(thing, replaced))

    def restore(self, opened: Opened, **beside: Any) -> SceneFeatures:
        config = opened.section("network", SceneFeaturesConfig)
        return opened.build(lambda: SceneFeatures(config))
