"""The dVAE that the end-to-end experiment reconstructs with (paper, "Image tokenizers").

An encoder gives logits over K codes for each position; training relaxes the choice by a Gumbel-softmax whose
temperature falls; the decoder gives the mean and log scale of a logit-Laplace distribution of every pixel.
"""
from collections.abc import Callable
from dataclasses import field
from typing import Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.nn import functional
from vilg.nn.conv import fold_patches, unfold_patches
from vilg.nn.layers import Conv2D, as_table
from vilg.tokenizers.image.base import ImageTokenizer, Reconstruction, Reconstructor
from vilg.tokenizers.image.pixels import from_laplace, to_laplace
from vilg.tokenizers.image.quantize import cosine_schedule, divergence, gumbel_softmax, usage_figures

# How far apart the logits of a position lie at the start from pictures (their standard deviation): far enough that the
# Gumbel noise, of deviation 1.3, leaves the choice among the nearest codes.
LOGIT_SPREAD = 100.0
# Two equal patches are this far apart when seeds are drawn, so that there are always enough to draw from; and the least
# that is divided by, should all be equal.
TWIN_DISTANCE = 1e-12


@configclass
class DVAEConfig:
    """The dVAE. The defaults are the public network's: 4 stages of 2 blocks, 256 channels, 8192 codes, f = 8.

    Stage i of ``multipliers`` has ``channels`` · ``multipliers[i]`` channels; the side halves after each but the last.
    ``decoder_channels`` is the width of a code. The temperature goes from ``temperature`` to ``temperature_end`` along
    a cosine of ``temperature_steps`` steps, the weight of the KL term from 0 to ``kl_weight`` along ``kl_steps``.

    Two departures from the public network, for small ones. ``patch`` > 1 folds patch×patch pixels into channels before
    the first stage and unfolds them after the last, which saves the costly high resolutions. ``local_encoder`` makes
    all of the encoder's kernels 1×1, so that with ``patch`` a code tells of its own f×f pixels and of nothing else:
    the same patch has the same code whatever stands beside it, and a small transformer has less to learn.

    Two means against the collapse to a handful of codes that a short training ends in. ``start`` "pictures" gives the
    codes meanings before the first step (:meth:`DVAE.start_from`); ``encoder_rate`` times the learning rate is the
    encoder's, so that the decoder has learned the codes before the encoder moves away from them. Ranks that share
    parameters (``distributed.level`` p_g_os) train the encoder at the full rate: the slices are Paddle's.
    """

    kind: Literal["dvae"] = "dvae"
    image_size: int = 256
    channels: int = 256
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    blocks: int = 2
    codebook_size: int = 8192
    decoder_channels: int = 128
    patch: int = 1
    local_encoder: bool = False
    start: Literal["random", "pictures"] = "random"
    encoder_rate: float = 1.0
    temperature: float = 1.0
    temperature_end: float = 1.0 / 16.0
    temperature_steps: int = 150_000
    kl_weight: float = 6.6
    kl_steps: int = 5_000

    def __post_init__(self):
        if not self.multipliers:
            raise ValueError("multipliers needs one number a stage")
        if min(self.image_size, self.channels, self.blocks, self.decoder_channels, self.patch, *self.multipliers) < 1:
            raise ValueError("sizes, channels, multipliers, blocks and patch must be positive")
        if self.codebook_size < 2:
            raise ValueError("codebook_size must be at least 2")
        if self.channels % 4:
            raise ValueError("channels must be a multiple of 4: a block's bottleneck is a quarter as wide")
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {self.factor}, which patch "
                             f"{self.patch} and {len(self.multipliers)} stages reduce it by")
        if min(self.temperature, self.temperature_end) <= 0:
            raise ValueError(f"the temperature schedule reaches zero (temperature {self.temperature:g}, "
                             "temperature_end "
                             f"{self.temperature_end:g}) and a Gumbel-softmax divides by it; end at 1/16, say")
        if self.encoder_rate <= 0:
            raise ValueError("encoder_rate must be above 0")
        if self.temperature_steps < 1 or self.kl_steps < 1:
            raise ValueError("temperature_steps and kl_steps must be positive")
        if self.kl_weight < 0:
            raise ValueError("kl_weight cannot be negative")

    @property
    def factor(self) -> int:
        """f: how many pixels a side one code covers."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class DVAEBlock(nn.Layer):
    """skip(x) + gain · path(x), [B, C, H, W] → [B, out, H, W]; the path is four times ReLU + convolution over a
    bottleneck of out/4 channels, with ``kernels`` 3, 3, 3, 1 in the encoder and 1, 3, 3, 3 in the decoder."""

    def __init__(self, in_channels: int, out_channels: int, kernels: tuple[int, ...], gain: float):
        super().__init__()
        hidden = out_channels // 4
        widths = [in_channels, hidden, hidden, hidden, out_channels]
        self.gain = gain
        self.skip = _convolution(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.path = nn.LayerList(_convolution(widths[i], widths[i + 1], kernel)
                                 for i, kernel in enumerate(kernels))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for convolution in self.path:
            h = convolution(F.relu(h))
        return (x if self.skip is None else self.skip(x)) + self.gain * h


def _convolution(in_channels: int, out_channels: int, kernel: int) -> Conv2D:
    """A convolution that keeps the side and starts as N(0, 1/fan-in) with a bias of zero, as the public network's."""
    return Conv2D(in_channels, out_channels, kernel, padding=kernel // 2,
                  std=(in_channels * kernel * kernel) ** -0.5)


