"""Weights on disk in int8: a matrix is rounded by scales along one axis, and rounded again it is the same to the bit.

``name`` is stored as int8 and ``name.scale`` as float32 beside it, [1, out] for the map of a weight [in, out] and
[rows, 1] for a table.
"""
import numpy as np

from vilg.errors import CheckpointError

SCALE = ".scale"
LARGEST = 127
_SMALLEST = np.float32(1e-30)  # a row of zeros has a scale as well


def rounded(matrix: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """matrix float32 [A, B] → int8 [A, B] and float32 scales, one for each index of ``axis``: [A, 1] or [1, B].

    The largest value is 127 scales. Scales have 16 significant bits, so that all multiples of them are exact.
    """
    other = 1 - axis
    largest = np.maximum(matrix.max(axis=other, keepdims=True), -matrix.min(axis=other, keepdims=True))
    scales = np.maximum(largest, _SMALLEST) / np.float32(LARGEST)
    scales = ((scales.view("uint32") + np.uint32(0xFF)) & ~np.uint32(0xFF)).view("float32")
    return np.rint(matrix / scales).astype("int8"), scales


def store(weights: dict[str, np.ndarray], axes: dict[str, int]) -> dict[str, np.ndarray]:
    """``weights`` with those named in ``axes`` as int8 and scales along that axis."""
    stored = dict(weights)
    for name, axis in axes.items():
        stored[name], stored[name + SCALE] = rounded(np.asarray(weights[name], "float32"), axis)
    return stored


def is_int8(stored: dict[str, np.ndarray]) -> bool:
    """Was anything of this stored as int8?"""
    return any(array.dtype == np.int8 for array in stored.values())


def restore(stored: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The float32 matrices of what :func:`store` gave, without the scales. Raises CheckpointError that names the first
    scales that are missing or do not fit."""
    matrices = [name for name, array in stored.items() if array.dtype == np.int8]
    weights = {name: array for name, array in stored.items() if name.removesuffix(SCALE) not in matrices}
    for name in matrices:
        values, scales = stored[name], stored.get(name + SCALE)
        fitting = values.ndim == 2 and scales is not None and scales.dtype == np.float32 and scales.shape in (
            (values.shape[0], 1), (1, values.shape[1]))
        if not fitting or not (scales > 0).all():
            found = "there are none" if scales is None else f"they are {scales.dtype} {list(scales.shape)}"
            raise CheckpointError(f"{source}: the scales of {name} {list(values.shape)} do not fit it ({found}, and "
                                  "positive float32 a row or a column are wanted); quantize the model again")
        weights[name] = values.astype("float32") * scales
    return weights
