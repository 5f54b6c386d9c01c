"""What users hand over: texts and images, one or several, in the forms that they come in."""
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilg.data.folders import is_hidden
from vilg.data.images import IMAGE_SUFFIXES, is_image_name, plain, read_image
from vilg.data.sample import BrokenSample
from vilg.data.transforms import centre_crop
from vilg.errors import DataError, VilgError
from vilg.generation.sampling import as_int

LARGEST_SEED = 2 ** 53 - 1  # beyond it a browser's numbers skip some
LONGEST_TEXT = 10_000  # characters; whoever writes more means no sentence, and to count its tokens takes long
Picture = str | Path | Image.Image | np.ndarray


def listed(given: Any) -> list[Any]:
    """One text or picture, or several in a list, a tuple or the like → a list."""
    one = isinstance(given, (str, bytes, Image.Image)) or hasattr(given, "read") or getattr(given, "ndim", 1) != 1
    return [given] if one or not isinstance(given, Iterable) else list(given)


def open_picture(picture: Picture) -> np.ndarray:
    """A path, PIL picture or array → uint8 [H, W, 3], upright and on white as in training (:func:`plain`).
    Raises DataError naming the file."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise DataError(f"a picture array is uint8 [H, W, 3]; got {picture.dtype} {list(picture.shape)}")
        return picture
    if not isinstance(picture, (str, os.PathLike, Image.Image)) and not hasattr(picture, "read"):
        raise DataError(f"a picture is a path, a PIL picture or an array uint8 [H, W, 3]; got {type(picture).__name__}")
    try:
        return plain(picture) if isinstance(picture, Image.Image) else read_image(picture, str(picture))
    except BrokenSample as broken:
        raise DataError(f"{broken}; save it again or leave it out") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged image that PIL has not decoded yet makes decoders raise anything
        raise DataError(f"{picture}: not a whole image ({error}); save it again or leave it out") from None


@dataclass
class ImageFiles:
    """Images read from files: ``images`` uint8 [size, size, 3] by path, and why the others of ``broken`` were not."""

    images: dict[str, np.ndarray]
    broken: dict[str, str]

    def refuse_broken(self) -> None:
        """Raise DataError where any could not be read; called last, when the others have had their results."""
        if self.broken:
            first, more = next(iter(self.broken.values())), len(self.broken) - 1
            raise DataError(first + (f" ({more} more of the {len(self.images) + more + 1} images could not be read)"
                                     if more else ""))


def read_files(paths: Iterable[str | Path], size: int) -> ImageFiles:
    """Images by path, centre-cropped to ``size``; a folder stands for the images in it and below, by name.

    An image that cannot be read costs itself alone. Raises DataError for a folder without images.
    """
    files = ImageFiles({}, {})
    for given in paths:
        path = Path(given).expanduser()
        for file in _images_below(path) if path.is_dir() else [given]:
            try:
                files.images[str(file)] = centre_crop(open_picture(file), size)
            except DataError as error:
                files.broken[str(file)] = str(error)
    return files


def _images_below(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if is_image_name(file)
                   and not any(map(is_hidden, file.relative_to(folder).parts)))
    if not found:
        raise DataError(f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); name images, or their folder")
    return found


def token_mask(mask: Picture | np.ndarray, rows: int, columns: int, size: int) -> np.ndarray:
    """Booleans [rows · columns]: tokens that lie wholly under the white part of a mask picture, or as given."""
    wanted = f"known_mask is a picture or booleans [{rows}, {columns}], one a token"
    if isinstance(mask, (list, tuple)):
        try:
            mask = np.array(mask)
        except ValueError:
            raise VilgError(f"{wanted}; got rows of several lengths") from None
    if isinstance(mask, np.ndarray) and mask.ndim != 3:
        if mask.dtype != bool or mask.shape != (rows, columns):
            raise VilgError(f"{wanted}; got {mask.dtype} {list(mask.shape)}")
        return mask.reshape(-1)
    white = centre_crop(open_picture(mask), size).min(axis=2) > 127
    return white.reshape(rows, size // rows, columns, size // columns).all(axis=(1, 3)).reshape(-1)


def counts(num_images: Any, best_of: Any) -> tuple[int, int | None]:
    """How many pictures to keep and to draw, as whole numbers. Raises VilgError for others."""
    num_images = as_int(num_images, "num_images")
    best_of = None if best_of is None else as_int(best_of, "best_of")
    if num_images < 1 or (best_of is not None and best_of < num_images):
        raise VilgError(f"num_images must be at least 1 and best_of at least num_images; got {num_images} and "
                        f"{best_of}")
    return num_images, best_of
