"""From an image of any size to what the models take in, and back."""
import numpy as np
from PIL import Image


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Largest centred square of ``image`` uint8 [H, W, 3], resized to uint8 [size, size, 3] (ERNIE-ViLG,
    section 2.1)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top:top + side, left:left + side]
    if side == size:
        return np.ascontiguousarray(square)
    resample = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(square)).resize((size, size), resample))


def to_model(images: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, 3] → float32 [..., 3, H, W] in [-1, 1]."""
    scaled = images.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def from_model(images: np.ndarray) -> np.ndarray:
    """float [..., 3, H, W], nominally in [-1, 1] and clipped to it → uint8 [..., H, W, 3]."""
    levels = np.clip(np.rint((np.asarray(images, np.float32) + 1) * 127.5), 0, 255)
    return np.ascontiguousarray(np.moveaxis(levels, -3, -1)).astype(np.uint8)
