"""Who sees whom: every attention pattern and every role once, as an object.

The dense reference mask, the blocks of training, the caches of decoding and FlashMask's intervals all ask a pattern,
and are tested against its :meth:`Pattern.sees` (paper 1, arXiv:2112.15283, "Sparse attention", and UniLM's
source–target mask, arXiv:1905.03197).

A stream holds M text slots and n = rows · columns image slots, always laid out text first: [text ‖ image]. The order in
memory says nothing about who comes first; the *role* does:

- :data:`TARGET` (text→image): the text is the source, the image is drawn left to right. Image slot p holds the
  embedding of token p-1 (slot 0 a begin-of-image embedding) and its hidden vector predicts token p, so slots form the
  token grid.
- :data:`SOURCE` (image→text): the whole image is the source, and so is a prefix of the text (a question, possibly
  empty); the rest of the text is the target. Image slot p holds token p.
- :data:`MASKED` (text→image by mask-predict, Huang et al., ACM MM 2021): the text is the source, and the image, of
  which some tokens are masked, sees itself both ways. Image slot p holds token p, or one learned vector where that is
  masked, and its hidden vector predicts token p.

Source tokens see all source tokens; a target token sees the whole source and the targets up to itself; the source never
sees the target. The pattern narrows image→image attention alone.
"""
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import paddle

from vilg.nn.attention.slots import Band, Lanes, Ring, Slots, Straight


