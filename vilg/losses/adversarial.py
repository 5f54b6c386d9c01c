"""The patch adversary of VQGAN: discriminator, hinge losses and the adaptive weight."""
from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.nn.layers import Conv2D


@configclass
class AdversaryConfig:
    """The patch discriminator and how it enters: ``layers`` and ``channels`` size it, ``weight`` multiplies λ, both
    losses begin at ``start_step``."""

    layers: int = 3
    channels: int = 64
    weight: float = 0.8
    start_step: int = 0

    def __post_init__(self):
        if self.layers < 1 or self.channels < 1:
            raise ValueError("layers and channels must be positive")
        if self.start_step < 0 or self.weight < 0:
            raise ValueError("start_step and weight cannot be negative")


class PatchDiscriminator(nn.Layer):
    """PatchGAN: pictures [B, 3, H, W] → one logit a patch [B, 1, h, w], high for real ones.

    A stride-2 convolution, ``layers`` - 1 more and one of stride 1 with BatchNorm, all 4×4 and leaky (0.2), double the
    channels up to 8 times; a last convolution gives the logits. Weights start as N(0, 0.02²).
    """

    def __init__(self, layers: int = 3, channels: int = 64):
        super().__init__()
        widths = [channels * min(2 ** power, 8) for power in range(layers + 1)]
        self.first = _convolution(3, channels, 2)
        self.convolutions = nn.LayerList(
            _convolution(widths[i], widths[i + 1], 2 if i + 1 < layers else 1, bias=False) for i in range(layers))
        self.norms = nn.LayerList(_norm(width) for width in widths[1:])
        self.last = _convolution(widths[-1], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(images), 0.2)
        for convolution, norm in zip(self.convolutions, self.norms):
            x = F.leaky_relu(norm(convolution(x)), 0.2)
        return self.last(x)


def _convolution(in_channels: int, out_channels: int, stride: int, bias: bool = True) -> Conv2D:
    return Conv2D(in_channels, out_channels, 4, stride, padding=1, bias=bias, std=0.02)


def _norm(channels: int) -> nn.BatchNorm2D:
    return nn.BatchNorm2D(channels, weight_attr=paddle.ParamAttr(initializer=nn.initializer.Normal(1.0, 0.02)))


def _norm_of(gradient: Tensor) -> Tensor:
    with paddle.amp.auto_cast(enable=False):
        return gradient.astype("float32").norm()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """½·(mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂))) of two maps of logits → scalar."""
    with paddle.amp.auto_cast(enable=False):
        real, fake = real.astype("float32"), fake.astype("float32")
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean D(x̂) → scalar."""
    with paddle.amp.auto_cast(enable=False):
        return -fake.astype("float32").mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, raw: Tensor, features: Tensor,
                    last: Callable[[Tensor], Tensor], last_parameters: list[Tensor]) -> Tensor:
    """λ = ‖∇reconstruction‖ / (‖∇adversarial‖ + 1e-4) at the decoder's last weight, clamped to [0, 1e4], detached.

    Keeps the adversary's pull on the decoder as strong as the reconstruction's (VQGAN, eq. 7). ``raw`` is the
    picture both losses look at, ``last`` the layer that made it of ``features``, ``last_parameters`` its weight first.
    Networks between ``raw`` and a loss must be frozen: a fused operator gives all of its gradients or none.
    """
    # The gradient is taken to the picture and from there, through the last layer alone, to its weight: a graph that
    # is cut in the middle of a fused operator cannot be walked.
    again, norms = last(features.detach()), []
    for loss in (reconstruction, adversarial):
        at_picture, = paddle.grad(loss, raw, retain_graph=True)
        at_weight = paddle.grad(again, last_parameters, grad_outputs=at_picture, retain_graph=True)[0]
        norms.append(_norm_of(at_weight))
    return (norms[0] / (norms[1] + 1e-4)).clip(0.0, 1e4).detach()
