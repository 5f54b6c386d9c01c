"""Reading picture files."""
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vilg.data.sample import BrokenSample

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_picture(file: Path | bytes, name: str) -> np.ndarray:
    """Decode a picture, given as a path or as its bytes, to uint8 [H, W, 3].

    Turned upright by its EXIF orientation, laid on white where it is transparent. Raises BrokenSample (under ``name``)
    when it is missing, cut short or not a picture.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise BrokenSample(name, "the picture is missing") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BrokenSample(name, f"not a whole picture ({reason})") from None
