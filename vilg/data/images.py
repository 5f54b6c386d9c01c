"""Reading image files."""
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from vilg.data.sample import BrokenSample, Reading

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPARE = 2  # times the side that is needed: what is resized to it keeps pixels to average (55 dB from the whole image)
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}  # by EXIF orientation


def read_image(file: Path | bytes, name: str, reading: Reading = Reading()) -> np.ndarray:
    """Decode an image, given as a path or as its bytes, to uint8 [H, W, 3].

    A JPEG that is larger than needed (see :class:`vilg.data.sample.Reading`) is decoded at 1/2, 1/4 or 1/8 of its size,
    in a fraction of the time. See :func:`plain`. Raises BrokenSample (under ``name``) when it is missing, cut short or
    not an image.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if reading.least_side:
                image.draft(None, (SPARE * reading.least_side,) * 2)
            return plain(image)
    except FileNotFoundError:
        raise BrokenSample(name, "the image is missing") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes decoders raise anything: struct.error, TypeError, IndexError …
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BrokenSample(name, f"not a whole image ({reason})") from None


def plain(image: Image.Image) -> np.ndarray:
    """The image as uint8 [H, W, 3]: turned upright by its EXIF orientation, laid on white where it is transparent.

    16-bit grey is scaled to 8 bits. Raises ValueError for grey that has no agreed black and white: float and 32-bit.
    """
    image.load()  # TIFF turns itself while it loads
    # Not ImageOps.exif_transpose, which writes the EXIF anew and fails where any tag of it has a wrong type.
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


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
