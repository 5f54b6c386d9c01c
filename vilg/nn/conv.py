"""Convolutional blocks of the image tokenizers: residual block, attention over positions, down- and upsampling."""
import paddle
from paddle import Tensor, nn

from vilg.nn import functional
from vilg.nn.layers import Conv2D, GroupNorm


class ResidualBlock(nn.Layer):
    """x + conv(swish(norm(conv(swish(norm(x)))))), [B, C, H, W] → [B, out, H, W]; a 1×1 shortcut when C changes."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = Conv2D(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = Conv2D(out_channels, out_channels, 3, padding=1)
        self.shortcut = Conv2D(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, silu=True))
        h = self.conv2(self.norm2(h, silu=True))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class AttentionBlock(nn.Layer):
    """One-head self-attention over the H·W positions of [B, C, H, W], added to its input."""

    def __init__(self, channels: int, groups: int = 32):
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.query = Conv2D(channels, channels, 1)
        self.key = Conv2D(channels, channels, 1)
        self.value = Conv2D(channels, channels, 1)
        self.out = Conv2D(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x)
        query, key, value = (layer(h).reshape([batch, channels, height * width])
                             for layer in (self.query, self.key, self.value))
        scores = functional.matmul(query, key, transpose_x=True) * channels ** -0.5      # [B, HW, HW]
        mixed = functional.matmul(value, functional.softmax(scores), transpose_y=True)   # [B, C, HW]
        return x + self.out(mixed.reshape([batch, channels, height, width]))


class Downsample(nn.Layer):
    """Halve height and width by a stride-2 convolution that pads below and on the right alone."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv2D(in_channels, out_channels, 3, stride=2, padding=(0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Layer):
    """Double height and width by nearest neighbour, then convolve."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv2D(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.nearest_twice(x))


def fold_patches(x: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] → [B, C·patch², H/patch, W/patch]: the pixels of a patch become channels."""
    return x if patch == 1 else paddle.nn.functional.pixel_unshuffle(x, patch)


def unfold_patches(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`fold_patches`."""
    return x if patch == 1 else paddle.nn.functional.pixel_shuffle(x, patch)
