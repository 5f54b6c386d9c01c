"""The image tower: a Vision Transformer (arXiv 2010.11929) in CLIP's form, with a norm before its blocks."""
from typing import Literal

import paddle
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.errors import ShapeError
from vilg.models.dual_encoder.tower import Tower, TowerConfig, TowerStack
from vilg.nn.layers import Conv2D, Embedding, GroupNorm, LayerNorm

GROUPS = 8


@configclass
class ImageTowerConfig(TowerConfig):
    """Shape of an :class:`ImageTower`; images are squares of ``image_size`` pixels."""

    image_size: int
    patch_size: int
    norm_eps: float = 1e-6
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"
    pooling: Literal["cls", "mean"] = "cls"  # mean: over the patches
    stem: int = 0  # convolutions before patches are cut, each halves the side (arXiv 2106.14881)
    patch_dropout: float = 0.0  # share of patches left out in training (FLIP, arXiv 2212.00794)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 1 or self.image_size < self.patch_size or self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        halved = 2**max(0, self.stem)
        if self.stem < 0 or self.patch_size % halved or (self.stem and self.width % (GROUPS * halved // 2)):
            raise ValueError(f"stem {self.stem} halves the side {halved}-fold, which patch_size {self.patch_size} must "
                             f"be a multiple of, and starts from {2 * self.width}/{halved} channels, which must make "
                             f"groups of {GROUPS}")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must be in [0, 1), not {self.patch_dropout}")

    @property
    def patches(self) -> int:
        """Number of patches n."""
        return (self.image_size // self.patch_size) ** 2


class ConvolutionStem(nn.Layer):
    """Pixels [B, 3, S, S] → features [B, C, S / 2^stages, S / 2^stages], which patches are cut from in their place:
    convolutions of stride 2, a norm and SiLU behind each. A tower that has few images to learn from learns faster."""

    def __init__(self, stages: int, channels: int):
        super().__init__()
        sizes = [3, *(channels // 2**stage for stage in reversed(range(stages)))]
        self.convolutions = nn.LayerList([Conv2D(before, after, 3, stride=2, padding=1)
                                          for before, after in zip(sizes, sizes[1:])])
        self.norms = nn.LayerList([GroupNorm(size, GROUPS) for size in sizes[1:]])

    def forward(self, pixels: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms):
            pixels = norm(convolution(pixels), silu=True)
        return pixels


class ImageTower(Tower):
    """Pixels [B, 3, S, S], already normalised as the model's preprocessing says → one vector an image [B, D]."""

    def __init__(self, config: ImageTowerConfig):
        super().__init__(config)
        width, patch = config.width, config.patch_size // 2**config.stem
        self.stem = ConvolutionStem(config.stem, width) if config.stem else None
        self.patch_map = Conv2D(width if config.stem else 3, width, patch, stride=patch, bias=False, std=0.02)
        self.class_embedding = Embedding(1, width)
        self.position_embedding = Embedding(config.patches + 1, width)
        self.norm = LayerNorm(width, config.norm_eps)
        self.stack = TowerStack(config)
        self.freeze()

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] → [B, D]. Raises ShapeError for images of another size."""
        cls = self.config.pooling == "cls"
        x = self.stack(self._embedded(pixels), first_only=cls)
        return x[:, 0] if cls else x[:, 1:].mean(1)

    def patches(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] → the vector of every patch after the last block, in raster order: [B, n, D]."""
        return self.stack(self._embedded(pixels), first_only=False)[:, 1:]

    def _embedded(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] → class vector and patches as the first block takes them: [B, 1 + n, D]."""
        size = self.config.image_size
        if pixels.shape[1:] != [3, size, size]:
            raise ShapeError(f"images of shape {list(pixels.shape)} do not fit the image tower, which reads "
                             f"[batch, 3, {size}, {size}]")
        batch, width = pixels.shape[0], self.config.width
        features = pixels if self.stem is None else self.stem(pixels)
        patches = self.patch_map(features).reshape([batch, width, -1]).transpose([0, 2, 1])  # [B, n, D]
        positions = self.position_embedding(paddle.arange(self.config.patches + 1))  # [1 + n, D]
        patches = self._keep_some(patches + positions[1:])
        first = self.class_embedding(paddle.zeros([batch, 1], "int64")) + positions[:1]  # [B, 1, D]
        return self.drop(self.norm(paddle.concat([first, patches], axis=1)))

    def _keep_some(self, patches: Tensor) -> Tensor:
        """Patches [B, n, D] → [B, kept, D]: in training another random choice for every image."""
        batch, count, width = patches.shape
        kept = max(1, round(count * (1 - self.config.patch_dropout)))
        if not self.training or self.config.frozen or kept == count:
            return patches
        chosen = paddle.argsort(paddle.rand([batch, count]), axis=1)[:, :kept]
        rows = (chosen + paddle.arange(batch).unsqueeze(1) * count).reshape([-1])  # [B · kept]
        return paddle.gather(patches.reshape([-1, width]), rows).reshape([batch, kept, width])
