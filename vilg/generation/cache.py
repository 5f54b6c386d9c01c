"""Key–value caches of the tokens being decoded, each shaped by what its layer's pattern can still see.

A cache of R rows offers ``write(step, k, v)``, ``view() -> keys, values`` [R, N, W, H] and ``held(step)``: which token
each of the W entries holds, -1 for none. Visibility is then a matter of :func:`vilg.nn.masks.image_rule` alone.
"""
from typing import Protocol

import numpy as np
import paddle
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.nn.masks import Layout, Pattern

# A dense cache grows by this many slots, so that early steps do not attend to a long empty buffer.
DENSE_GROWTH = 128


class SlotCache(Protocol):
    """What one layer remembers of the tokens decoded so far."""

    def write(self, step: int, k: Tensor, v: Tensor) -> None:
        """Keep k, v [R, 1, N, H] of token number ``step``. Raises ShapeError past the end or for another batch."""

    def view(self, step: int) -> tuple[Tensor, Tensor]:
        """Keys and values [R, N, W, H] that the query of token ``step`` may need, its own included."""

    def held(self, step: int) -> np.ndarray:
        """The token that each entry of :meth:`view` holds once ``step`` is written, -1 for none: int64 [W]."""

    def nbytes(self) -> int:
        """Bytes held."""


class _Buffers:
    """What the caches share: pairs of buffers [R, N, W, H] for keys and values, made by the first write."""

    def __init__(self, rows: int, steps: int, count: int, entries: int):
        self.rows, self.steps, self.count, self.entries = rows, steps, count, entries
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def nbytes(self) -> int:
        return sum(buffer.size * buffer.element_size() for buffer in self.keys + self.values)

    def _put(self, step: int, buffer: int, entry: int, k: Tensor, v: Tensor) -> None:
        if step >= self.steps:
            raise ShapeError(f"the cache holds {self.steps} tokens, but token number {step + 1} was written")
        rows, _, heads, head_width = k.shape
        if rows != self.rows:
            raise ShapeError(f"the cache was made for a batch of {self.rows}, but a batch of {rows} was written")
        if not self.keys:
            shape = [rows, heads, self.entries, head_width]
            self.keys = [paddle.zeros(shape, k.dtype) for _ in range(self.count)]
            self.values = [paddle.zeros(shape, v.dtype) for _ in range(self.count)]
        one = [rows, heads, 1, head_width]
        self.keys[buffer][:, :, entry:entry + 1] = k.reshape(one)
        self.values[buffer][:, :, entry:entry + 1] = v.reshape(one)


class RowCache(_Buffers):
    """A ring of columns + 1 tokens: from the one right above the query to the query itself."""

    def __init__(self, rows: int, layout: Layout):
        super().__init__(rows, layout.image, count=1, entries=layout.columns + 1)

    def write(self, step: int, k: Tensor, v: Tensor) -> None:
        self._put(step, 0, step % self.entries, k, v)

    def view(self, step: int) -> tuple[Tensor, Tensor]:
        return self.keys[0], self.values[0]

    def held(self, step: int) -> np.ndarray:
        entry = np.arange(self.entries)
        return np.maximum(step - (step - entry) % self.entries, -1)


class ColumnCache(_Buffers):
    """One buffer a column of the grid, so that a query reads its own column as it lies in memory."""

    def __init__(self, rows: int, layout: Layout):
        super().__init__(rows, layout.image, count=layout.columns, entries=layout.rows)

    def write(self, step: int, k: Tensor, v: Tensor) -> None:
        self._put(step, step % self.count, step // self.count, k, v)

    def view(self, step: int) -> tuple[Tensor, Tensor]:
        return self.keys[step % self.count], self.values[step % self.count]

    def held(self, step: int) -> np.ndarray:
        token = np.arange(self.entries) * self.count + step % self.count
        return np.where(token <= step, token, -1)


class ConvCache(_Buffers):
    """A band of the last rows that the window reaches, ring-wise by row and contiguous by column."""

    def __init__(self, rows: int, layout: Layout, window: int):
        self.reach, self.columns = window // 2, layout.columns
        self.band = min(self.reach + 1, layout.rows)
        super().__init__(rows, layout.image, count=1, entries=layout.columns * self.band)

    def write(self, step: int, k: Tensor, v: Tensor) -> None:
        row, column = divmod(step, self.columns)
        self._put(step, 0, column * self.band + row % self.band, k, v)

    def view(self, step: int) -> tuple[Tensor, Tensor]:
        near = self._near(step)
        return self.keys[0][:, :, near], self.values[0][:, :, near]

    def held(self, step: int) -> np.ndarray:
        near = self._near(step)
        column, slot = np.divmod(np.arange(near.start, near.stop), self.band)
        row = step // self.columns
        token = (row - (row - slot) % self.band) * self.columns + column  # the newest of its slot, if already decoded
        token = np.where(token > step, token - self.band * self.columns, token)
        return np.maximum(token, -1)

    def _near(self, step: int) -> slice:
        column = step % self.columns
        first, last = max(column - self.reach, 0), min(column + self.reach, self.columns - 1)
        return slice(first * self.band, (last + 1) * self.band)


class DenseCache(_Buffers):
    """Every token so far, in a buffer that grows by :data:`DENSE_GROWTH` slots."""

    def __init__(self, rows: int, steps: int):
        super().__init__(rows, steps, count=1, entries=min(DENSE_GROWTH, steps))

    def write(self, step: int, k: Tensor, v: Tensor) -> None:
        if self.entries <= step < self.steps:
            more = min(DENSE_GROWTH, self.steps - self.entries)
            self.keys, self.values = (
                [paddle.concat([old, paddle.zeros([*old.shape[:2], more, old.shape[3]], old.dtype)], axis=2)
                 for old in buffers] for buffers in (self.keys, self.values))
            self.entries += more
        self._put(step, 0, step, k, v)

    def view(self, step: int) -> tuple[Tensor, Tensor]:
        return self.keys[0], self.values[0]

    def held(self, step: int) -> np.ndarray:
        token = np.arange(self.entries)
        return np.where(token <= step, token, -1)


def slot_cache(pattern: Pattern, rows: int, layout: Layout, window: int) -> SlotCache:
    """The cache of a layer that draws image tokens with ``pattern``."""
    if pattern is Pattern.ROW:
        return RowCache(rows, layout)
    if pattern is Pattern.COLUMN:
        return ColumnCache(rows, layout)
    if pattern is Pattern.CONV:
        return ConvCache(rows, layout, window)
    return DenseCache(rows, layout.image)
