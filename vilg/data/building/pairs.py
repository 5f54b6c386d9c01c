"""Candidates among rows that share a table's value, and what confirms them: numpy on arrow's columns, for the engine to
call on groups."""
import numpy as np

from vilg.data.building.config import NearImagesConfig
from vilg.data.filtering import likeness

WINDOW = 256
"""Of a large group each row is compared with this many first rows and this many before it: a value that millions share
(a white picture) would else cost their square."""
MOST = 32
"""Candidates of a row in one group, the nearest: enough to find one that is confirmed."""
PLACES = 256
"""Captions of one image that can be told apart; a caption's number is its sample's order times this and its place."""


def candidates(numbers: np.ndarray, values: np.ndarray, bits: int | None) -> np.ndarray:
    """Pairs [M, 2] of numbers, the smaller first, of one group: rows ``numbers`` int64 [N] with ``values`` uint64 [N]
    that are at most ``bits`` apart, or, for None, that are not the same."""
    order = np.argsort(numbers, kind="stable")
    numbers, values = numbers[order], values[order]
    found = []
    for row in range(1, len(numbers)):
        before = np.arange(row) if row <= 2 * WINDOW else np.r_[:WINDOW, row - WINDOW:row]
        if bits is None:
            near = before[values[before] != values[row]][:MOST]
        else:
            apart = likeness.bits_apart(values[before], values[row])
            near = before[np.argsort(apart, kind="stable")[:MOST]]
            near = near[likeness.bits_apart(values[near], values[row]) <= bits]
        found.append(np.stack([numbers[near], np.full(len(near), numbers[row])], 1))
    return np.concatenate(found) if found else np.zeros([0, 2], np.int64)


def grouped_candidates(numbers, values, bits: int | None):
    """:func:`candidates` of every row of two daft Series of lists → a Series of lists of {a, b}."""
    import daft
    import pyarrow

    numbers, values = _list_array(numbers), _list_array(values)
    offsets, flat = numbers.offsets.to_numpy(), numbers.values.to_numpy()
    ends, hashes = values.offsets.to_numpy(), values.values.to_numpy()
    parts = [candidates(flat[offsets[row]:offsets[row + 1]], hashes[ends[row]:ends[row + 1]], bits)
             for row in range(len(numbers))]
    pairs = np.concatenate(parts) if parts else np.zeros([0, 2], np.int64)
    lengths = np.cumsum([0, *map(len, parts)])
    struct = pyarrow.StructArray.from_arrays([pyarrow.array(pairs[:, 0]), pyarrow.array(pairs[:, 1])], ["a", "b"])
    return daft.Series.from_arrow(pyarrow.LargeListArray.from_arrays(pyarrow.array(lengths, pyarrow.int64()), struct))


def images_near(one: list[bytes], other: list[bytes], config: NearImagesConfig) -> np.ndarray:
    """Which pairs of thumbnails, or of float16 vectors, are near: bool [N]."""
    if not one:
        return np.zeros([0], bool)
    if config.confirm == "pixels":
        first, second = (np.frombuffer(b"".join(side), np.uint8).reshape(len(one), -1) for side in (one, other))
        return likeness.thumbnails_apart(first, second) <= config.apart
    first, second = (np.frombuffer(b"".join(side), np.float16).reshape(len(one), -1).astype(np.float32)
                     for side in (one, other))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) >= config.cosine * norms


def texts_near(one: list[str], other: list[str], alike: float) -> np.ndarray:
    """Which pairs of texts are near: bool [N]."""
    return np.array([likeness.texts_alike(*pair) >= alike for pair in zip(one, other)], bool)


def _list_array(series):
    """A Series of lists as one arrow array that starts at its first value."""
    import pyarrow

    array = series.to_arrow()
    array = array.combine_chunks() if isinstance(array, pyarrow.ChunkedArray) else array
    return pyarrow.concat_arrays([array]) if array.offset else array
