import io

import numpy as np
import pytest
from PIL import Image

from vilg.data.images import read_image
from vilg.data.sample import Reading
from vilg.data.transforms import centre_crop


def photograph(width, height, form="JPEG"):
    """Something smooth, as photographs are at the scale of their pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype="uint8")
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, form, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("width, height, side, expected", [
    (2400, 1600, 100, (200, 300)),     # an eighth
    (2400, 1600, 200, (400, 600)),     # a quarter
    (1600, 2400, 400, (1200, 800)),    # a half, upright
    (2400, 1600, 401, (1600, 2400)),   # a half would leave less than twice the side
    (300, 200, 256, (200, 300)),
])
def test_large_jpegs_are_decoded_reduced_and_never_too_small(width, height, side, expected):
    content = photograph(width, height)
    image = read_image(content, "x", Reading(least_side=side))
    assert image.shape == (*expected, 3)
    whole = read_image(content, "x")
    assert whole.shape == (height, width, 3)
    difference = centre_crop(image, side).astype(float) - centre_crop(whole, side)
    assert np.abs(difference).mean() < 1.5


def test_what_is_no_jpeg_is_read_whole():
    assert read_image(photograph(1200, 800, "PNG"), "x", Reading(least_side=64)).shape == (800, 1200, 3)
