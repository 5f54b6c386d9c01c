"""Where a layer keeps the keys and values of tokens being decoded: a shape of cache for every attention pattern.

These are pure arithmetic of positions: a cache is ``count`` buffers of ``entries`` each, token number ``step`` goes to
``place(step)``, its query reads ``near(step)``, and ``held(step)`` says which token each entry read holds. What is then
seen is a matter of :func:`vilg.nn.attention.patterns.image_rule` alone. :mod:`vilg.nn.attention.cached` owns the
buffers.
"""
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vilg.nn.attention.patterns import Layout, Pattern

# A dense cache is read in whole multiples of this many slots, and a column of rows.
DENSE_GRAIN, COLUMN_GRAIN = 32, 8


class Slots(Protocol):
    """One layer's cache of ``steps`` tokens."""

    steps: int
    count: int
    entries: int

    def place(self, step: int) -> tuple[int, int]:
        """Buffer and entry that token number ``step`` is written to."""

    def near(self, step: int) -> slice:
        """Entries of that buffer that its query reads, its own included."""

    def held(self, step: int) -> np.ndarray:
        """The token that each entry of :meth:`near` holds once ``step`` is written, -1 or less for none: int64 [W]."""

    def phase(self, step: int) -> int:
        """A number that two steps share only if their queries see the same entries of what they read."""


@dataclass(frozen=True)
class RowSlots:
    """A ring of columns + 1 tokens: from the one right above the query to the query itself."""

    layout: Layout
    count = 1

    @property
    def steps(self) -> int:
        return self.layout.image

    @property
    def entries(self) -> int:
        return self.layout.columns + 1

    def place(self, step: int) -> tuple[int, int]:
        return 0, step % self.entries

    def near(self, step: int) -> slice:
        return slice(0, self.entries)

    def held(self, step: int) -> np.ndarray:
        return step - (step - np.arange(self.entries)) % self.entries

    def phase(self, step: int) -> int:
        return min(step, self.entries - 1)  # a full ring is seen whole


@dataclass(frozen=True)
class ColumnSlots:
    """One buffer a column of the grid, so that a query reads its own column as it lies in memory."""

    layout: Layout

    @property
    def steps(self) -> int:
        return self.layout.image

    @property
    def count(self) -> int:
        return self.layout.columns

    @property
    def entries(self) -> int:
        return self.layout.rows

    def place(self, step: int) -> tuple[int, int]:
        row, column = divmod(step, self.count)
        return column, row

    def near(self, step: int) -> slice:
        return slice(0, min(self.entries, (step // self.count // COLUMN_GRAIN + 1) * COLUMN_GRAIN))

    def held(self, step: int) -> np.ndarray:
        token = np.arange(self.near(step).stop) * self.count + step % self.count
        return np.where(token <= step, token, -1)

    def phase(self, step: int) -> int:
        return step // self.count


@dataclass(frozen=True)
class ConvSlots:
    """A band of the last rows that the window reaches, ring-wise by row and contiguous by column."""

    layout: Layout
    window: int
    count = 1

    @property
    def steps(self) -> int:
        return self.layout.image

    @property
    def band(self) -> int:
        """Rows kept."""
        return min(self.window // 2 + 1, self.layout.rows)

    @property
    def entries(self) -> int:
        return self.layout.columns * self.band

    def place(self, step: int) -> tuple[int, int]:
        row, column = divmod(step, self.layout.columns)
        return 0, column * self.band + row % self.band

    def near(self, step: int) -> slice:
        column, reach = step % self.layout.columns, self.window // 2
        first, last = max(column - reach, 0), min(column + reach, self.layout.columns - 1)
        return slice(first * self.band, (last + 1) * self.band)

    def held(self, step: int) -> np.ndarray:
        near = self.near(step)
        column, slot = np.divmod(np.arange(near.start, near.stop), self.band)
        row = step // self.layout.columns
        token = (row - (row - slot) % self.band) * self.layout.columns + column  # the newest of its entry, if decoded
        return np.where(token > step, token - self.band * self.layout.columns, token)

    def phase(self, step: int) -> int:
        return step


@dataclass(frozen=True)
class DenseSlots:
    """Every token so far, in order."""

    steps: int
    count = 1

    @property
    def entries(self) -> int:
        return self.steps

    def place(self, step: int) -> tuple[int, int]:
        return 0, step

    def near(self, step: int) -> slice:
        return slice(0, min(self.steps, (step // DENSE_GRAIN + 1) * DENSE_GRAIN))

    def held(self, step: int) -> np.ndarray:
        token = np.arange(self.near(step).stop)
        return np.where(token <= step, token, -1)

    def phase(self, step: int) -> int:
        return step


def image_slots(pattern: Pattern, layout: Layout, window: int) -> Slots:
    """The cache of a layer that draws image tokens with ``pattern``."""
    if pattern is Pattern.ROW:
        return RowSlots(layout)
    if pattern is Pattern.COLUMN:
        return ColumnSlots(layout)
    if pattern is Pattern.CONV:
        return ConvSlots(layout, window)
    return DenseSlots(layout.image)
