"""Weights on disk in int8: a matrix is rounded by scales along one axis, and rounded again it is the same to the bit.

``name`` is stored as int8 and ``name.scale`` as float32 beside it, [1, out] for the map of a weight [in, out] and
[rows, 1] for a table.
"""
from collections.abc import Iterator, Mapping

import numpy as np

from vilg.errors import CheckpointError
from vilg.weights.stored import Stored

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


class Restored(Mapping[str, np.ndarray]):
    """The float32 weights of what :func:`store` gave, without the scales; a matrix is widened when it is asked for.
    Raises CheckpointError that names the first scales that are missing or do not fit."""

    def __init__(self, stored: Mapping[str, np.ndarray], source: str):
        self._stored, self.source = stored, source
        self._matrices = {name for name in stored if dtype_of(stored, name) == np.int8}
        for name in self._matrices:
            self._check(name)

    @property
    def matrices(self) -> set[str]:
        """Names of those that are stored as int8."""
        return self._matrices

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._stored[name]
        if name in self._matrices:
            return array.astype("float32") * self._stored[name + SCALE]
        return array.astype("float32") if array.dtype in (np.float16, np.float64) else array

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._stored
                if not (name.endswith(SCALE) and name.removesuffix(SCALE) in self._matrices))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def integers(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """int8 values and scales of a matrix."""
        return self._stored[name], self._stored[name + SCALE]

    def found(self) -> dict[str, tuple[list[int], np.dtype]]:
        """Shape and data type of every weight, widened, without reading it."""
        return {name: (list(shape_of(self._stored, name)), np.dtype("float32") if name in self._matrices
                       else dtype_of(self._stored, name)) for name in self}

    def _check(self, name: str) -> None:
        shape, scales = shape_of(self._stored, name), self._stored.get(name + SCALE)
        fitting = len(shape) == 2 and scales is not None and scales.dtype == np.float32 and scales.shape in (
            (shape[0], 1), (1, shape[1]))
        if not fitting or not (scales > 0).all():
            found = "there are none" if scales is None else f"they are {scales.dtype} {list(scales.shape)}"
            raise CheckpointError(f"{self.source}: the scales of {name} {list(shape)} do not fit it ({found}, and "
                                  "positive float32 a row or a column are wanted); quantize the model again")


def is_int8(stored: Mapping[str, np.ndarray]) -> bool:
    """Was anything of this stored as int8?"""
    return any(dtype_of(stored, name) == np.int8 for name in stored)


def dtype_of(stored: Mapping[str, np.ndarray], name: str) -> np.dtype:
    """The data type of one of them, which is not read where that can be had otherwise."""
    return stored.dtype(name) if isinstance(stored, Stored) else stored[name].dtype


def shape_of(stored: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    """Its shape, likewise."""
    return stored.shape(name) if isinstance(stored, Stored) else stored[name].shape
