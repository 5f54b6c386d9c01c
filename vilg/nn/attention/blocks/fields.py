"""Where the operands of block-wise attention lie in memory: slots, groups of slots, and what meets what."""
import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from paddle import Tensor

from vilg.kernels.onednn.strided import View
from vilg.nn.attention.blocks.layout import BlockLayout, Piece, block_mask
from vilg.nn.attention.blocks.scores import spread

_BYTES = 4
_HEADS_AXIS = 1


@dataclass(frozen=True, slots=True)
class Field:
    """Where the values of every slot lie: [batch, heads, slots, width] at ``address`` with ``steps`` (in elements)."""

    address: int
    batch: int
    heads: int
    steps: tuple[int, int, int]
    width: int

    def after(self, slots: int) -> "Field":
        """The field from a later slot on."""
        return Field(self.address + _BYTES * slots * self.steps[2], self.batch, self.heads, self.steps, self.width)

    def part(self, start: int, width: int) -> "Field":
        """A piece of every slot's values."""
        return Field(self.address + _BYTES * start, self.batch, self.heads, self.steps, width)

    def rows(self, count: int) -> View:
        """The next ``count`` slots as the rows of matrices [B, N, count, width]."""
        return View(self.address, (self.batch, self.heads, count, self.width), (*self.steps, 1))

    def groups(self, blocks: BlockLayout, first: int, count: int, span: int = 1) -> View:
        """For each of ``count`` groups of the image (it starts here), ``span`` groups from it on.

        The matrices are [B, N, count, span·C, width]; with a span above 1 they overlap.
        """
        batch, head, slot = self.steps
        return View(self.address + _BYTES * first * blocks.group_step * slot,
                    (self.batch, self.heads, count, span * blocks.size, self.width),
                    (batch, head, blocks.group_step * slot, blocks.slot_step * slot, 1))


def fields(packed: Tensor, first: int, batch: int) -> tuple[Field, ...]:
    """Samples ``first`` … ``first + batch - 1`` of [B, L, P, N, H] (or [B, L, N, H]) as P fields."""
    *_, heads, head = packed.shape
    parts = packed.shape[2] if packed.ndim == 5 else 1
    slots, slot = packed.shape[1], parts * heads * head
    start = packed.data_ptr() + _BYTES * first * slots * slot
    steps = (slots * slot, head, slot)
    return tuple(Field(start + _BYTES * part * heads * head, batch, heads, steps, head) for part in range(parts))


def scores_field(scores: Tensor) -> Field:
    """A contiguous [B, N, queries, keys] as a field."""
    batch, heads, queries, keys = scores.shape
    return Field(scores.data_ptr(), batch, heads, (heads * queries * keys, queries * keys, keys), keys)


def head_by_head(field: Field, slots: int) -> tuple[Field, np.ndarray]:
    """A copy of the first ``slots`` slots in which those of a head lie together, and the array that holds it.

    In the packed tensor the slots are a multiple of 4 KB apart, so that a product which reads them again and again
    keeps only a few in the cache.
    """
    view = field.rows(slots)
    extent = 1 + sum((size - 1) * step for size, step in zip(view.dims, view.strides))
    flat = np.ctypeslib.as_array((ctypes.c_float * extent).from_address(view.address))
    copy = np.array(as_strided(flat, view.dims, [_BYTES * step for step in view.strides]), order="C")
    steps = field.heads * slots * field.width, slots * field.width, field.width
    return Field(copy.ctypes.data, field.batch, field.heads, steps, field.width), copy


def array(x: Tensor) -> np.ndarray:
    """The memory of a contiguous float32 tensor as a numpy array that may be written to."""
    return np.ctypeslib.as_array((ctypes.c_float * x.size).from_address(x.data_ptr())).reshape(x.shape)


class Product:
    """One run of groups and the groups that they meet, as operands of :func:`multiply`.

    Where a group meets several, these lie one after another and overlap with those of the next group, so that the heads
    become the library's batch axis and the groups are looped over.
    """

    def __init__(self, blocks: BlockLayout, piece: Piece):
        self.blocks, self.piece = blocks, piece
        self.count = piece.last - piece.first
        self.start = blocks.layout.text + (piece.start - piece.first - blocks.shifts[0]) * blocks.size
        self.axis = _HEADS_AXIS if piece.keys > 1 else None
        self.mask = spread(block_mask(blocks, piece), blocks.slot_step * blocks.keys)

    def queries(self, image: Field) -> View:
        return image.groups(self.blocks, self.piece.first, self.count)

    def keys(self, image: Field) -> View:
        return image.groups(self.blocks, self.piece.start, self.count, self.piece.keys)

    def scores(self, image: Field) -> View:
        width = self.piece.keys * self.blocks.size
        return image.part(self.start, width).groups(self.blocks, self.piece.first, self.count)

    def fill_beyond(self, scores: Tensor, value: float) -> None:
        """Write what no product writes: the scores with the blocks beyond the edge of the grid."""
        blocks, text, end = self.blocks, self.blocks.layout.text, self.start + self.piece.keys * self.blocks.size
        if self.start == text and end == blocks.keys:
            return
        slots = slice(self.piece.first * blocks.size, self.piece.last * blocks.size)
        view = array(scores)[:, :, slots]
        view[..., text:self.start] = value
        view[..., end:] = value