def _stages(widths: list[int], first: int, blocks: int, kernels: tuple[int, ...]) -> nn.LayerList:
    gain = 1.0 / (len(widths) * blocks) ** 2
    ins = [first, *widths[:-1]]
    return nn.LayerList(
        nn.LayerList(DVAEBlock(ins[i] if block == 0 else width, width, kernels, gain) for block in range(blocks))
        for i, width in enumerate(widths))


class DVAEEncoder(nn.Layer):
    """Values in [0.1, 0.9] [B, 3, H, W] → logits [B, K, H/f, W/f]."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.patch = config.patch
        self.conv_in = _convolution(3 * config.patch ** 2, config.channels, 1 if config.local_encoder else 7)
        kernels = (1, 1, 1, 1) if config.local_encoder else (3, 3, 3, 1)
        self.stages = _stages(widths, config.channels, config.blocks, kernels)
        self.conv_out = _convolution(widths[-1], config.codebook_size, 1)

    def features(self, values: Tensor) -> Tensor:
        """Values in [0.1, 0.9] → what the last layer reads the logits off, [B, C, H/f, W/f]."""
        x = self.conv_in(fold_patches(values, self.patch))
        for number, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if number else x
            for block in stage:
                x = block(x)
        return F.relu(x)

    def forward(self, values: Tensor) -> Tensor:
        return self.conv_out(self.features(values))


class DVAEDecoder(Reconstructor):
    """Code vectors [B, d, h, w] → [B, 6, h·f, w·f]: three means and three log scales of the logit-Laplace."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers[::-1]]
        self.patch = config.patch
        self.stages = _stages(widths, config.decoder_channels, config.blocks, (1, 3, 3, 3))
        self.conv_out = _convolution(widths[-1], 6 * config.patch ** 2, 1)

    def features(self, z: Tensor) -> Tensor:
        for number, stage in enumerate(self.stages):
            z = functional.nearest_twice(z) if number else z
            for block in stage:
                z = block(z)
        return F.relu(z)

    def last(self, features: Tensor) -> Tensor:
        return unfold_patches(self.conv_out(features), self.patch)

    @property
    def last_parameters(self) -> list[Tensor]:
        return [self.conv_out.weight, self.conv_out.bias]


