"""Loads the compiled loops and runs them on the OpenMP team that Paddle's and oneDNN's operators run on.

A second team of threads would fight with the first for the cores, so numba's own parallel loops are not used.
"""
import array
import ctypes
import functools
import importlib.util
import struct
from collections.abc import Callable
from types import ModuleType

from vilg.kernels.onednn.library import Unavailable
from vilg.machine import process


@functools.lru_cache(maxsize=1)
def kernels() -> ModuleType:
    """The compiled kernels; raises :class:`Unavailable` without numba.

    The first time on a machine this takes some seconds, later 0.8 (numba's import).
    """
    if importlib.util.find_spec("numba") is None:
        raise Unavailable("numba is not installed (the jit extra)")
    from vilg.kernels.jit import kernels as compiled

    return compiled


@functools.lru_cache(maxsize=1)
def _parallel() -> Callable[[int, int, int, int], None]:
    runtime = process.openmp()
    if runtime is None or not hasattr(runtime, "GOMP_parallel"):
        raise Unavailable("this Paddle wheel has no OpenMP runtime that could run them")
    start = runtime.GOMP_parallel
    start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


def run(kernel: int, *numbers: int) -> None:
    """Let every thread of the team run the kernel at an address on the same row of ``numbers``.

    Nothing is shared between two calls, so that threads of Python need no lock. Raises :class:`Unavailable` where
    Paddle comes without a usable OpenMP runtime.
    """
    row = array.array("q", (0, process.threads(), *numbers))  # made in a quarter of the time of ctypes' own
    _parallel()(kernel, row.buffer_info()[0], 0, 0)


_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Prepared:
    """A kernel tied to its row of ``numbers``, which may be changed between calls: a call costs a microsecond, and not
    that of making the row. For one thread of Python at a time. ``alone``: on the thread that calls it, as waking the
    others takes longer than what there is to do."""

    __slots__ = ("_begin", "_row", "numbers")

    FIRST = 2
    """Where the kernel's own numbers begin."""

    def __init__(self, kernel: int, *numbers: int, alone: bool = False):
        self.numbers = array.array("q", (0, 1 if alone else process.threads(), *numbers))
        self._row = self.numbers.buffer_info()[0]
        parallel = None if alone else _parallel()
        self._begin = _FUNCTION(kernel) if alone else lambda row: parallel(kernel, row, 0, 0)

    def __call__(self) -> None:
        self.numbers[0] = 0  # portions taken
        self._begin(self._row)


def bits(value: float) -> int:
    """A float64 as the integer with the same bits, which is how it travels among ``numbers``."""
    return struct.unpack("q", struct.pack("d", value))[0]
