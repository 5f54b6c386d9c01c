"""Token-level training of a two-level model: masked codes from text, words from dense features (Huang et al., ACM MM
2021, "Token-level training")."""
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from paddle import Tensor, nn

from vilg import release
from vilg.config import configclass
from vilg.data.masks import MaskRatio, one_target, token_masks
from vilg.data.sample import Sample
from vilg.engine.task import StepOutput
from vilg.errors import DataError
from vilg.generation.mask_predict import check_steps, predict_images
from vilg.generation.sampling import MaskPredictConfig
from vilg.losses.sequence import image_to_text_loss, masked_image_loss
from vilg.losses.total import weighted_sum
from vilg.models.two_level.model import TwoLevelConfig, TwoLevelTransformer
from vilg.release.kinds.image_tower import read_tower
from vilg.release.kinds.two_level import ReleasedTwoLevel, feature_reader, start_from
from vilg.tasks.bidirectional import BidirectionalBatch, BidirectionalTask, BidirectionalTaskConfig, read_codes


@configclass
class TwoLevelTaskConfig(BidirectionalTaskConfig):
    """What a two-level run trains: all of a bidirectional run, with drawing by mask-predict.

    ``mask_ratio`` and ``least_masked``: how many codes of a sample are hidden, see
    :func:`vilg.data.masks.token_masks`. ``label_smoothing`` is that of the hidden codes. ``image_to_text_every`` k > 0
    trains one task a step, image→text in every k-th (the paper alternates, k = 2); 0 both in every step.
    ``text_targets`` one is the paper's one masked word a caption, an ablation here, since a causal stream learns all of
    them in the same pass. ``image_tower``: the released folder of a dual encoder, or of an image tower alone, for
    features of kind vit. ``init_from`` may be a
    bidirectional model too.
    """

    kind: Literal["two_level"] = "two_level"
    model: TwoLevelConfig
    mask_ratio: MaskRatio = "uniform"
    least_masked: float = 6 / 64
    label_smoothing: float = 0.2
    image_to_text_every: int = 0
    text_targets: Literal["all", "one"] = "all"
    image_tower: str | None = None

    def __post_init__(self) -> None:
        BidirectionalTaskConfig.__post_init__(self)
        if not 0 <= self.least_masked <= 1:
            raise ValueError(f"least_masked is a share, from 0 to 1, not {self.least_masked}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is at least 0 and below 1, not {self.label_smoothing}")
        if self.image_to_text_every < 0 or self.image_to_text_every == 1:
            raise ValueError("image_to_text_every is 0 (both tasks in every step) or at least 2; for one task alone "
                             "set directions")
        if self.image_to_text_every and self.directions != "both":
            raise ValueError(f"image_to_text_every alternates both directions, but directions is {self.directions}")
        if (self.image_tower is None) == (self.model.features == "vit"):
            raise ValueError("image_tower names the tower of features: vit, and is left out otherwise; features is "
                             f"{self.model.features}")


@dataclass
class TwoLevelBatch(BidirectionalBatch):
    """A bidirectional batch, and: ``masked`` booleans [B, n], the codes to predict; ``i2t_target`` int64 [B], the one
    word to predict, where there is one a caption; ``features`` float32 [B, n, width], after ``prepare``, where
    image→text reads such."""

    masked: Tensor | np.ndarray | None = None
    i2t_target: Tensor | np.ndarray | None = None
    features: Tensor | np.ndarray | None = None

    @property
    def read(self) -> Tensor | np.ndarray:
        """What image→text reads."""
        return self.codes if self.features is None else self.features


