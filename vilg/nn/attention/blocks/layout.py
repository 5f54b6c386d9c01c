"""How the image slots of a sparse layer fall into blocks, so that attention is computed only where the pattern allows.

The slots are cut into the *groups* of equal size that the pattern names (the rows of the grid, or its columns), and a
group's queries meet the keys of a few groups at fixed *shifts* from it: its own row and the previous one, its own
column, or the rows within reach of the convolutional window. Inside such a block the pattern's ``sees`` decides, asked
block by block: nothing here is n×n.
"""
from dataclasses import dataclass, replace

import numpy as np

from vilg.nn.attention.dense import StreamContext, additive
from vilg.nn.attention.patterns import Layout, Pattern, Role, text_mask


@dataclass(frozen=True)
class Piece:
    """Groups ``first`` … ``last - 1``: the first meets ``keys`` groups from ``start`` on, each next one those after."""

    first: int
    last: int
    start: int
    keys: int


@dataclass(frozen=True)
class BlockLayout:
    """Groups of image slots and the shifts at which they meet (paper 1, "Sparse attention").

    ``across`` means that a group is a column of the grid (slots one row apart), otherwise it is a run of raster slots.
    ``shifts`` are consecutive and contain 0; only groups that are runs of raster slots have others.
    """

    pattern: Pattern
    role: Role
    layout: Layout
    groups: int
    size: int
    across: bool
    shifts: tuple[int, ...]

    @property
    def group_step(self) -> int:
        """Raster distance between the first slots of neighbouring groups."""
        return 1 if self.across else self.size

    @property
    def slot_step(self) -> int:
        """Raster distance between neighbouring slots of a group."""
        return self.groups if self.across else 1

    @property
    def keys(self) -> int:
        """Keys that every image query is compared with: the text and one group a shift."""
        return self.layout.text + len(self.shifts) * self.size

    def index(self) -> np.ndarray:
        """Raster index of every slot of every group: [G, C]."""
        return np.arange(self.groups)[:, None] * self.group_step + np.arange(self.size)[None, :] * self.slot_step

    def meeting(self, shift: int) -> tuple[int, int]:
        """First and last-plus-one group that has another group ``shift`` further."""
        return max(0, -shift), self.groups - max(0, shift)

    def pieces(self) -> list["Piece"]:
        """Runs of groups that meet equally many groups; those near the edge of the grid meet fewer."""
        runs: list[Piece] = []
        for group in range(self.groups):
            start = max(0, group + self.shifts[0])
            keys = min(self.groups, group + self.shifts[-1] + 1) - start
            if runs and (keys, group - start) == (runs[-1].keys, runs[-1].first - runs[-1].start):
                runs[-1] = replace(runs[-1], last=group + 1)
            else:
                runs.append(Piece(group, group + 1, start, keys))
        return runs

    def visible(self) -> np.ndarray:
        """May slot c of group g see slot k of group g + shifts[s]? Booleans [G, C, S, C], False beyond the grid."""
        return self.seen(0, self.groups, range(len(self.shifts)))

    def seen(self, start: int, stop: int, positions: range) -> np.ndarray:
        """:meth:`visible` of groups ``start`` … ``stop - 1`` and the shifts at ``positions`` alone."""
        index = self.index()
        seen = np.zeros((stop - start, self.size, len(positions), self.size), dtype=bool)
        for place, position in enumerate(positions):
            shift = self.shifts[position]
            first, last = (min(max(bound, start), stop) for bound in self.meeting(shift))
            q, k = index[first:last, :, None], index[first + shift:last + shift, None, :]
            seen[first - start:last - start, :, place] = self.pattern.sees(q, k, self.layout, self.role)
        return seen


def block_layout(pattern: Pattern, role: Role, layout: Layout) -> BlockLayout:
    """The blocks of one pattern. Dense is a single group that meets itself."""
    groups = pattern.groups(layout)
    reach = min(groups.reach, groups.count - 1)
    shifts = tuple(range(-reach, 1 if role.causal else reach + 1))
    return BlockLayout(pattern, role, layout, groups.count, groups.size, groups.across, shifts)


def image_text_mask(blocks: BlockLayout, context: StreamContext) -> np.ndarray:
    """What to add to the scores of any image query with the text: float32 [B, 1, M]."""
    length, prefix = (value.numpy().reshape(-1, 1) for value in (context.length, context.prefix))  # [B, 1]
    seen = blocks.role.image_sees_text(np.arange(blocks.layout.text)[None, :], length, prefix)  # [B, M]
    return additive(np.broadcast_to(seen, (context.batch, blocks.layout.text)))[:, None]


def block_mask(blocks: BlockLayout, piece: Piece) -> np.ndarray:
    """What to add to the scores of every group of a piece with the groups that it meets: float32 [1, C, keys·C]."""
    first = piece.start - piece.first - blocks.shifts[0]
    seen = blocks.seen(piece.first, piece.first + 1, range(first, first + piece.keys))
    return additive(seen.reshape(1, blocks.size, -1))  # [1, C, keys·C]


def image_scores_mask(blocks: BlockLayout, context: StreamContext) -> np.ndarray:
    """What to add to the scores of the image queries: float32 [B, n, M + S·C], slots in raster order.

    The keys are the text, then one group a shift.
    """
    m, n = blocks.layout.text, blocks.layout.image
    mask = np.empty((context.batch, n, blocks.keys), dtype="float32")
    mask[:, :, :m] = image_text_mask(blocks, context)
    mask[:, blocks.index().reshape(-1), m:] = additive(blocks.visible()).reshape(n, -1)  # [n, S·C]
    return mask


def text_scores_mask(blocks: BlockLayout, context: StreamContext) -> np.ndarray:
    """What to add to the scores of the text queries: float32 [B, M, Y]; the keys are the first Y slots of the stream.

    Y is M when the image is the target (the text does not see it), and the whole stream otherwise.
    """
    layout, keys = blocks.layout, blocks.role.text_keys(blocks.layout)
    visible = text_mask(layout, blocks.role, *context.on_host())[:, :, :keys]
    return additive(np.ascontiguousarray(visible))
