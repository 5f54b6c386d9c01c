"""A small network whose features scenes are compared in, for the Fréchet distance of this project's own runs.

The network knows scenes and nothing else: its distances compare runs of this project, and are **not** comparable with
published FID, which is taken in Inception's features of photographs.
"""
import numpy as np
import paddle
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.data.transforms import to_model
from vilg.errors import DataError
from vilg.nn.layers import Conv2D, GroupNorm, Linear

STAGES = 4  # each halves the side
NORM_GROUPS = 8


@configclass
class SceneFeaturesConfig:
    """The feature network: four stride-2 stages from ``channels`` on, then an embedding of ``dim`` numbers."""

    image_size: int = 64
    channels: int = 32
    dim: int = 64

    def __post_init__(self):
        if min(self.image_size, self.channels, self.dim) < 1 or self.image_size % 2 ** STAGES:
            raise ValueError(f"image_size must be a multiple of {2 ** STAGES}, channels and dim at least 1")
        if self.channels % NORM_GROUPS:
            raise ValueError(f"channels must be a multiple of {NORM_GROUPS}, not {self.channels}")


class SceneFeatures(nn.Layer):
    """Pictures [B, 3, H, W] in [-1, 1] → features [B, D]: an embedding that tells scenes apart, and the mean activation
    of the second stage's channels, which tells clean edges from smeared ones."""

    def __init__(self, config: SceneFeaturesConfig):
        super().__init__()
        self.config = config
        widths = [3, *(config.channels * factor for factor in (1, 2, 3, 4))]
        self.convolutions = nn.LayerList(Conv2D(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.LayerList(GroupNorm(width, NORM_GROUPS) for width in widths[1:])
        side = config.image_size // 2 ** STAGES
        self.embedding = Linear(widths[-1] * side * side, config.dim, std=(widths[-1] * side * side) ** -0.5)
        self.width = config.dim + widths[2]

    def forward(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if list(images.shape[1:]) != [3, size, size]:
            raise DataError(f"the feature network takes pictures [B, 3, {size}, {size}], got {list(images.shape)}; "
                            "train one for this size")
        x, texture = images, None
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            x = norm(convolution(x), silu=True)
            texture = x.mean([2, 3]) if number == 1 else texture
        return paddle.concat([self.embedding(x.flatten(1)), texture], axis=1)

    def of(self, pictures: list[np.ndarray] | np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Features [N, D] of pictures uint8 [H, W, 3]."""
        self.eval()
        with paddle.no_grad():
            parts = [self(paddle.to_tensor(to_model(np.stack(pictures[start:start + batch_size])))).numpy()
                     for start in range(0, len(pictures), batch_size)]
        return np.concatenate(parts) if parts else np.zeros([0, self.width], "float32")
