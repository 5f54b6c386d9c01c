"""Training generator and reconstructor together: the picture's loss reaches the transformer (paper 1, "Text→image: two
paths", path 2)."""
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import paddle
import pydantic
from paddle import Tensor

from vilg import release
from vilg.config import configclass
from vilg.data.sample import Sample
from vilg.data.transforms import from_model, to_model
from vilg.engine.task import LogPicture, Phase, StepOutput
from vilg.errors import ConfigError, DataError
from vilg.generation.sampling import SamplingConfig
from vilg.losses.adversarial import AdversaryConfig, PatchDiscriminator
from vilg.losses.picture import AdversarialPull, LikelihoodConfig, PictureLoss, PixelLossConfig, fitting_loss
from vilg.losses.total import weighted_sum
from vilg.models.bidirectional import BidirectionalTransformer
from vilg.models.end_to_end import EndToEndModel, EndToEndReconstructor, ReconstructorConfig
from vilg.release.kinds.bidirectional import ReleasedModel
from vilg.tasks.bidirectional import (BidirectionalBatch, BidirectionalStep, BidirectionalTask, BidirectionalTaskConfig,
                                     read_codes)
from vilg.tasks.image_tokenizer import AdversaryStep
from vilg.weights.files import read_weights

PREFIX = "reconstructor."


@configclass
class EndToEndTaskConfig(BidirectionalTaskConfig):
    """What an end-to-end run trains: all of a bidirectional run, and a picture for every text→image stream.

    ``loss`` is the image tokenizer's own reconstruction loss; it weighs ``reconstruction_weight`` (the paper's: as much
    as generation), which rises to that along ``reconstruction_warmup_steps``. ``train_network`` false trains the map
    alone and freezes the network behind it; ``network_rate`` times the learning rate is that network's, below 1 to
    spare one that begins trained (under ``distributed.level`` p_g_os it has the full rate: the slices are Paddle's).
    ``reaches_generator`` false keeps the picture's gradient from the
    transformer, to see what that gradient does. ``adversary``, for pixels, begins at its own ``start_step``.
    ``init_from`` a folder with a reconstructor starts from that too.
    """

    kind: Literal["end_to_end"] = "end_to_end"
    reconstructor: ReconstructorConfig = pydantic.Field(default_factory=ReconstructorConfig)
    loss: Annotated[PixelLossConfig | LikelihoodConfig, pydantic.Field(discriminator="kind")]
    adversary: AdversaryConfig | None = None
    reconstruction_weight: float = 1.0
    reconstruction_warmup_steps: int = 0
    train_network: bool = True
    network_rate: float = 1.0
    reaches_generator: bool = True

    def __post_init__(self) -> None:
        BidirectionalTaskConfig.__post_init__(self)
        if self.directions == "image_to_text":
            raise ValueError("directions: image_to_text draws no picture to reconstruct; use both or text_to_image")
        if self.reconstruction_weight <= 0:
            raise ValueError("reconstruction_weight must be above 0; a run without it has kind bidirectional")
        if self.reconstruction_warmup_steps < 0:
            raise ValueError("reconstruction_warmup_steps cannot be negative")
        if self.network_rate <= 0:
            raise ValueError("network_rate must be above 0; train_network false freezes the network")
        if self.adversary and (self.loss.kind != "pixels" or not self.train_network):
            raise ValueError("adversary: judges pictures of a network that is trained; it needs loss.kind pixels and "
                             "train_network true")


@dataclass
class EndToEndBatch(BidirectionalBatch):
    """A bidirectional batch whose ``image`` float32 [B, 3, H, W] in [-1, 1] is always there, for the image's loss."""


