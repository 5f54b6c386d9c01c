"""Pictures as they come from clients and go to them."""
import base64
import binascii
import io
import re

import numpy as np
from PIL import Image

from vilg.app.serving.errors import ApiError
from vilg.data.images import read_image
from vilg.data.sample import BrokenSample, Reading
from vilg.data.transforms import centre_crop

MOST_PIXELS = 50_000_000
_DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.I)


def is_data_address(text: str) -> bool:
    """Is it a picture written into its own address?"""
    return _DATA.match(text) is not None


def from_data_address(address: str, field: str) -> np.ndarray:
    """``data:image/…;base64,…`` → uint8 [H, W, 3]. Other addresses are not fetched: nobody shall make this machine
    ask another for something. Raises ApiError."""
    match = _DATA.match(address)
    if match is None:
        raise ApiError(400, f"{field}: pictures come as data:image/png;base64,… ; addresses are not fetched", field,
                       "invalid_image_url")
    try:
        return from_bytes(base64.b64decode(address[match.end():], validate=True), field)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{field}: what follows base64, is no base64", field, "invalid_image") from None


def from_bytes(content: bytes, field: str) -> np.ndarray:
    """An image file → uint8 [H, W, 3]. Raises ApiError naming the field."""
    try:
        return read_image(content, field, Reading(max_pixels=MOST_PIXELS))
    except BrokenSample as broken:
        raise ApiError(400, str(broken), field, "invalid_image") from None


def kept_tokens(mask: bytes, field: str, rows: int, columns: int, size: int) -> np.ndarray:
    """OpenAI's mask: where it is transparent the picture is drawn anew. → booleans [rows · columns], the tokens that
    are kept: those of which nothing is transparent. Raises ApiError."""
    from_bytes(mask, field)  # is it a whole image, and not too large?
    with Image.open(io.BytesIO(mask)) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            raise ApiError(400, f"{field}: has no transparency; make what is to be drawn anew transparent", field,
                           "invalid_mask")
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    opaque = centre_crop(np.repeat(alpha[..., None], 3, axis=2), size)[..., 0] > 127
    return opaque.reshape(rows, size // rows, columns, size // columns).all(axis=(1, 3)).reshape(-1)


def as_png(picture: np.ndarray) -> str:
    """uint8 [H, W, 3] → a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
