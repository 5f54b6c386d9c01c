"""Sparse attention on a GPU by Paddle's FlashMask, which takes intervals of hidden queries instead of a mask.

For every key, FlashMask wants the rows (queries) that do not see it: one interval below the diagonal and one above it.
A pattern says whether it fits that form, and in which order of the slots (:meth:`Pattern.runs`): rows of the grid, and
dense attention, do as they are, columns once the grid is transposed. The convolutional neighbourhood does not, and
stays block-wise.
"""
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.nn.attention.dense import StreamContext
from vilg.nn.attention.patterns import Layout, Pattern, Role, Runs

_HALVES = (paddle.float16, paddle.bfloat16)


def usable(q: Tensor, pattern: Pattern, layout: Layout) -> bool:
    """Does Paddle compute this pattern by FlashMask here: half precision on a CUDA device that has it?"""
    return (q.dtype in _HALVES and q.place.is_gpu_place() and hasattr(F, "flashmask_attention")
            and pattern.runs(layout) is not None)


def attention(q: Tensor, k: Tensor, v: Tensor, context: StreamContext, pattern: Pattern, dropout: float) -> Tensor:
    """q, k, v [B, L, N, H] → [B, L, N, H] by FlashMask."""
    layout = context.layout
    runs = pattern.runs(layout)
    index = context.once(("flashmask", pattern), lambda: paddle.to_tensor(hidden_rows(
        runs, context.role, layout, context.length.numpy(), context.prefix.numpy())).unsqueeze(1))  # [B, 1, L, 4]
    if runs.order is None:
        return F.flashmask_attention(q, k, v, startend_row_indices=index, dropout=dropout, causal=False)
    there, back = context.once(("flashmask order", pattern),
                               lambda: [paddle.to_tensor(order) for order in slot_order(runs.order, layout)])
    q, k, v = (paddle.gather(x, there, axis=1) for x in (q, k, v))
    out = F.flashmask_attention(q, k, v, startend_row_indices=index, dropout=dropout, causal=False)
    return paddle.gather(out, back, axis=1)


def slot_order(order: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Slots of the stream with its image in ``order`` [n], and the way back: int64 [L] each."""
    there = np.concatenate([np.arange(layout.text), layout.text + order])
    return there, np.argsort(there)


def hidden_rows(runs: Runs, role: Role, layout: Layout, length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """Which queries do not see each key: int32 [B, L, 4].

    The last axis holds (start, end) below the diagonal, then (start, end) above it: key j is hidden from the queries
    start ≤ i < end. The image slots stand in the order of ``runs``.
    """
    length, prefix = (np.asarray(value, dtype="int64").reshape(-1, 1) for value in (length, prefix))  # [B, 1]
    m, end = layout.text, layout.length
    hidden = np.zeros((length.shape[0], end, 4), dtype="int32")
    _text_keys(hidden[:, :m], role, layout, length, prefix)
    image = hidden[:, m:]
    image[..., 0] = np.minimum(m + runs.last + 1, end)
    image[..., 1] = end
    # Hidden from text that does not see the image, or from padding; and from the image slots too far before it.
    image[..., 2] = length if role.text_sees_image else 0
    image[..., 3] = m + (np.arange(layout.image) if role.causal else np.maximum(runs.first, 0))
    return hidden


def _text_keys(hidden: np.ndarray, role: Role, layout: Layout, length: np.ndarray, prefix: np.ndarray) -> None:
    """Fill in the intervals [B, M, 4] of the text keys."""
    m, end = layout.text, layout.length
    k = np.arange(m)[None, :]
    source = role.image_sees_text(k, length, prefix)
    padding = k >= length
    # Source text is hidden from padding alone, target text also from the image, padding from everyone but itself.
    hidden[..., 0] = np.where(padding, k + 1, length)
    hidden[..., 1] = np.where(source, m, end)
    hidden[..., 3] = np.where(source, 0, k)
