"""Training an image tokenizer: VQVAE by pixels, VQGAN with a perceptual loss and a patch adversary,
dVAE by likelihood."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import paddle
import pydantic
from paddle import Tensor, nn

from vilg import release
from vilg.config import configclass
from vilg.data.sample import Sample
from vilg.data.transforms import centre_crop, from_model, to_model
from vilg.engine.task import Batch, LogPicture, Phase, StepOutput
from vilg.losses.adversarial import AdversaryConfig, PatchDiscriminator, hinge_discriminator_loss
from vilg.losses.picture import AdversarialPull, LikelihoodConfig, PictureLoss, PixelLossConfig, fitting_loss
from vilg.losses.total import weighted_sum
from vilg.release.kinds.image_tokenizer import start_image_tokenizer
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.dvae import DVAEConfig
from vilg.tokenizers.image.kinds import build_image_tokenizer
from vilg.tokenizers.image.vqvae import VQConfig


@configclass
class ImageTokenizerTaskConfig:
    """What an image-tokenizer run trains, and by which losses. ``adversary`` is for a vqgan alone. ``init_from``: a
    released image tokenizer of the same shape to start from."""

    kind: Literal["image_tokenizer"] = "image_tokenizer"
    tokenizer: Annotated[VQConfig | DVAEConfig, pydantic.Field(discriminator="kind")]
    loss: Annotated[PixelLossConfig | LikelihoodConfig, pydantic.Field(discriminator="kind")]
    adversary: AdversaryConfig | None = None
    preview_pictures: int = 8
    init_from: str | None = None

    def __post_init__(self):
        fitting = fitting_loss(self.tokenizer.kind)
        if self.loss.kind != fitting:
            raise ValueError(f"a {self.tokenizer.kind} is trained with loss.kind {fitting}, not {self.loss.kind}")
        perceptual = self.loss.kind == "pixels" and self.loss.perceptual != "none"
        if self.tokenizer.kind != "vqgan" and (perceptual or self.adversary):
            raise ValueError(f"a perceptual loss and an adversary are what makes a vqgan; the tokenizer is a "
                             f"{self.tokenizer.kind}")


@dataclass
class ImageBatch(Batch):
    """``image`` float32 [B, 3, H, W] in [-1, 1]."""

    image: Tensor | np.ndarray


class AutoencoderStep(nn.Layer):
    """The phase that moves the tokenizer: |x̂ - x| + perceptual + latent loss, and w·λ·(-D(x̂))
    once the adversary began."""

    def __init__(self, tokenizer: ImageTokenizer, config: ImageTokenizerTaskConfig,
                 discriminator: PatchDiscriminator | None):
        super().__init__()
        self.tokenizer = tokenizer
        self.loss = PictureLoss(config.loss)
        self.pull = AdversarialPull(discriminator, config.adversary) if discriminator is not None else None

    def forward(self, batch: ImageBatch, step: int) -> StepOutput:
        images = batch.image
        result = self.tokenizer.reconstruct(images, step)
        reconstruction, figures = self.loss(result.raw, images)
        figures["loss_latent"] = result.latent_loss.detach()
        losses = [(1.0, reconstruction), (1.0, result.latent_loss)]
        if self.pull is not None and step >= self.pull.config.start_step:
            adversarial, parts = self.pull(reconstruction, result.raw, result.features, self.tokenizer.reconstructor)
            losses, figures = [*losses, (1.0, adversarial)], figures | parts
        return StepOutput(weighted_sum(losses), figures)


class AdversaryStep(nn.Layer):
    """The phase that moves the discriminator: the hinge loss on pictures and on their reconstructions.

    ``reconstruct(batch, step)`` gives the latter, [B, 3, H, W]; it is asked without gradients.
    """

    def __init__(self, discriminator: PatchDiscriminator, reconstruct: Callable[[Batch, int], Tensor]):
        super().__init__()
        self.discriminator, self.reconstruct = discriminator, reconstruct

    def forward(self, batch: ImageBatch, step: int) -> StepOutput:
        with paddle.no_grad():
            fake = self.reconstruct(batch, step)
        on_real, on_fake = self.discriminator(batch.image), self.discriminator(fake)
        loss = hinge_discriminator_loss(on_real, on_fake)
        figures = {"loss_adversary": loss.detach(), "logit_real": on_real.detach().mean(),
                   "logit_fake": on_fake.detach().mean()}
        return StepOutput(loss, figures)


class ImageTokenizerTask:
    """Training of an image tokenizer, see :class:`vilg.engine.task.Task`."""

    reads_text = False

    def __init__(self, config: ImageTokenizerTaskConfig):
        self.config = config
        self.tokenizer = build_image_tokenizer(config.tokenizer)
        if config.init_from:
            start_image_tokenizer(self.tokenizer, config.init_from)
        self.least_side = self.tokenizer.image_size
        self.discriminator = None
        if config.adversary:
            self.discriminator = PatchDiscriminator(config.adversary.layers, config.adversary.channels)
        step = AutoencoderStep(self.tokenizer, config, self.discriminator)
        self.phases = [Phase("autoencoder", step, dict(self.tokenizer.named_parameters()))]
        if self.discriminator is not None:
            parameters = {f"adversary.{name}": value for name, value in self.discriminator.named_parameters()}
            self.phases.append(Phase("adversary", AdversaryStep(self.discriminator, self._reconstructed), parameters,
                                     config.adversary.start_step))

    def _reconstructed(self, batch: ImageBatch, step: int) -> Tensor:
        # In eval mode the quantizer takes no note of the vectors, which the other phase has already shown it.
        self.tokenizer.eval()
        raw = self.tokenizer.reconstruct(batch.image, step).raw
        self.tokenizer.train()
        return raw

    def view(self, sample: Sample, seed: int) -> np.ndarray:
        """The largest centred square of the sample's image, uint8 [S, S, 3]; nothing here is random."""
        return centre_crop(sample.image, self.least_side)

    def collate(self, crops: list[np.ndarray], seeds: list[int]) -> ImageBatch:
        """Crops as the tokenizer takes them."""
        return ImageBatch(to_model(np.stack(crops)))

    def prepare(self, batch: ImageBatch) -> ImageBatch:
        return batch

    def fingerprints(self) -> dict[str, str]:
        return {}

    def after_step(self, step: int) -> dict[str, float]:
        return self.tokenizer.after_step(step)

    def tokens(self, batch: ImageBatch) -> int:
        return batch.image.shape[0] * self.tokenizer.grid[0] * self.tokenizer.grid[1]

    def preview(self, batch: ImageBatch) -> Iterator[LogPicture]:
        """Pictures of the batch, each with its reconstruction on the right."""
        images = batch.image[:self.config.preview_pictures]
        self.tokenizer.eval()
        with paddle.no_grad():
            decoded = self.tokenizer.decode(self.tokenizer.encode(images))
        self.tokenizer.train()
        for row, (image, again) in enumerate(zip(from_model(images.numpy()), from_model(decoded.numpy()))):
            yield LogPicture(f"reconstruction_{row}", np.concatenate([image, again], axis=1))

    def export(self, directory: str, ema: dict[str, np.ndarray] | None = None) -> None:
        release.write(directory, "image_tokenizer", self.tokenizer, ema)

    def state(self) -> dict[str, Tensor]:
        state = self.tokenizer.training_state()
        if self.discriminator is not None:
            state |= {f"adversary.{name}": value for name, value in self.discriminator.state_dict().items()}
        return state
