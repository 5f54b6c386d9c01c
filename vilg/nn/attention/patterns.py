"""Who sees whom: every attention pattern once, as a pure function of positions.

The dense reference mask, the block-wise layout and the cached decode step all derive from the rules here (paper 1,
"Sparse attention", and UniLM's source–target mask).

A stream holds M text slots and n = rows · columns image slots, always laid out text first: [text ‖ image]. The order in
memory says nothing about who comes first; the *role* does:

- ``target`` (text→image): the text is the source, the image is drawn left to right. Image slot p holds the embedding of
  token p-1 (slot 0 a begin-of-image embedding) and its hidden vector predicts token p, so slots form the token grid.
- ``source`` (image→text): the whole image is the source, and so is a prefix of the text (a question, possibly empty);
  the rest of the text is the target. Image slot p holds token p.

Source tokens see all source tokens; a target token sees the whole source and the targets up to itself; the source never
sees the target. The pattern narrows image→image attention alone.
"""
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Pattern(str, Enum):
    """What a layer's image slots see of the image."""

    DENSE = "dense"
    ROW = "row"
    COLUMN = "column"
    CONV = "conv"

    @classmethod
    def _missing_(cls, value: object) -> "Pattern":
        known = ", ".join(item.value for item in cls)
        raise ValueError(f"unknown attention pattern {value!r}; the patterns are {known}")


class Role(str, Enum):
    """What the image is in a stream: drawn (``target``) or looked at (``source``)."""

    TARGET = "target"
    SOURCE = "source"


CONV_WINDOW = 11


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


def layer_patterns(layers: int, sparse: bool) -> list[Pattern]:
    """The pattern of every layer, counted from 1: the last convolutional, i mod 4 = 2 column, else row (paper 1)."""
    if not sparse:
        return [Pattern.DENSE] * layers
    return [Pattern.CONV if i == layers else Pattern.COLUMN if i % 4 == 2 else Pattern.ROW
            for i in range(1, layers + 1)]


def image_rule(pattern: Pattern, role: Role, q: np.ndarray, k: np.ndarray, columns: int,
               window: int = CONV_WINDOW) -> np.ndarray:
    """May image slot ``q`` see image slot ``k``? Raster indices of any broadcastable shapes → booleans."""
    causal = k <= q
    if pattern is Pattern.DENSE:
        near = np.ones(np.broadcast(q, k).shape, dtype=bool)
    elif pattern is Pattern.ROW:
        near = np.abs(q - k) <= columns
    elif pattern is Pattern.COLUMN:
        near = (q - k) % columns == 0
    else:
        reach = window // 2
        near = (np.abs(q // columns - k // columns) <= reach) & (np.abs(q % columns - k % columns) <= reach)
    return near & causal if role is Role.TARGET else near


def text_rule(role: Role, q: np.ndarray, k: np.ndarray, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """May text slot ``q`` see text slot ``k``, with ``length`` real tokens of which the first ``prefix`` are source?"""
    if role is Role.TARGET:  # the text is all source
        return (k < length) & (q < length)
    return (k < length) & (q < length) & ((k < prefix) | ((q >= prefix) & (k <= q)))


def image_sees_text_rule(role: Role, k: np.ndarray, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """May an image slot see text slot ``k``? As a target all real text,
    as a source only the text that is source too."""
    return k < (length if role is Role.TARGET else np.minimum(length, prefix))


def text_mask(layout: Layout, role: Role, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """What the text slots see: [B, M, L] booleans, for ``length`` and ``prefix`` [B].

    A padding slot sees only itself, so that no row of a softmax is empty.
    """
    length, prefix = (np.asarray(value, dtype="int64").reshape(-1, 1, 1) for value in (length, prefix))
    m = layout.text
    q, k = np.arange(m)[:, None], np.arange(m)[None, :]
    mask = np.zeros((length.shape[0], m, layout.length), dtype=bool)
    mask[:, :, :m] = text_rule(role, q, k, length, prefix) | ((q == k) & (q >= length))
    if role is Role.SOURCE:  # every real text slot, question or target, sees the whole image
        mask[:, :, m:] = q < length
    return mask


def dense_mask(layout: Layout, role: Role, pattern: Pattern, length: np.ndarray, prefix: np.ndarray,
               window: int = CONV_WINDOW) -> np.ndarray:
    """The whole mask, for reference and for golden tables: [B, L, L] booleans, True where query (row)
    sees key (column).

    ``length`` [B] counts each sample's real text tokens, ``prefix`` [B] those of them that are source (used when the
    image is the source). A padding slot sees only itself; nobody else sees it.
    """
    length, prefix = (np.asarray(value, dtype="int64").reshape(-1, 1, 1) for value in (length, prefix))
    m, n = layout.text, layout.image
    image = np.arange(n)
    mask = np.zeros((length.shape[0], layout.length, layout.length), dtype=bool)
    mask[:, :m] = text_mask(layout, role, length, prefix)
    mask[:, m:, :m] = image_sees_text_rule(role, np.arange(m), length, prefix)
    mask[:, m:, m:] = image_rule(pattern, role, image[:, None], image[None, :], layout.columns, window)
    return mask
