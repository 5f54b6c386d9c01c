"""Where a layer keeps the keys and values of tokens being decoded: the shapes of cache that patterns choose from.

These are pure arithmetic of positions: a cache is ``count`` buffers of ``entries`` each, token number ``step`` goes to
``place(step)``, its query reads ``near(step)``, and ``held(step)`` says which token each entry read holds. What is then
seen is a matter of :meth:`vilg.nn.attention.patterns.Pattern.sees` alone. :mod:`vilg.nn.attention.cached` owns the
buffers.
"""
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# A straight cache is read in whole multiples of so many entries, and a lane of so many.
STRAIGHT_GRAIN, LANE_GRAIN = 32, 8


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
class Ring:
    """The last ``entries`` tokens, the newest in place of the oldest; for patterns that see a full ring whole."""

    steps: int
    entries: int
    count = 1

    def place(self, step: int) -> tuple[int, int]:
        return 0, step % self.entries

    def near(self, step: int) -> slice:
        return slice(0, self.entries)

    def held(self, step: int) -> np.ndarray:
        return step - (step - np.arange(self.entries)) % self.entries

    def phase(self, step: int) -> int:
        return min(step, self.entries - 1)  # a full ring is seen whole


@dataclass(frozen=True)
class Lanes:
    """One buffer a column of the grid, so that a query reads its own column as it lies in memory."""

    rows: int
    columns: int

    @property
    def steps(self) -> int:
        return self.rows * self.columns

    @property
    def count(self) -> int:
        return self.columns

    @property
    def entries(self) -> int:
        return self.rows

    def place(self, step: int) -> tuple[int, int]:
        row, column = divmod(step, self.columns)
        return column, row

    def near(self, step: int) -> slice:
        return slice(0, min(self.rows, (step // self.columns // LANE_GRAIN + 1) * LANE_GRAIN))

    def held(self, step: int) -> np.ndarray:
        token = np.arange(self.near(step).stop) * self.columns + step % self.columns
        return np.where(token <= step, token, -1)

    def phase(self, step: int) -> int:
        return step // self.columns


@dataclass(frozen=True)
class Band:
    """The last ``reach`` + 1 rows of the grid, ring-wise by row and contiguous by column; a query reads the columns at
    most ``reach`` away."""

    rows: int
    columns: int
    reach: int
    count = 1

    @property
    def steps(self) -> int:
        return self.rows * self.columns

    @property
    def band(self) -> int:
        """Rows kept."""
        return min(self.reach + 1, self.rows)

    @property
    def entries(self) -> int:
        return self.columns * self.band

    def place(self, step: int) -> tuple[int, int]:
        row, column = divmod(step, self.columns)
        return 0, column * self.band + row % self.band

    def near(self, step: int) -> slice:
        column = step % self.columns
        first, last = max(column - self.reach, 0), min(column + self.reach, self.columns - 1)
        return slice(first * self.band, (last + 1) * self.band)

    def held(self, step: int) -> np.ndarray:
        near = self.near(step)
        column, slot = np.divmod(np.arange(near.start, near.stop), self.band)
        row = step // self.columns
        token = (row - (row - slot) % self.band) * self.columns + column  # the newest of its entry, if decoded
        return np.where(token > step, token - self.band * self.columns, token)

    def phase(self, step: int) -> int:
        return step


@dataclass(frozen=True)
class Straight:
    """Every token so far, in order."""

    steps: int
    count = 1

    @property
    def entries(self) -> int:
        return self.steps

    def place(self, step: int) -> tuple[int, int]:
        return 0, step

    def near(self, step: int) -> slice:
        return slice(0, min(self.steps, (step // STRAIGHT_GRAIN + 1) * STRAIGHT_GRAIN))

    def held(self, step: int) -> np.ndarray:
        token = np.arange(self.near(step).stop)
        return np.where(token <= step, token, -1)

    def phase(self, step: int) -> int:
        return step
