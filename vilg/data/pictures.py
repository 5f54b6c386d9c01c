"""Reading picture files."""
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vilg.data.sample import BrokenSample

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_picture(file: Path | bytes, name: str) -> np.ndarray:
    """Decode a picture, given as a path or as its bytes, to uint8 [H, W, 3].

    See :func:`plain`. Raises BrokenSample (under ``name``) when it is missing, cut short or not a picture.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return plain(picture)
    except FileNotFoundError:
        raise BrokenSample(name, "the picture is missing") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BrokenSample(name, f"not a whole picture ({reason})") from None


def plain(picture: Image.Image) -> np.ndarray:
    """The picture as uint8 [H, W, 3]: turned upright by its EXIF orientation, laid on white where it is transparent."""
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))
