"""Reading image files: which formats, how large, upright and opaque."""
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from vilg.data.sample import BrokenSample, Reading

# Pillow's names, and the suffixes of each. Of its other formats some start programs (EPS: Ghostscript) and most are no
# longer met; docs/data.md lists these.
FORMATS = {
    "PNG": (".png", ".apng"), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"), "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow itself opens nothing larger
SPARE = 2  # times the side that is needed: what is resized to it keeps pixels to average (55 dB from the whole image)
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}  # by EXIF orientation


def read_image(file: str | os.PathLike | BinaryIO | bytes, name: str, reading: Reading = Reading()) -> np.ndarray:
    """Decode an image, given as a path, an open file or its bytes, to uint8 [H, W, 3].

    A JPEG that is larger than needed (see :class:`vilg.data.sample.Reading`) is decoded at 1/2, 1/4 or 1/8 of its size,
    in a fraction of the time. See :func:`plain`. Raises BrokenSample (under ``name``) when it is missing, of no known
    format, too large, cut short or not an image.
    """
    with _broken_as(name):
        if isinstance(file, (str, os.PathLike)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise BrokenSample(name, "is no file")  # a pipe would be waited for
        with _opened(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.width * image.height > reading.max_pixels:
                raise BrokenSample(name, f"{image.width} × {image.height} pixels are more than max_pixels "
                                         f"({reading.max_pixels}); raise it or make the image smaller",
                                   "more pixels than max_pixels")
            if reading.least_side:
                image.draft(None, (SPARE * reading.least_side,) * 2)
            return plain(image)


def image_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height by the header of an image's bytes, as stored, without decoding it. Raises BrokenSample as
    :func:`read_image` does."""
    with _broken_as(name), _opened(io.BytesIO(content)) as image:
        return image.size


def suffix_of(content: bytes) -> str:
    """The suffix, without its dot, that belongs to the format of an image's bytes; "bin" for none that is read."""
    try:
        with _opened(io.BytesIO(content)) as image:
            return FORMATS[image.format][0][1:]
    except Exception:  # as in read_image, which says what is wrong
        return "bin"


@contextmanager
def _broken_as(name: str) -> Iterator[None]:
    """Whatever a damaged file makes decoders raise, as BrokenSample under ``name``."""
    try:
        yield
    except BrokenSample:
        raise
    except FileNotFoundError:
        raise BrokenSample(name, "the image is missing") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything: struct.error, TypeError, IndexError …
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise BrokenSample(name, f"not a whole image ({reason})", "not a whole image") from None


def plain(image: Image.Image) -> np.ndarray:
    """The image as uint8 [H, W, 3]: turned upright by its EXIF orientation, laid on white where it is transparent.

    16-bit grey is scaled to 8 bits. Raises ValueError for grey that has no agreed black and white: float and 32-bit.
    """
    image.load()  # TIFF turns itself while it loads
    # Not ImageOps.exif_transpose, which writes the EXIF anew and fails where any tag of it has a wrong type.
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.asarray(image.convert("RGB"))


def is_image_name(name: str | Path) -> bool:
    """Whether a file's suffix is one of those that are read, in whatever case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _opened(file: str | os.PathLike | BinaryIO) -> Image.Image:
    Image.init()  # all formats are known from here on; done once
    known = [name for name in FORMATS if name in Image.OPEN]  # Pillow may be built without some
    try:
        return Image.open(file, formats=known)
    except Image.UnidentifiedImageError:
        raise ValueError(f"none of the formats that are read: {', '.join(FORMATS)}") from None


def _orientation(image: Image.Image) -> int | None:
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation)
        return turn if isinstance(turn, int) else None
    except Exception:  # EXIF is a file within the file, and as often damaged
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (mode I;16, or I in older Pillows) as L; convert() would clip all above 255 to white."""
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"mode {image.mode} with levels from {levels.min():g} to {levels.max():g}; "
                         "save it with 8 or 16 bits a channel")
    clear = image.info.get("transparency")
    if clear is not None:
        levels = np.where(levels == clear, 65535, levels)
    return Image.fromarray((levels.astype(np.int64) * 255 // 65535).astype(np.uint8))
