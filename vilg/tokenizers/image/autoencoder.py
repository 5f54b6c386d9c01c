"""The convolutional encoder and decoder of VQVAE and VQGAN."""
from paddle import Tensor, nn

from vilg.nn import functional
from vilg.nn.conv import AttentionBlock, Downsample, ResidualBlock, Upsample, fold_patches, unfold_patches
from vilg.nn.layers import Conv2D, GroupNorm


class Level(nn.Layer):
    """Residual blocks at one resolution, each followed by attention when asked; ``resize`` leads to the next level."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, groups: int,
                 resize: type[nn.Layer] | None):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.blocks = nn.LayerList(ResidualBlock(a, b, groups) for a, b in zip(widths, widths[1:]))
        self.attentions = nn.LayerList(AttentionBlock(out_channels, groups) for _ in range(blocks if attention else 0))
        self.resize = resize(out_channels, out_channels) if resize else None

    def forward(self, x: Tensor) -> Tensor:
        for position, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[position](x)
        return x if self.resize is None else self.resize(x)


class Middle(nn.Layer):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, groups)
        self.attention = AttentionBlock(channels, groups)
        self.block2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x)))


class Encoder(nn.Layer):
    """Pictures [B, 3, H, W] → vectors [B, z_channels, H/f, W/f]; levels run from the highest resolution down."""

    def __init__(self, widths: list[int], attention: list[bool], blocks: int, z_channels: int, groups: int, patch: int):
        super().__init__()
        self.patch = patch
        self.conv_in = Conv2D(3 * patch * patch, widths[0], 3, padding=1)
        ins = [widths[0], *widths[:-1]]
        self.levels = nn.LayerList(
            Level(ins[i], width, blocks, attention[i], groups, Downsample if i + 1 < len(widths) else None)
            for i, width in enumerate(widths))
        self.middle = Middle(widths[-1], groups)
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv2D(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(fold_patches(x, self.patch))
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm_out(self.middle(x), silu=True))


class PatchEncoder(nn.Layer):
    """Pictures [B, 3, H, W] → vectors [B, z_channels, H/f, W/f], each from the f×f pixels of its own patch alone.

    The pixels of a patch go through ``blocks`` residual maps of ``width`` channels; nothing passes between patches.
    """

    def __init__(self, factor: int, width: int, blocks: int, z_channels: int):
        super().__init__()
        self.factor = factor
        self.conv_in = Conv2D(3 * factor * factor, width, 1)
        self.blocks = nn.LayerList(
            nn.LayerList([Conv2D(width, width, 1), Conv2D(width, width, 1)]) for _ in range(blocks))
        self.conv_out = Conv2D(width, z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(fold_patches(x, self.factor))
        for first, second in self.blocks:
            x = x + second(functional.silu(first(functional.silu(x))))
        return self.conv_out(functional.silu(x))


class Decoder(nn.Layer):
    """Vectors [B, z_channels, h, w] → pictures [B, 3, h·f, w·f], not clipped; levels run from the lowest resolution up.

    ``widths`` and ``attention`` are those of the encoder, highest resolution first.
    """

    def __init__(self, widths: list[int], attention: list[bool], blocks: int, z_channels: int, groups: int, patch: int):
        super().__init__()
        self.patch = patch
        self.conv_in = Conv2D(z_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], groups)
        rising = widths[::-1]
        ins = [rising[0], *rising[:-1]]
        self.levels = nn.LayerList(
            Level(ins[i], width, blocks, attention[-1 - i], groups, Upsample if i + 1 < len(widths) else None)
            for i, width in enumerate(rising))
        self.norm_out = GroupNorm(widths[0], groups)
        self.conv_out = Conv2D(widths[0], 3 * patch * patch, 3, padding=1)

    def features(self, z: Tensor) -> Tensor:
        """z → the input of the last convolution [B, widths[0], H/patch, W/patch]."""
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        return self.norm_out(x, silu=True)

    def last(self, features: Tensor) -> Tensor:
        """The last convolution: features → pictures [B, 3, H, W]."""
        return unfold_patches(self.conv_out(features), self.patch)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.features(z))
