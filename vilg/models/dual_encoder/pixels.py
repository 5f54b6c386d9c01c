"""Preprocessing of images that a model drew, through which gradients go."""
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.models.dual_encoder.preprocess import PreprocessConfig


def differentiable(images: Tensor, size: int, config: PreprocessConfig) -> Tensor:
    """Square images [B, 3, S, S] in [-1, 1] → pixels [B, 3, size, size] as the tower reads them, with gradients."""
    if images.shape[-1] != size:
        images = F.interpolate(images, [size, size], mode="bicubic")
    mean, std = (paddle.to_tensor(value, "float32").reshape([1, 3, 1, 1]) for value in (config.mean, config.std))
    return (images / 2 + 0.5 - mean) / std
