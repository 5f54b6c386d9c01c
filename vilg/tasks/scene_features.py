"""Training the feature network that Fréchet distances of scenes are taken in: it learns to tell what stands where."""
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.data.sample import Sample
from vilg.data.transforms import centre_crop, to_model
from vilg.data.worlds.scenes import Scene, sample_scene
from vilg.data.worlds.scenes.lexicon import COLOURS, SHAPES, SIZES
from vilg.engine.task import LogPicture, Phase, StepOutput
from vilg.errors import DataError
from vilg.losses.reconstruction import pixel_loss
from vilg.losses.total import weighted_sum
from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig, save_scene_features
from vilg.nn import functional
from vilg.nn.layers import Linear

CELLS = 9
CLASSES = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "size": tuple(SIZES)}
BACKGROUND = 6  # start and end colour


@configclass
class SceneFeaturesTaskConfig:
    """What a run of the feature network trains; its data must be drawn scenes."""

    kind: Literal["scene_features"] = "scene_features"
    network: SceneFeaturesConfig


class SceneFeaturesStep(nn.Layer):
    """The phase's module: for each cell of the 3×3 layout the shape, colour and size that stand there (or nothing), and
    the background's colours; cross-entropies and a squared error, summed."""

    def __init__(self, network: SceneFeatures):
        super().__init__()
        self.network = network
        self.heads = nn.LayerDict({name: Linear(network.width, CELLS * (len(known) + 1))
                                   for name, known in CLASSES.items()})
        self.background = Linear(network.width, BACKGROUND)

    def forward(self, batch: dict[str, Tensor], step: int) -> StepOutput:
        features = self.network(batch["image"])
        losses, figures = [pixel_loss(self.background(features), batch["background"], 0.0, 1.0)], {}
        for name, known in CLASSES.items():
            logits = self.heads[name](features).reshape([-1, len(known) + 1])      # [B·9, classes]
            labels = batch[name].reshape([-1])
            losses.append(functional.cross_entropy(logits, labels).mean())
            right = (logits.argmax(-1) == labels).astype("float32")
            figures[f"right_{name}"] = right.mean().detach()
        return StepOutput(weighted_sum([(1.0, loss) for loss in losses]), figures)


class SceneFeaturesTask:
    """Training of :class:`vilg.metrics.frechet.SceneFeatures`, see :class:`vilg.engine.task.Task`."""

    def __init__(self, config: SceneFeaturesTaskConfig):
        self.network = SceneFeatures(config.network)
        self.picture_size = config.network.image_size
        self.step = SceneFeaturesStep(self.network)
        self.phases = [Phase("model", self.step, dict(self.step.named_parameters()))]

    def collate(self, samples: list[Sample], seeds: list[int]) -> dict[str, np.ndarray]:
        """Pictures, and what their scenes hold: classes [B, 9] (0 is nothing) and background colours [B, 6]."""
        scenes = [_scene_of(sample) for sample in samples]
        colours = [[*scene.background.start, *scene.background.end] for scene in scenes]
        batch = {"image": np.stack([to_model(centre_crop(sample.picture, self.picture_size)) for sample in samples]),
                 "background": np.array(colours, "float32") / 127.5 - 1}
        return batch | {name: np.stack([_labels(scene, name) for scene in scenes]) for name in CLASSES}

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch

    def after_step(self, step: int) -> dict[str, float]:
        return {}

    def tokens(self, batch: dict[str, Any]) -> int:
        return batch["image"].shape[0] * CELLS

    def preview(self, batch: dict[str, Tensor]) -> Iterator[LogPicture]:
        return iter(())

    def export(self, directory: str, average: dict[str, np.ndarray] | None = None) -> None:
        prefix = "network."
        save_scene_features(self.network, directory, {name.removeprefix(prefix): value for name, value in
                                                      (average or {}).items() if name.startswith(prefix)})

    def state(self) -> dict[str, Tensor]:
        return dict(self.step.state_dict())

    def fingerprints(self) -> dict[str, str]:
        return {}


def _scene_of(sample: Sample) -> Scene:
    kind, _, rest = sample.key.partition("/")
    split, _, seed = rest.partition("/")
    if kind != "scenes" or sample.picture is None or not seed.isdigit():
        raise DataError(f"{sample.key}: is no drawn scene; the feature network trains on data.sources of kind scenes")
    return sample_scene(int(seed), split)


def _labels(scene: Scene, name: str) -> np.ndarray:
    labels = np.zeros([CELLS], "int64")
    for item in scene.objects:
        row, column = item.cell
        labels[3 * row + column] = CLASSES[name].index(getattr(item, name)) + 1
    return labels
