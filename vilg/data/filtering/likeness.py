"""What tells that two images or two texts are nearly the same: hashes that find candidates, and what confirms them.

A hash alone is no proof: scenes that differ in the colour of one shape have nearly one hash. So candidates are
confirmed by what they look like, at 16 × 16 pixels, or by their texts' shingles.
"""
import hashlib
import unicodedata

import numpy as np
from PIL import Image

SIDE = 16
"""Pixels a side of the thumbnails that confirm."""
LOOK_BITS = 64
TABLES, TABLE_BITS = 16, 24
"""Candidates share the bits of at least one of 16 tables, each 24 bits of the hash chosen once for all: of two hashes
that differ in 4 bits, 97 % are found; of 145 million unlike images, 9 a table share a random value."""
SHINGLE = 3
"""Characters of a shingle."""
BANDS, ROWS = 16, 4
"""Texts whose shingles agree to 80 % share one of 16 bands of 4 minima in 99.98 % of all cases, to 70 % in 98.8 %."""

_WAVES = 8
_COSINES = np.cos(np.pi * (2 * np.arange(SIDE) + 1) * np.arange(_WAVES)[:, None] / (2 * SIDE))  # [8, 16]
_STEEP = np.hypot(*np.mgrid[:_WAVES, :_WAVES])[..., None] ** 0.5  # [8, 8, 1]; photographs hold ever less of finer waves
_PATH = ["einsum_path", (0, 1), (0, 1)]
_DIRECTIONS = np.rint(100 * np.random.default_rng(22).standard_normal([LOOK_BITS, _WAVES * _WAVES * 3]))
_TABLES = [np.random.default_rng([22, table]).permutation(LOOK_BITS)[:TABLE_BITS] for table in range(TABLES)]
_MASKS = np.array([sum(1 << int(bit) for bit in bits) for bits in _TABLES], np.uint64)
_RNG = np.random.default_rng(2022)
_FACTORS = _RNG.integers(1, 1 << 62, BANDS * ROWS, dtype=np.uint64) * 2 + 1
_TERMS = _RNG.integers(0, 1 << 62, BANDS * ROWS, dtype=np.uint64)


def content_hash(content: bytes) -> int:
    """64 bits of a hash of bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def pixels_hash(image: np.ndarray) -> int:
    """64 bits of a hash of an image's decoded pixels uint8 [H, W, 3], and its size."""
    return content_hash(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())


def thumbnail(image: np.ndarray) -> bytes:
    """An image uint8 [H, W, 3] as 16 × 16 pixels, uint8. Plain means of areas would be less steady: they move by up to
    a pixel of the image where its sides are no multiples of 16."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).tobytes()


def look_hash(small: bytes) -> int:
    """A perceptual hash of a thumbnail, 64 bits: on which side of 64 planes its lowest 8 × 8 waves lie, of every
    colour and without their means (SimHash). Signs of single waves, as pHash takes, flip where a picture of few shapes
    has hardly any of a wave."""
    pixels = np.frombuffer(small, np.uint8).reshape(SIDE, SIDE, 3).astype(np.float64)
    waves = np.einsum("uh,hwc,vw->uvc", _COSINES, pixels, _COSINES, optimize=_PATH) * _STEEP  # [8, 8, 3]
    sides = np.round(_DIRECTIONS @ waves.ravel(), 1) > 0  # rounded: no hash hangs on the last bit
    return int.from_bytes(np.packbits(sides).tobytes(), "big")


def look_tables(hashes: np.ndarray) -> np.ndarray:
    """The value of every table for perceptual hashes uint64 [N] → uint64 [N, 16], no two tables with a value in
    common but by chance."""
    return _mixed((np.asarray(hashes, np.uint64)[:, None] & _MASKS) + _salt(TABLES))


def bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """In how many bits hashes uint64 differ, element by element."""
    return np.unpackbits((one ^ other)[..., None].view(np.uint8), axis=-1).sum(-1, dtype=np.int64)


def thumbnails_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far thumbnails uint8 [N, 768] are apart in the pixel and channel where they are furthest, 0 to 255, once the
    difference of their means is taken away: a brighter copy is a copy, a scene with one other shape is not. int [N]."""
    apart = (one.astype(np.int64) - other).reshape(len(one), SIDE * SIDE, 3)
    mean = np.rint(apart.mean(1, keepdims=True)).astype(np.int64)
    return np.abs(apart - mean).max((1, 2), initial=0) + np.abs(mean).max((1, 2), initial=0) // 4


def shingles(text: str) -> np.ndarray:
    """Hashes of a text's runs of three letters, once each, uint64 [N]: full width as half width, small letters, without
    marks and spaces. A shorter text is one shingle, one without letters has none."""
    letters = [ord(letter) for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum()]
    if not letters:
        return np.zeros([0], np.uint64)
    codes = np.array(letters + [0] * (SHINGLE - len(letters)), np.uint64)
    count = len(codes) - SHINGLE + 1
    packed = sum(codes[place:place + count] << np.uint64(21 * place) for place in range(SHINGLE))
    return np.unique(_mixed(packed))


def text_bands(text: str) -> np.ndarray:
    """The bands of a text's MinHash, uint64 [16]; [0] where it has no letters."""
    found = shingles(text)
    if not len(found):
        return np.zeros([0], np.uint64)
    minima = (found[:, None] * _FACTORS + _TERMS).min(0).reshape(BANDS, ROWS)
    bands = _salt(BANDS)
    for row in range(ROWS):
        bands = _mixed(bands ^ minima[:, row])
    return bands


def texts_alike(one: str, other: str) -> float:
    """The share of shingles that two texts have in common (Jaccard), 0 to 1."""
    first, second = shingles(one), shingles(other)
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def _salt(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits, mixed so that each bit hangs on all (the finish of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
