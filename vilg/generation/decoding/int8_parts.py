"""The parts of a compiled step about its products of int8 rows, and how those that follow one another become one.

A product gives sums in scales of its columns. What comes next is to multiply them with the rows' scales
(:class:`Finish`), perhaps a norm (:class:`Normalise`), and the rounding for the next product (:class:`Round`): three to
eight calls over memory that is in the nearest cache, each of which takes longer to start than to do. Where compiled
loops are to be had (:mod:`vilg.kernels.jit.int8_rows`) they are one.
"""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vilg.kernels.jit import int8_rows
from vilg.kernels.onednn import int8
from vilg.kernels.onednn.buffers import Buffer
from vilg.kernels.onednn.library import Bound
from vilg.kernels.onednn.precision import Step, gelu_step, sum_step

Call = Callable[[], None]
"""A part of a step with its memory."""


@dataclass(frozen=True)
class Rows:
    """Rounded rows [R, D] and their scales [R, 1], of which the first ``used`` are of any use; the others stay zero."""

    values: Buffer
    scales: Buffer
    used: int


@dataclass(frozen=True)
class Round:
    """Round ``source`` [R, …], of which nothing is below ``least`` where that is not 0, to ``rows``; ``scratch`` is
    float32 of their shape."""

    source: Buffer
    rows: Rows
    scratch: Buffer
    least: float

    def call(self, loops: bool) -> Call:
        """The part alone."""
        values, scales, used = self.rows.values, self.rows.scales, self.rows.used
        if loops and not self.least:
            return int8_rows.rounding(used, values.shape[1], self.source.address, values.address, scales.address)
        x = self.source.array.reshape(values.shape)  # [R, D] of what may be heads, [R, N, H]
        parts = (part[:used] for part in (x, self.scratch.array, values.array, scales.array))
        return functools.partial(int8.quantize_rows, *parts, self.least)


@dataclass(frozen=True)
class Finish:
    """sums · scales of the rows + bias, and one step ``after``, to ``target``."""

    product: int8.Int8Product
    sums: Buffer
    scales: Buffer
    target: Buffer
    bias: int
    after: tuple[Step, ...]

    def call(self) -> Bound:
        """The part alone."""
        return self.product.finish.at(self.sums.address, self.scales.address, self.target.address, self.bias)


@dataclass(frozen=True)
class Normalise:
    """Layer normalisation of x to ``target``; ``alone`` does it, ``weight`` and ``shift`` are addresses."""

    x: Buffer
    target: Buffer
    weight: int
    shift: int
    epsilon: float
    alone: Bound


Part = Bound | Call | Round | Finish | Normalise


def joined(parts: Sequence[Part], loops: bool) -> list[Bound | Call]:
    """The parts as calls; with ``loops``, what lies between two products of int8 as one."""
    calls: list[Bound | Call] = []
    left = list(parts)
    while left:
        together, done = _first(left) if loops else (None, 0)
        if together is None:
            part, done = left[0], 1
            together = (part.call(loops) if isinstance(part, Round) else part.call() if isinstance(part, Finish)
                        else part.alone if isinstance(part, Normalise) else part)
        calls.append(together)
        del left[:done]
    return calls


def _first(parts: list[Part]) -> tuple[Call | None, int]:
    """The first parts as one loop, and how many they are; None where they are none that a loop does."""
    match parts[:3]:
        case [Finish() as end, Round() as then, *_] if end.after == (gelu_step(),) and then.least:
            rows, width = then.rows, end.sums.shape[1]
            return int8_rows.gelu_rounding(rows.used, width, end.sums.address, end.bias, rows.values.address,
                                           rows.scales.address, then.least), 2
        case [Finish() as end, Normalise() as norm, Round() as then] if (
                end.after == (sum_step(),) and end.target is norm.x and then.source is norm.target is not norm.x
                and not then.least):
            rows, width = then.rows, end.sums.shape[1]
            return int8_rows.norm_rounding(
                rows.used, width, end.sums.address, end.bias, rows.values.address, rows.scales.address,
                norm.x.address, norm.weight, norm.shift, norm.epsilon), 3
    return None, 0