class TwoLevelStep(nn.Layer):
    """The phase's module: a batch → L = w₁·L_masked codes + w₂·L_i2t, or the one of them whose turn it is."""

    def __init__(self, model: TwoLevelTransformer, config: TwoLevelTaskConfig, unk_id: int | None):
        super().__init__()
        self.model, self.config, self.unk_id = model, config, unk_id

    def forward(self, batch: TwoLevelBatch, step: int) -> StepOutput:
        draws, describes = self.turn(step)
        drawn = described = None
        source = (batch.t2i_text, batch.t2i_length, read_codes(batch), batch.masked)
        target = (batch.i2t_text if batch.i2t_read is None else batch.i2t_read, batch.i2t_length, batch.i2t_prefix)
        if draws and describes:
            drawn, described = self.model.both_hidden(*source, batch.read, *target)
        elif draws:
            drawn = self.model.text_to_image_hidden(*source)
        else:
            described = self.model.image_to_text_hidden(batch.read, *target)
        return self._losses(batch, drawn, described)

    def turn(self, step: int) -> tuple[bool, bool]:
        """Does step number ``step`` (from 0) train text→image, and image→text?"""
        every, directions = self.config.image_to_text_every, self.config.directions
        if every:
            describes = step % every == every - 1
            return not describes, describes
        return directions != "image_to_text", directions != "text_to_image"

    def _losses(self, batch: TwoLevelBatch, drawn: Tensor | None, described: Tensor | None) -> StepOutput:
        figures, losses = {}, []
        if drawn is not None:
            loss = masked_image_loss(self.model, drawn, batch.codes, batch.masked, self.config.label_smoothing)
            figures["loss_t2i"] = loss.detach()
            losses.append((self.config.text_to_image_weight, loss))
        if described is not None:
            length, prefix = batch.i2t_length, batch.i2t_prefix
            if batch.i2t_target is not None:
                length, prefix = batch.i2t_target + 1, batch.i2t_target
            loss = image_to_text_loss(self.model, described, batch.i2t_text, length, prefix, self.unk_id)
            figures["loss_i2t"] = loss.detach()
            losses.append((self.config.image_to_text_weight, loss))
        return StepOutput(weighted_sum(losses), figures)


class TwoLevelTask(BidirectionalTask):
    """Training of :class:`TwoLevelTransformer`, see :class:`vilg.engine.task.Task`.

    Raises ConfigError as a bidirectional run does, and when features do not fit the model or the sampling's steps the
    grid.
    """

    batch_type = TwoLevelBatch
    config: TwoLevelTaskConfig

    def __init__(self, config: TwoLevelTaskConfig, sampling: MaskPredictConfig):
        check_steps(sampling.steps, config.model.rows, config.model.columns)
        self.tower = read_tower(config.image_tower) if config.image_tower else None
        super().__init__(config, sampling)

    def _build(self) -> tuple[TwoLevelTransformer, TwoLevelStep]:
        config = self.config
        self.reader = feature_reader(config.model, self.image_tokenizer, self.tower)
        self.reader.check(config.model, "task.model")
        model = TwoLevelTransformer(config.model)
        if config.init_from:
            start_from(model, config.init_from, self.image_tokenizer, self.words)
        return model, TwoLevelStep(model, config, self.words.unk_id)

    def collate(self, samples: list[Sample], seeds: list[int]) -> TwoLevelBatch:
        """A bidirectional batch, with the codes to hide."""
        batch, config = super().collate(samples, seeds), self.config
        batch.masked = token_masks(seeds, config.model.layout.image, config.mask_ratio, config.least_masked)
        if config.text_targets == "one":
            batch.i2t_target = one_target(seeds, batch.i2t_length, batch.i2t_prefix)
        return batch

    def _images(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        if self.reader.kind != "codes" and any(sample.image is None for sample in samples):
            raise DataError(f"data.sources: features: {self.reader.kind} are read off images and some sources hold "
                            "codes alone; name the sources that the codes were made from")
        return super()._images(samples)

    def prepare(self, batch: TwoLevelBatch) -> TwoLevelBatch:
        """Add codes and features that the frozen image tokenizer, or tower, gives the images."""
        if batch.image is not None and self.reader.kind != "codes":
            batch = replace(batch, features=self.reader.of_images(batch.image))
        return super().prepare(batch)

    def released(self) -> ReleasedTwoLevel:
        return ReleasedTwoLevel(self.model, self.image_tokenizer, self.words, self.sampling, tower=self.tower)

    def export(self, directory: str, average: dict[str, np.ndarray] | None = None) -> None:
        release.write(directory, "two_level", self.released(), average)

    def _drawn(self, text: Tensor, length: Tensor) -> Tensor:
        return predict_images(self.model, text, length, sampling=self.sampling)

    def _read(self, batch: TwoLevelBatch) -> Tensor:
        return batch.read