class DVAE(ImageTokenizer):
    """Discrete VAE. Pictures come in [-1, 1] like everywhere; the map to [0.1, 0.9] is in here.

    The public decoder's first layer, a 1×1 convolution over one-hot codes, is the table of code vectors here:
    ``code_in`` [d, K, 1, 1] and its bias.
    """

    def __init__(self, config: DVAEConfig):
        side = config.image_size // config.factor
        super().__init__(config, config.image_size, (side, side), config.codebook_size, config.decoder_channels)
        self.encoder = DVAEEncoder(config)
        # Over one-hot codes, 1/fan-in would make the vectors tiny and the first hundreds of steps blind to the picture.
        self.code_in = Conv2D(config.codebook_size, config.decoder_channels, 1, std=1.0)
        self.code_in.kept_whole = True  # codes are looked up in its weight; it is never called
        as_table(self.code_in.weight)
        self.reconstructor = DVAEDecoder(config)
        self.gather: Callable[[Tensor], Tensor] | None = None  # set where several ranks train: all ranks' rows
        self._started = config.start == "random"
        self._seen: list[Tensor] = []
        for parameter in self.encoder.parameters():
            parameter.optimize_attr["learning_rate"] = config.encoder_rate

    @paddle.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Make the codes tell the patches of ``images`` [B, 3, H, W] in [-1, 1] apart.

        K features of the encoder are drawn by squared distance, as the seeds of k-means++ are. The logits become
        -s/2 · |feature - seed|² up to a term that all codes share, so that a patch chooses the nearest seed, and a
        code's vector becomes a random projection of its seed, so that similar patches have similar vectors. A decoder
        makes use of such codes within a hundred steps, and of random ones hardly ever on noise-free pictures: the
        encoder learns to send one code always before that.
        """
        features = self.encoder.features(to_laplace(images)).transpose([0, 2, 3, 1]).flatten(0, 2)        # [N, C]
        features = features if self.gather is None else self.gather(features)
        rows = features.numpy().astype("float64")
        rng = np.random.default_rng(0)  # the same on all ranks
        seeds, distance = [], np.ones(len(rows))
        for _ in range(self.codebook_size):
            seeds.append(rng.choice(len(rows), p=distance / distance.sum()))
            distance = np.minimum(distance if len(seeds) > 1 else np.inf,
                                  ((rows - rows[seeds[-1]]) ** 2).sum(1) + TWIN_DISTANCE)
        mean = rows.mean(0)
        centres = rows[seeds] - mean
        bias = -(centres ** 2).sum(1) / 2 - centres @ mean
        scale = LOGIT_SPREAD / max((rows @ centres.T + bias).std(1).mean(), TWIN_DISTANCE)
        vectors = centres @ rng.standard_normal([centres.shape[1], self.code_dim])
        vectors = (vectors - vectors.mean(0)) / max(vectors.std(), TWIN_DISTANCE)
        for parameter, value in ((self.encoder.conv_out.weight, scale * centres[:, :, None, None]),
                                 (self.encoder.conv_out.bias, scale * bias),
                                 (self.code_in.weight, vectors.T[:, :, None, None])):
            parameter.set_value(value.astype("float32"))

    def logits(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] → logits [B, K, rows, columns]. Raises DataError for a wrong size."""
        self.check_images(images)
        return self.encoder(to_laplace(images))

    @property
    def vector_width(self) -> int:
        return self.codebook_size

    def vectors(self, images: Tensor) -> Tensor:
        return self.logits(images)

    def quantize(self, vectors: Tensor) -> Tensor:
        return vectors.argmax(1).reshape([vectors.shape[0], -1])  # [B, n]

    def embed(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        vectors = F.embedding(codes, self._table().transpose([1, 0])) + self.code_in.bias         # [B, n, d]
        return vectors.transpose([0, 2, 1]).reshape([codes.shape[0], self.code_dim, *self.grid])

    def _table(self) -> Tensor:
        return self.code_in.weight.reshape([self.code_dim, self.codebook_size])

    def temperature_at(self, step: int) -> float:
        """The Gumbel-softmax's temperature at ``step``."""
        return cosine_schedule(step, self.config.temperature, self.config.temperature_end,
                               self.config.temperature_steps)

    def kl_weight_at(self, step: int) -> float:
        """The KL term's weight at ``step``."""
        return cosine_schedule(step, 0.0, self.config.kl_weight, self.config.kl_steps)

    def reconstruct(self, images: Tensor, step: int = 0) -> Reconstruction:
        """Relaxed codes in training mode, hard ones otherwise; the latent loss is weight · KL(q(k | x) ‖ uniform).
        With ``start`` "pictures", the first pass in training mode of step 0 begins with :meth:`start_from`.

        The KL is summed over positions and divided by the number of pixel values, so that ``kl_weight`` compares it
        with the likelihood's mean over pixel values.
        """
        if self.training and step == 0 and not self._started:
            self._started = True
            self.start_from(images)
        logits = self.logits(images)
        batch, size, rows, columns = logits.shape
        flat = logits.transpose([0, 2, 3, 1]).reshape([-1, size])              # [B·n, K]
        per_value = rows * columns / (3.0 * self.image_size * self.image_size)
        codes = flat.detach().argmax(-1)
        if self.training:
            weights = gumbel_softmax(flat, self.temperature_at(step), hard=False)
            self._seen.append(codes)
        else:
            weights = F.one_hot(codes, size)
        z = functional.matmul(weights, self._table(), transpose_y=True) + self.code_in.bias       # [B·n, d]
        features = self.reconstructor.features(
            z.reshape([batch, rows, columns, self.code_dim]).transpose([0, 3, 1, 2]))
        return Reconstruction(self.reconstructor.last(features), features, codes.reshape([batch, -1]),
                              divergence(flat, self.kl_weight_at(step) * per_value))

    def picture_of(self, raw: Tensor) -> Tensor:
        return from_laplace(F.sigmoid(raw[:, :3]))

    def after_step(self, step: int) -> dict[str, float]:
        if not self._seen:
            return {}
        codes, self._seen = paddle.concat([part.reshape([-1]) for part in self._seen]), []
        return usage_figures(paddle.bincount(codes, minlength=self.codebook_size).numpy())
