"""The image tower: a Vision Transformer (arXiv 2010.11929) in CLIP's form, with a norm before its blocks."""
from typing import Literal

import paddle
from paddle import Tensor

from vilg.config import configclass
from vilg.errors import ShapeError
from vilg.models.dual_encoder.tower import Tower, TowerConfig, TowerStack
from vilg.nn.layers import Conv2D, Embedding, LayerNorm


@configclass
class ImageTowerConfig(TowerConfig):
    """Shape of an :class:`ImageTower`; images are squares of ``image_size`` pixels."""

    image_size: int
    patch_size: int
    norm_eps: float = 1e-6
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"
    pooling: Literal["cls", "mean"] = "cls"  # mean: over the patches
    patch_dropout: float = 0.0  # share of patches left out in training (FLIP, arXiv 2212.00794)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 1 or self.image_size < self.patch_size or self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must be in [0, 1), not {self.patch_dropout}")

    @property
    def patches(self) -> int:
        """Number of patches n."""
        return (self.image_size // self.patch_size) ** 2


class ImageTower(Tower):
    """Pixels [B, 3, S, S], already normalised as the model's preprocessing says → one vector an image [B, D]."""

    def __init__(self, config: ImageTowerConfig):
        super().__init__(config)
        width, patch = config.width, config.patch_size
        self.patch_map = Conv2D(3, width, patch, stride=patch, bias=False, std=0.02)
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
        patches = self.patch_map(pixels).reshape([batch, width, -1]).transpose([0, 2, 1])  # [B, n, D]
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
