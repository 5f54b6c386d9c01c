"""What stands between two products of int8 in a decoding step, as one loop over fixed memory: the sums of the first
take their scales and bias, go through GELU or into the residual and its norm, and are rounded for the second.

Few rows are done by the thread at hand.
"""
from collections.abc import Callable

from vilg.kernels.jit import team

_FOR_ALL = 1 << 14
"""Values from which on all threads take part."""


def rounding(rows: int, width: int, x: int, values: int, scales: int) -> Callable[[], None]:
    """Round rows of x [rows, width] float32 to int8 ``values`` and a scale each; all are addresses."""
    return _at("round_rows", rows, width, x, values, scales)


def gelu_rounding(rows: int, width: int, sums: int, bias: int, values: int, scales: int, least: float
                  ) -> Callable[[], None]:
    """Round GELU(sums · scales + bias), none of which is below ``least``, to ``values`` and ``scales`` again; ``sums``
    are overwritten."""
    return _at("gelu_round", rows, width, sums, bias, values, scales, team.bits(least))


def norm_rounding(rows: int, width: int, sums: int, bias: int, values: int, scales: int, x: int, weight: int,
                  shift: int, epsilon: float) -> Callable[[], None]:
    """Add sums · scales + bias to x, and round its layer normalisation to ``values`` and ``scales`` again; ``sums`` are
    overwritten."""
    return _at("add_norm_round", rows, width, sums, bias, values, scales, x, weight, shift, team.bits(epsilon))


def _at(kernel: str, rows: int, width: int, *numbers: int) -> Callable[[], None]:
    """A kernel tied to its memory. Its row of numbers is used again: not for two threads at a time."""
    few = rows == 1 or rows * width < _FOR_ALL
    return team.Prepared(getattr(team.kernels(), kernel).address, rows, width, *numbers, alone=few)
