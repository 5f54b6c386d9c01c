"""Sparse attention on a GPU by Paddle's FlashMask, which takes intervals of hidden queries instead of a mask.

For every key, FlashMask wants the rows (queries) that do not see it: one interval below the diagonal and one above it.
Rows of the grid, and dense attention, fit that form as they are; columns do once the grid is transposed. The
convolutional neighbourhood does not, and stays block-wise.
"""
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.nn.attention.dense import StreamContext
from vilg.nn.attention.patterns import Layout, Pattern, Role

_FITTING = (Pattern.DENSE, Pattern.ROW, Pattern.COLUMN)
_HALVES = (paddle.float16, paddle.bfloat16)


def usable(q: Tensor, pattern: Pattern) -> bool:
    """Does Paddle compute this pattern by FlashMask here: half precision on a CUDA device that has it?"""
    return (pattern in _FITTING and q.dtype in _HALVES and q.place.is_gpu_place()
            and hasattr(F, "flashmask_attention"))


def attention(q: Tensor, k: Tensor, v: Tensor, context: StreamContext, pattern: Pattern, dropout: float) -> Tensor:
    """q, k, v [B, L, N, H] → [B, L, N, H] by FlashMask."""
    layout = context.layout
    index = context.once(("flashmask", pattern), lambda: paddle.to_tensor(hidden_rows(
        pattern, context.role, layout, context.length.numpy(), context.prefix.numpy())).unsqueeze(1))
    if pattern is not Pattern.COLUMN:
        return F.flashmask_attention(q, k, v, startend_row_indices=index, dropout=dropout, causal=False)
    there, back = context.once("flashmask order", lambda: [paddle.to_tensor(order) for order in column_order(layout)])
    q, k, v = (paddle.gather(x, there, axis=1) for x in (q, k, v))
    out = F.flashmask_attention(q, k, v, startend_row_indices=index, dropout=dropout, causal=False)
    return paddle.gather(out, back, axis=1)


def column_order(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Slots of the stream with the grid read column by column, and the way back: int64 [L] each."""
    raster = layout.text + np.arange(layout.image).reshape(layout.rows, layout.columns)
    there = np.concatenate([np.arange(layout.text), raster.T.reshape(-1)])
    return there, np.argsort(there)


def hidden_rows(pattern: Pattern, role: Role, layout: Layout, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """Which queries do not see each key: int32 [B, L, 4].

    The last axis holds (start, end) below the diagonal, then (start, end) above it: key j is hidden from the queries
    start ≤ i < end. For columns the image slots are in :func:`column_order`.
    """
    length, prefix = (np.asarray(value, dtype="int64").reshape(-1, 1) for value in (length, prefix))
    m, end = layout.text, layout.length
    hidden = np.zeros((length.shape[0], end, 4), dtype="int32")
    _text_keys(hidden[:, :m], role, layout, length, prefix)
    p = np.arange(layout.image)[None, :]
    if pattern is Pattern.ROW:
        first, last = p - layout.columns, p + layout.columns
    elif pattern is Pattern.COLUMN:
        first = p // layout.rows * layout.rows
        last = first + layout.rows - 1
    else:
        first, last = np.zeros_like(p), np.full_like(p, layout.image - 1)
    image = hidden[:, m:]
    image[..., 0] = np.minimum(m + last + 1, end)
    image[..., 1] = end
    if role is Role.TARGET:  # neither the text nor an earlier slot sees it
        image[..., 3] = m + p
    else:  # hidden from padding and from the image slots too far before it
        image[..., 2] = length
        image[..., 3] = m + np.maximum(first, 0)
    return hidden


def _text_keys(hidden: np.ndarray, role: Role, layout: Layout, length: np.ndarray, prefix: np.ndarray) -> None:
    """Fill in the intervals [B, M, 4] of the text keys."""
    m, end = layout.text, layout.length
    k = np.arange(m)[None, :]
    source = k < (length if role is Role.TARGET else np.minimum(length, prefix))
    padding = k >= length
    # Source text is hidden from padding alone, target text also from the image, padding from everyone but itself.
    hidden[..., 0] = np.where(padding, k + 1, length)
    hidden[..., 1] = np.where(source, m, end)
    hidden[..., 3] = np.where(source, 0, k)
