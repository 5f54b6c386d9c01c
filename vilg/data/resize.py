"""From images of any size to what Inception-v3 takes in, by the four protocols that are published.

They differ in how they resize and in how they round, which moves a Fréchet distance by whole points; each has a name:

* ``dm-gan``: PIL's bilinear filter on whole levels; ImageNet's mean and deviation, and back from them.
* ``pytorch-fid``: bilinear between pixel centres, without a filter for shrinking.
* ``torch-fidelity``: bilinear from the top left corner, as TensorFlow 1 did it.
* ``clean-fid``: PIL's bicubic filter on each channel as real numbers, clipped to the levels.

None crops: an image that is not square is squashed.
"""
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vilg.errors import DataError

SIDE = 299
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], "float32")
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], "float32")


def pil_bilinear(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [H, W, 3] → uint8 [side, side, 3] by PIL's bilinear filter, which averages when it shrinks."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.BILINEAR))


def pil_bicubic_float(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [H, W, 3] → float32 [side, side, 3] in 0 … 255 by PIL's bicubic filter, a channel at a time, unrounded."""
    channels = [np.asarray(Image.fromarray(np.ascontiguousarray(image[..., channel], "float32"), mode="F")
                           .resize((side, side), Image.Resampling.BICUBIC)) for channel in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 255)


def bilinear_half_pixel(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """[H, W, 3] → float32 [side, side, 3]: bilinear between pixel centres, of the two nearest pixels alone."""
    # PyTorch's scale is a float32, and its place is rounded once, by a fused multiply-add; hence the wider numbers.
    return _bilinear(image, side, lambda places, scale: (places.astype("float64") + 0.5) * float(scale) - 0.5)


def bilinear_corner(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """[H, W, 3] → float32 [side, side, 3]: bilinear from the top left corner (TensorFlow 1, align_corners false)."""
    return _bilinear(image, side, lambda places, scale: places * scale)


def _bilinear(image: np.ndarray, side: int, sources: Callable[[np.ndarray, np.float32], np.ndarray]) -> np.ndarray:
    values = image.astype("float32")
    for axis in (1, 0):  # columns first, as the originals: the last bit depends on it
        size = values.shape[axis]
        # Places in float32, as the originals have them: an exact one would differ by 1e-5 of a step between two pixels.
        places = np.clip(sources(np.arange(side, dtype="float32"), np.float32(size / side)), 0, None).astype("float32")
        low = np.minimum(places.astype("int64"), size - 1)
        weight = np.expand_dims(places - low.astype("float32"), [other for other in range(3) if other != axis])
        first, second = values.take(low, axis), values.take(np.minimum(low + 1, size - 1), axis)
        values = first + (second - first) * weight
    return values


def _dm_gan(image: np.ndarray) -> np.ndarray:
    normal = (pil_bilinear(image).astype("float32") / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
    return normal * (IMAGENET_DEVIATION / np.float32(0.5)) + (IMAGENET_MEAN - np.float32(0.5)) / np.float32(0.5)


RESIZES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dm-gan": _dm_gan,
    "pytorch-fid": lambda image: 2 * bilinear_half_pixel(image.astype("float32") / 255) - 1,
    "torch-fidelity": lambda image: (bilinear_corner(image) - 128) / 128,
    "clean-fid": lambda image: (pil_bicubic_float(image) - 128) / 128,
}
"""Protocol → what makes float32 [299, 299, 3] in about (-1, 1) of an image uint8 [H, W, 3]."""
VARIANTS = {"dm-gan": "torchvision", "pytorch-fid": "tf", "torch-fidelity": "tf", "clean-fid": "tf"}
"""Protocol → which Inception-v3 of ``vilg.models.inception`` it takes."""


def to_inception(images: Sequence[np.ndarray], protocol: str) -> np.ndarray:
    """Images uint8 [H, W, 3] of any sizes → float32 [B, 3, 299, 299] as ``protocol`` makes them.

    Raises DataError for another protocol, or for an image of another kind.
    """
    if protocol not in RESIZES:
        raise DataError(f"there is no protocol called {protocol}; choose one of {', '.join(RESIZES)}")
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(f"Inception's images are uint8 [H, W, 3], got {image.dtype} {list(image.shape)}; read them "
                            "as RGB")
    batch = np.empty([len(images), SIDE, SIDE, 3], "float32")
    for number, image in enumerate(images):
        batch[number] = RESIZES[protocol](image)
    return np.ascontiguousarray(np.moveaxis(batch, -1, 1))
