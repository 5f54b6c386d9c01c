"""Reading picture files."""
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from vilg.data.sample import BrokenSample

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}  # by EXIF orientation


def read_picture(file: Path | bytes, name: str) -> np.ndarray:
    """Decode a picture, given as a path or as its bytes, to uint8 [H, W, 3].

    See :func:`plain`. Raises BrokenSample (under ``name``) when it is missing, cut short or not a picture.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return plain(picture)
    except FileNotFoundError:
        raise BrokenSample(name, "the picture is missing") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes decoders raise anything: struct.error, TypeError, IndexError …
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BrokenSample(name, f"not a whole picture ({reason})") from None


def plain(picture: Image.Image) -> np.ndarray:
    """The picture as uint8 [H, W, 3]: turned upright by its EXIF orientation, laid on white where it is transparent.

    16-bit grey is scaled to 8 bits. Raises ValueError for grey that has no agreed black and white: float and 32-bit.
    """
    picture.load()  # TIFF turns itself while it loads
    # Not ImageOps.exif_transpose, which writes the EXIF anew and fails where any tag of it has a wrong type.
    turn = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation))
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits (mode I;16, or I in older Pillows) as L; convert() would clip all above 255 to white."""
    levels = np.asarray(picture)
    if picture.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"mode {picture.mode} with levels from {levels.min():g} to {levels.max():g}; "
                         "save it with 8 or 16 bits a channel")
    clear = picture.info.get("transparency")
    if clear is not None:
        levels = np.where(levels == clear, 65535, levels)
    return Image.fromarray((levels.astype(np.int64) * 255 // 65535).astype(np.uint8))