@dataclass(frozen=True)
class Layout:
    """The fixed shape of a stream: M text slots, then an image grid of (rows, columns)."""

    text: int
    rows: int
    columns: int

    @property
    def image(self) -> int:
        """Number of image slots n."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """Stream length L = M + n."""
        return self.text + self.image

    def with_a_row_more(self) -> "Layout":
        """The same stream with one row of image slots more: room for what comes after the last token."""
        return replace(self, rows=self.rows + 1)


@dataclass(frozen=True)
class Role:
    """What the image is in a stream.

    ``image_is_target``: the image is predicted and all text is its source; otherwise the image is the source, and so
    are the first ``prefix`` of a text's ``length`` tokens. ``causal``: an image slot sees none that come after it.
    """

    name: str
    image_is_target: bool
    causal: bool

    def sees(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """May image slot ``query`` see image slot ``key``, whatever the pattern? Broadcast raster indices → bool."""
        return key <= query if self.causal else np.ones(np.broadcast(query, key).shape, dtype=bool)

    def source_text(self, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        """How many of a text's first tokens are source."""
        if self.image_is_target:
            return length
        return paddle.minimum(length, prefix) if isinstance(length, paddle.Tensor) else np.minimum(length, prefix)

    def text_sees_text(self, query: np.ndarray, key: np.ndarray, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        """May text slot ``query`` see text slot ``key``? Padding slots see nothing here, and are seen by nobody."""
        source = self.source_text(length, prefix)
        return (key < length) & (query < length) & ((key < source) | ((query >= source) & (key <= query)))

    def image_sees_text(self, key: np.ndarray, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        """May an image slot see text slot ``key``? It sees the text that is source."""
        return key < self.source_text(length, prefix)

    @property
    def text_sees_image(self) -> bool:
        """Does every real text slot, of source or target, see the whole image?"""
        return not self.image_is_target

    def text_keys(self, layout: Layout) -> int:
        """How many of the stream's first slots a text query is compared with: M, or L where the text sees the image."""
        return layout.length if self.text_sees_image else layout.text


TARGET = Role("target", image_is_target=True, causal=True)
SOURCE = Role("source", image_is_target=False, causal=False)
MASKED = Role("masked", image_is_target=True, causal=False)


@dataclass(frozen=True)
class Groups:
    """How image slots fall into groups for block-wise attention: ``count`` groups of ``size`` slots.

    ``across``: group g holds the slots g, g + count, g + 2·count … (a column of the grid); otherwise it is a run of
    raster slots. A group's queries meet the keys of groups up to ``reach`` before and after it (runs alone have such).
    """

    count: int
    size: int
    across: bool = False
    reach: int = 0


@dataclass(frozen=True)
class Runs:
    """Image slots in an order in which the queries that see a key, were nothing causal, follow one another.

    The key at place p is seen from the places ``first[p]`` … ``last[p]``, which may lie beyond the ends. Places follow
    the raster, or, ``across``, run down one column of the grid after another. Slots that see each other stand in raster
    order.
    """

    first: np.ndarray
    last: np.ndarray
    across: bool = False


class Pattern(ABC):
    """What a layer's image slots see of the image.

    A pattern says in :meth:`near` which slots are neighbours. The rest makes it cheap, and by default costs what dense
    attention costs. Patterns are values: equal where their settings are, so that a mask can be kept under its pattern.
    """

    name: ClassVar[str]
    """What figures and plans call it."""
    sparse: ClassVar[bool] = True
    """Is there anything for block-wise attention to leave out?"""

    @abstractmethod
    def near(self, query: np.ndarray, key: np.ndarray, layout: Layout) -> np.ndarray:
        """Are image slots ``query`` and ``key`` neighbours? Broadcast raster indices → booleans; symmetric."""

    def sees(self, query: np.ndarray, key: np.ndarray, layout: Layout, role: Role) -> np.ndarray:
        """May image slot ``query`` see image slot ``key``? Raster indices of any broadcastable shapes → booleans."""
        return self.near(query, key, layout) & role.sees(query, key)

    def groups(self, layout: Layout) -> Groups:
        """The groups that block-wise attention computes; no slot sees another beyond their reach."""
        return Groups(1, layout.image)

    def slots(self, layout: Layout) -> Slots:
        """The cache that decoding keeps of a picture drawn in raster order."""
        return Straight(layout.image)

    def runs(self, layout: Layout) -> Runs | None:
        """The pattern as FlashMask takes it; None where it does not fit."""
        return None


@dataclass(frozen=True)
class Dense(Pattern):
    """Every slot sees every other."""

    name: ClassVar[str] = "dense"
    sparse: ClassVar[bool] = False

    def near(self, query: np.ndarray, key: np.ndarray, layout: Layout) -> np.ndarray:
        return np.ones(np.broadcast(query, key).shape, dtype=bool)

    def runs(self, layout: Layout) -> Runs:
        return Runs(np.zeros(layout.image, dtype=int), np.full(layout.image, layout.image - 1))


@dataclass(frozen=True)
class Row(Pattern):
    """A slot sees those at most a row away in raster order: from the one right above it to the one right below."""

    name: ClassVar[str] = "row"

    def near(self, query: np.ndarray, key: np.ndarray, layout: Layout) -> np.ndarray:
        return np.abs(query - key) <= layout.columns

    def groups(self, layout: Layout) -> Groups:
        return Groups(layout.rows, layout.columns, reach=1)

    def slots(self, layout: Layout) -> Slots:
        return Ring(layout.image, layout.columns + 1)

    def runs(self, layout: Layout) -> Runs:
        place = np.arange(layout.image)
        return Runs(place - layout.columns, place + layout.columns)


@dataclass(frozen=True)
class Column(Pattern):
    """A slot sees its own column of the grid."""

    name: ClassVar[str] = "column"

    def near(self, query: np.ndarray, key: np.ndarray, layout: Layout) -> np.ndarray:
        return (query - key) % layout.columns == 0

    def groups(self, layout: Layout) -> Groups:
        return Groups(layout.columns, layout.rows, across=True)

    def slots(self, layout: Layout) -> Slots:
        return Lanes(layout.rows, layout.columns)

    def runs(self, layout: Layout) -> Runs:
        first = np.repeat(np.arange(layout.columns) * layout.rows, layout.rows)
        return Runs(first, first + layout.rows - 1, across=True)


@dataclass(frozen=True)
class Convolution(Pattern):
    """A slot sees the ``window``×``window`` neighbourhood around it. Raises ValueError for an even window."""

    name: ClassVar[str] = "conv"
    window: int = 11

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"conv_window, the side of a convolution's neighbourhood, must be odd and positive, not "
                             f"{self.window}")

    def near(self, query: np.ndarray, key: np.ndarray, layout: Layout) -> np.ndarray:
        reach, columns = self.window // 2, layout.columns
        return ((np.abs(query // columns - key // columns) <= reach)
                & (np.abs(query % columns - key % columns) <= reach))

    def groups(self, layout: Layout) -> Groups:
        return Groups(layout.rows, layout.columns, reach=self.window // 2)

    def slots(self, layout: Layout) -> Slots:
        return Band(layout.rows, layout.columns, self.window // 2)


PATTERNS = {pattern.name: pattern for pattern in (Dense, Row, Column, Convolution)}
"""The patterns by what figures call them."""


def layer_patterns(layers: int, last: Pattern = Convolution()) -> list[Pattern]:
    """The patterns of a sparse stack, layers counted from 1: i mod 4 = 2 column, else row; and the last's (paper 1)."""
    return [last if i == layers else Column() if i % 4 == 2 else Row() for i in range(1, layers + 1)]


def text_mask(layout: Layout, role: Role, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """What the text slots see: [B, M, L] booleans, for ``length`` and ``prefix`` [B].

    A padding slot sees only itself, so that no row of a softmax is empty.
    """
    length, prefix = (np.asarray(value, dtype="int64").reshape(-1, 1, 1) for value in (length, prefix))  # [B, 1, 1]
    m = layout.text
    q, k = np.arange(m)[:, None], np.arange(m)[None, :]
    mask = np.zeros((length.shape[0], m, layout.length), dtype=bool)
    mask[:, :, :m] = role.text_sees_text(q, k, length, prefix) | ((q == k) & (q >= length))
    if role.text_sees_image:
        mask[:, :, m:] = q < length
    return mask


def dense_mask(layout: Layout, role: Role, pattern: Pattern, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """The whole mask, for reference and for golden tables: [B, L, L] booleans, True where query (row)
    sees key (column).

    ``length`` [B] counts each sample's real text tokens, ``prefix`` [B] those of them that are source (used when the
    image is the source). A padding slot sees only itself; nobody else sees it.
    """
    length, prefix = (np.asarray(value, dtype="int64").reshape(-1, 1, 1) for value in (length, prefix))  # [B, 1, 1]
    m, n = layout.text, layout.image
    image = np.arange(n)
    mask = np.zeros((length.shape[0], layout.length, layout.length), dtype=bool)
    mask[:, :m] = text_mask(layout, role, length, prefix)
    mask[:, m:, :m] = role.image_sees_text(np.arange(m), length, prefix)
    mask[:, m:, m:] = pattern.sees(image[:, None], image[None, :], layout, role)
    return mask
