"""What a reconstructed picture is trained by, wherever it comes from: the configured distance to the picture it should
be, and the pull of a patch adversary."""
from typing import Literal

import paddle
from paddle import Tensor

from vilg.config import configclass
from vilg.losses.adversarial import AdversaryConfig, PatchDiscriminator, adaptive_weight, hinge_generator_loss
from vilg.losses.perceptual import PerceptualConfig, PerceptualLoss
from vilg.losses.reconstruction import logit_laplace_loss, pixel_loss
from vilg.losses.total import weighted_sum
from vilg.tokenizers.image.base import Reconstructor
from vilg.tokenizers.image.pixels import to_laplace


@configclass
class PixelLossConfig:
    """The reconstruction loss of VQVAE and VQGAN: weights of |x̂ - x| and (x̂ - x)², and the perceptual distance, which
    is either configured or said to be ``none``."""

    kind: Literal["pixels"] = "pixels"
    l1: float = 1.0
    l2: float = 0.0
    perceptual: Literal["none"] | PerceptualConfig

    def __post_init__(self):
        if min(self.l1, self.l2) < 0 or self.l1 + self.l2 == 0:
            raise ValueError("l1 and l2 cannot be negative, nor both zero")


@configclass
class LikelihoodConfig:
    """The reconstruction loss of the dVAE: its logit-Laplace likelihood.

    ``least_scale`` is added to every scale b. At 0, the published likelihood, pictures without noise have no floor: b
    shrinks on plain ground until its rounding outweighs the shapes (a level is 0.012 wide at mid-grey, in logits).
    """

    kind: Literal["logit_laplace"] = "logit_laplace"
    least_scale: float = 0.0

    def __post_init__(self):
        if self.least_scale < 0:
            raise ValueError("least_scale cannot be negative")


def fitting_loss(tokenizer_kind: str) -> str:
    """The ``kind`` of the loss that what an image tokenizer's reconstructor puts out can be compared by."""
    return "logit_laplace" if tokenizer_kind == "dvae" else "pixels"


class PictureLoss:
    """The distance of a reconstructor's raw output to pictures [B, 3, H, W] in [-1, 1].

    Not a layer: the frozen perceptual network must not become part of the module that is trained.
    """

    def __init__(self, config: PixelLossConfig | LikelihoodConfig):
        self.config = config
        wants_perceptual = config.kind == "pixels" and config.perceptual != "none"
        self.perceptual = PerceptualLoss(config.perceptual) if wants_perceptual else None

    def __call__(self, raw: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its parts, detached."""
        if raw.dtype != images.dtype:  # mixed precision: logarithms and squares want all their digits
            raw = raw.astype(images.dtype)
        with paddle.amp.auto_cast(enable=False):
            if self.config.kind == "logit_laplace":
                loss = logit_laplace_loss(raw, to_laplace(images), self.config.least_scale)
            else:
                loss = pixel_loss(raw, images, self.config.l1, self.config.l2)
        figures = {"loss_reconstruction": loss.detach()}
        if self.perceptual is not None:
            distance = self.perceptual(raw, images)
            figures["loss_perceptual"] = distance.detach()
            loss = weighted_sum([(1.0, loss), (1.0, distance)])
        return loss, figures


class AdversarialPull:
    """w·λ·(-D(x̂)) from step ``start_step`` on; moves the reconstructor, never the discriminator."""

    def __init__(self, discriminator: PatchDiscriminator, config: AdversaryConfig):
        self.discriminator, self.config = discriminator, config

    def __call__(self, reconstruction: Tensor, raw: Tensor, features: Tensor,
                 reconstructor: Reconstructor) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the loss, and its parts, detached; ``raw`` came of ``features`` by the last layer."""
        adversarial = hinge_generator_loss(self._logits(raw))
        weight = adaptive_weight(reconstruction, adversarial, raw, features, reconstructor.last,
                                 reconstructor.last_parameters)
        return (weighted_sum([(self.config.weight * weight, adversarial)]),
                {"loss_generator": adversarial.detach(), "adaptive_weight": weight})

    def _logits(self, images: Tensor) -> Tensor:
        """The discriminator's logits with a gradient to ``images`` but none to its own weights."""
        parameters = [parameter for parameter in self.discriminator.parameters() if not parameter.stop_gradient]
        for parameter in parameters:
            parameter.stop_gradient = True
        logits = self.discriminator(images)
        for parameter in parameters:
            parameter.stop_gradient = False
        return logits
