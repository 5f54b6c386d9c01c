"""Training the feature network that Fréchet distances of scenes are taken in: it learns to tell what stands where."""
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from paddle import Tensor, nn

from vilg import release
from vilg.config import configclass
from vilg.data.sample import Sample
from vilg.data.transforms import centre_crop, to_model
from vilg.data.worlds.scenes import Scene
from vilg.data.worlds.scenes.lexicon import COLOURS, MORE_COLOURS, MORE_SHAPES, SHAPES, SIZES
from vilg.engine.task import Batch, LogPicture, Phase, StepOutput
from vilg.errors import DataError
from vilg.losses.reconstruction import pixel_loss
from vilg.losses.total import weighted_sum
from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig
from vilg.nn import functional
from vilg.nn.layers import Linear

CELLS = 9
CLASSES = {"shape": SHAPES + MORE_SHAPES, "colour": (*COLOURS, *MORE_COLOURS), "size": tuple(SIZES)}
BACKGROUND = 6  # start and end colour


@configclass
class SceneFeaturesTaskConfig:
    """What a run of the feature network trains; its data must be drawn scenes."""

    kind: Literal["scene_features"] = "scene_features"
    network: SceneFeaturesConfig


@dataclass
class SceneBatch(Batch):
    """``image`` float32 [B, 3, H, W] in [-1, 1]; ``background`` float32 [B, 6], its two colours in [-1, 1];
    ``shape``, ``colour``, ``size`` int64 [B, 9]: what stands in each cell, a number of :data:`CLASSES` from 1 on, 0 for
    nothing."""

    image: Tensor | np.ndarray
    background: Tensor | np.ndarray
    shape: Tensor | np.ndarray
    colour: Tensor | np.ndarray
    size: Tensor | np.ndarray


@dataclass
class SceneView:
    """A scene, and its drawing uint8 [S, S, 3]."""

    image: np.ndarray
    scene: Scene


class SceneFeaturesStep(nn.Layer):
    """The phase's module: for each cell of the 3×3 layout the shape, colour and size that stand there (or nothing), and
    the background's colours; cross-entropies and a squared error, summed."""

    def __init__(self, network: SceneFeatures):
        super().__init__()
        self.network = network
        self.heads = nn.LayerDict({name: Linear(network.width, CELLS * (len(known) + 1))
                                   for name, known in CLASSES.items()})
        self.background = Linear(network.width, BACKGROUND)

    def forward(self, batch: SceneBatch, step: int) -> StepOutput:
        features = self.network(batch.image)
        losses, figures = [pixel_loss(self.background(features), batch.background, 0.0, 1.0)], {}
        for name, known in CLASSES.items():
            logits = self.heads[name](features).reshape([-1, len(known) + 1])      # [B·9, classes]
            labels = getattr(batch, name).reshape([-1])
            losses.append(functional.cross_entropy(logits, labels).mean())
            right = (logits.argmax(-1) == labels).astype("float32")
            figures[f"right_{name}"] = right.mean().detach()
        return StepOutput(weighted_sum([(1.0, loss) for loss in losses]), figures)


class SceneFeaturesTask:
    """Training of :class:`vilg.models.scene_features.SceneFeatures`, see :class:`vilg.engine.task.Task`."""

    reads_text = False

    def __init__(self, config: SceneFeaturesTaskConfig):
        self.network = SceneFeatures(config.network)
        self.least_side = config.network.image_size
        self.step = SceneFeaturesStep(self.network)
        self.phases = [Phase("model", self.step, dict(self.step.named_parameters()))]

    def view(self, sample: Sample, seed: int) -> SceneView:
        """The drawing, cropped, with the scene that the sample carries. Raises DataError for another sample."""
        scene = sample.facts.get("scene")
        if not isinstance(scene, Scene) or sample.image is None:
            raise DataError(f"{sample.key}: is no drawn scene; the feature network trains on data.sources of kind "
                            "scenes")
        return SceneView(centre_crop(sample.image, self.least_side), scene)

    def collate(self, views: list[SceneView], seeds: list[int]) -> SceneBatch:
        """Images, and what their scenes hold."""
        scenes = [view.scene for view in views]
        colours = [[*scene.background.start, *scene.background.end] for scene in scenes]
        return SceneBatch(to_model(np.stack([view.image for view in views])),
                          np.array(colours, "float32") / 127.5 - 1,
                          **{name: np.stack([_labels(scene, name) for scene in scenes]) for name in CLASSES})

    def prepare(self, batch: SceneBatch) -> SceneBatch:
        return batch

    def after_step(self, step: int) -> dict[str, float]:
        return {}

    def tokens(self, batch: SceneBatch) -> int:
        return batch.image.shape[0] * CELLS

    def preview(self, batch: SceneBatch) -> Iterator[LogPicture]:
        return iter(())

    def export(self, directory: str, ema: dict[str, np.ndarray] | None = None) -> None:
        prefix = "network."
        own = {name.removeprefix(prefix): value for name, value in (ema or {}).items() if name.startswith(prefix)}
        release.write(directory, "scene_features", self.network, own)

    def state(self) -> dict[str, Tensor]:
        return dict(self.step.state_dict())

    def fingerprints(self) -> dict[str, str]:
        return {}


def _labels(scene: Scene, name: str) -> np.ndarray:
    labels = np.zeros([CELLS], "int64")
    for item in scene.objects:
        row, column = item.cell
        labels[3 * row + column] = CLASSES[name].index(getattr(item, name)) + 1
    return labels