class EndToEndStep(BidirectionalStep):
    """The phase's module: a batch → L_generation + w·L_reconstruction, and w·λ·(-D(x̂)) once the adversary began."""

    def __init__(self, model: BidirectionalTransformer, reconstructor: EndToEndReconstructor,
                 config: EndToEndTaskConfig, discriminator: PatchDiscriminator | None, unk_id: int | None = None):
        super().__init__(model, config, unk_id)
        self.reconstructor = reconstructor
        self.picture_loss = PictureLoss(config.loss)
        self.pull = AdversarialPull(discriminator, config.adversary) if discriminator is not None else None
        self.weight, self.warmup_steps = config.reconstruction_weight, config.reconstruction_warmup_steps
        self.reaches_generator, self.reads = config.reaches_generator, config.reconstructor.reads

    def forward(self, batch: EndToEndBatch, step: int) -> StepOutput:
        seen, described = self.hidden(batch)
        drawn = seen
        if self.reads == "own":  # [B, n + 1, D]
            drawn, seen = seen[:, :-1], seen[:, 1:]
        generation = self.generation(batch, drawn, described)
        picture, figures = self._picture(seen if self.reaches_generator else seen.detach(), batch, step)
        loss = weighted_sum([(1.0, generation.loss), (self._weight_at(step), picture)])
        return StepOutput(loss, generation.figures | figures)

    def hidden(self, batch: EndToEndBatch) -> tuple[Tensor, Tensor | None]:
        """A bidirectional run's; with ``reconstructor.reads`` own, text→image has a slot more, [B, n + 1, D]."""
        if self.reads == "predicting":
            return super().hidden(batch)
        seen = self.model.text_to_image_own_hidden(batch.t2i_text, batch.t2i_length, read_codes(batch))
        return seen, None if self.directions == "text_to_image" else self.described(batch)

    def _picture(self, hidden: Tensor, batch: EndToEndBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        network = self.reconstructor.network
        features = self.reconstructor.features(hidden, batch.codes)
        raw = network.last(features)
        loss, figures = self.picture_loss(raw, batch.image)
        if self.pull is not None and step >= self.pull.config.start_step:
            adversarial, parts = self.pull(loss, raw, features, network)
            loss, figures = weighted_sum([(1.0, loss), (1.0, adversarial)]), figures | parts
        return loss, figures

    def _weight_at(self, step: int) -> float:
        return self.weight * min(1.0, (step + 1) / self.warmup_steps if self.warmup_steps else 1.0)


class EndToEndTask(BidirectionalTask):
    """Training of :class:`vilg.models.end_to_end.EndToEndModel`, see :class:`vilg.engine.task.Task`.

    From the same seed, its transformer starts with the same weights as a bidirectional run's. Raises ConfigError when
    the loss is not one for the image tokenizer's pictures.
    """

    batch_type = EndToEndBatch

    def __init__(self, config: EndToEndTaskConfig, sampling: SamplingConfig):
        super().__init__(config, sampling)
        fitting, kind = fitting_loss(self.image_tokenizer.config.kind), self.image_tokenizer.config.kind
        if config.loss.kind != fitting:
            raise ConfigError(f"task.loss.kind: is {config.loss.kind}, but {config.image_tokenizer} is a {kind}, whose "
                              f"pictures are compared by {fitting}; set task.loss.kind={fitting}")
        self.end_to_end = EndToEndModel(self.model, self._start())
        self.reconstructor = self.end_to_end.reconstructor
        for parameter in self.reconstructor.behind_the_map:
            parameter.stop_gradient = not config.train_network
            parameter.optimize_attr["learning_rate"] = config.network_rate
        self.discriminator = None
        if config.adversary:
            self.discriminator = PatchDiscriminator(config.adversary.layers, config.adversary.channels)
        self.step = EndToEndStep(self.model, self.reconstructor, config, self.discriminator, self.words.unk_id)
        parameters = dict(self.model.named_parameters()) | {
            PREFIX + name: value for name, value in self.reconstructor.named_parameters() if not value.stop_gradient}
        self.phases = [Phase("model", self.step, parameters)]
        if self.discriminator is not None:
            judged = {f"adversary.{name}": value for name, value in self.discriminator.named_parameters()}
            self.phases.append(Phase("adversary", AdversaryStep(self.discriminator, self._teacher_forced), judged,
                                     config.adversary.start_step))

    def _start(self) -> EndToEndReconstructor:
        folder = Path(self.config.init_from or "") / "reconstructor"
        if self.config.init_from and folder.is_dir():
            trained = read_weights(folder.parent / "model.safetensors")  # the model may have more rows than this
            found = release.read(folder, "reconstructor", model=self.model, image_tokenizer=self.image_tokenizer,
                                 transformer=trained)
            for name in ("anchor", "map_layers", "map_ratio", "reads", "map"):
                asked, given = getattr(self.config.reconstructor, name), getattr(found.config, name)
                key = f"task.reconstructor.{name}"
                if asked != given:
                    raise ConfigError(f"{key}: is {asked}, but {folder} was trained with {given}; set {key}={given}, "
                                      "or begin from a folder without a reconstructor")
            return found
        made = EndToEndReconstructor(self.config.reconstructor, self.config.model.width, self.image_tokenizer)
        if made.mixture is not None and made.config.reads == "predicting":
            made.mixture.start_as(self.model.image_head)
        return made

    def _teacher_forced(self, batch: EndToEndBatch, step: int) -> Tensor:
        return self.end_to_end(batch.t2i_text, batch.t2i_length, batch.codes)

    def _images(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        if any(sample.image is None for sample in samples):
            raise DataError("data.sources: an end-to-end run compares with images and some sources hold codes alone; "
                            "name the sources that the codes were made from")
        return {"image": to_model(np.stack([sample.image for sample in samples]))}

    def prepare(self, batch: EndToEndBatch) -> EndToEndBatch:
        """Add the codes that the frozen image tokenizer gives the images, which stay for the reconstruction loss."""
        with paddle.no_grad():
            return replace(batch, codes=self.image_tokenizer.encode(batch.image))

    def preview(self, batch: EndToEndBatch) -> Iterator[LogPicture]:
        """A bidirectional run's, and pictures beside their two-stage and end-to-end reconstructions."""
        yield from super().preview(batch)
        few = batch.map(lambda value: value[:self.config.preview_captions])
        self.end_to_end.eval()
        with paddle.no_grad():
            pictures = self.image_tokenizer.picture_of(self._teacher_forced(few, 0))
        self.end_to_end.train()
        captions = few.t2i_text.numpy().tolist()
        for row, parts in enumerate(zip(few.image.numpy(), self._decode(few.codes), pictures.numpy())):
            real, two_stage, end_to_end = parts
            yield LogPicture(f"reconstructed_{row}", np.concatenate(
                [from_model(real), two_stage, from_model(end_to_end)], axis=1), self.words.decode(captions[row]))

    def released(self) -> ReleasedModel:
        """What is exported: a bidirectional run's, and the reconstructor."""
        return replace(super().released(), reconstructor=self.reconstructor)

    def state(self) -> dict[str, Tensor]:
        state = super().state() | {PREFIX + name: value for name, value in self.reconstructor.state_dict().items()}
        if self.discriminator is not None:
            state |= {f"adversary.{name}": value for name, value in self.discriminator.state_dict().items()}
        return state
