"""Memory that the library's kernels read and write as they like it: aligned, and zero at first."""
import math

import numpy as np

from vilg.kernels.onednn.library import BF16, F32, S8

_ALIGNMENT = 64
_BYTES = {F32: 4, BF16: 2, S8: 1}


class Buffer:
    """Memory for ``shape`` of a data type of the library, zero at first."""

    def __init__(self, shape: tuple[int, ...], dtype: int = F32):
        self.shape, self.dtype = shape, dtype
        size = math.prod(shape) * _BYTES[dtype]
        memory = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._bytes = memory[start:start + size]
        self.address = self._bytes.ctypes.data

    @property
    def array(self) -> np.ndarray:
        """The values, where they lie (float32 and int8; numpy has no bf16)."""
        return self._bytes.view(np.int8 if self.dtype == S8 else np.float32).reshape(self.shape)


def zeros(*shape: int) -> np.ndarray:
    """Float32 zeros."""
    return Buffer(shape).array
