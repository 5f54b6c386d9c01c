"""Attention on a GPU by Paddle's FlashMask, which takes intervals of hidden queries instead of a mask.

For every key, FlashMask wants the rows (queries) that do not see it: one interval below the diagonal and one above it.
A pattern says whether it fits that form, and in which order of the slots (:meth:`Pattern.runs`): rows of the grid, and
dense attention, do as they are, columns once the grid is transposed. The convolutional neighbourhood does not, and
stays block-wise. The intervals are computed where the lengths are: reading them back would make the host wait.
"""
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.nn.attention.dense import StreamContext
from vilg.nn.attention.patterns import Layout, Pattern, Role, Runs

_HALVES = (paddle.float16, paddle.bfloat16)
# Flash attention's kernels want tensor cores of Ampere or later, and heads of these sizes.
OLDEST_CAPABILITY = (8, 0)
WIDEST_HEAD, HEAD_GRAIN = 256, 8


def usable(q: Tensor, pattern: Pattern, layout: Layout, dropout: float = 0.0) -> bool:
    """Does Paddle compute this pattern by FlashMask here: half precision on a CUDA device that has it?

    ``q`` is [..., H]. Version 3 of the kernels (``FLAGS_flash_attn_version``) knows no dropout.
    """
    if q.dtype not in _HALVES or not q.place.is_gpu_place() or not hasattr(F, "flashmask_attention"):
        return False
    return (pattern.runs(layout) is not None and fits(q.shape[-1], dropout, kernel_version())
            and paddle.device.cuda.get_device_capability() >= OLDEST_CAPABILITY)


def fits(head: int, dropout: float, version: int) -> bool:
    """Whether FlashMask of this version takes heads of so many elements with this dropout."""
    return head <= WIDEST_HEAD and head % HEAD_GRAIN == 0 and (version == 2 or not dropout)


def kernel_version() -> int:
    """Which version of flash attention's kernels Paddle is set to use."""
    name = "FLAGS_flash_attn_version"
    try:
        return int(paddle.get_flags([name])[name])
    except ValueError:  # a Paddle that was built with one version alone
        return 2


def attention(q: Tensor, k: Tensor, v: Tensor, context: StreamContext, pattern: Pattern, dropout: float) -> Tensor:
    """q, k, v [B, L, N, H] → [B, L, N, H] by FlashMask."""
    layout = context.layout
    runs = pattern.runs(layout)
    index = context.once(("flashmask", pattern), lambda: hidden_rows(
        runs, context.role, layout, context.length, context.prefix).unsqueeze(1))  # [B, 1, L, 4]
    if not runs.across:
        return F.flashmask_attention(q, k, v, startend_row_indices=index, dropout=dropout, causal=False)
    q, k, v = (turned(x, layout.text, layout.rows, layout.columns) for x in (q, k, v))
    out = F.flashmask_attention(q, k, v, startend_row_indices=index, dropout=dropout, causal=False)
    return turned(out, layout.text, layout.columns, layout.rows)


def turned(x: Tensor, text: int, rows: int, columns: int) -> Tensor:
    """A stream [B, L, …] whose image lies row by row → column by column, the text as it is.

    By a transpose, whose gradient is another; that of a gather adds every element atomically.
    """
    image = x[:, text:]
    rest = list(range(3, x.ndim + 1))
    image = image.reshape([x.shape[0], rows, columns, *x.shape[2:]])  # [B, rows, columns, …]
    image = image.transpose([0, 2, 1, *rest])  # [B, columns, rows, …]
    image = image.reshape([x.shape[0], rows * columns, *x.shape[2:]])  # [B, n, …]
    return paddle.concat([x[:, :text], image], axis=1) if text else image


def hidden_rows(runs: Runs, role: Role, layout: Layout, length: Tensor, prefix: Tensor) -> Tensor:
    """Which queries do not see each key: int32 [B, L, 4], for ``length`` and ``prefix`` [B].

    The last axis holds (start, end) below the diagonal, then (start, end) above it: key j is hidden from the queries
    start ≤ i < end. The image slots stand in the order of ``runs``.
    """
    length, prefix = (value.astype("int32").unsqueeze(1) for value in (length, prefix))  # [B, 1]
    m, n, end = layout.text, layout.image, layout.length
    first, last = (paddle.to_tensor(value.astype("int32")).unsqueeze(0) for value in (runs.first, runs.last))  # [1, n]
    before = paddle.arange(n, dtype="int32").unsqueeze(0) if role.causal else paddle.clip(first, min=0)
    # Hidden from text that does not see the image, or from padding; and from the image slots too far before it.
    image = [paddle.clip(m + last + 1, max=end), end, length if role.text_sees_image else 0, m + before]
    columns = [_spread(value, length.shape[0], n) for value in image]
    if m:
        text = [_spread(value, length.shape[0], m) for value in _text_keys(role, layout, length, prefix)]
        columns = [paddle.concat(pair, axis=1) for pair in zip(text, columns)]
    return paddle.stack(columns, axis=-1)


def _text_keys(role: Role, layout: Layout, length: Tensor, prefix: Tensor) -> list[Tensor | int]:
    """The four edges of the text keys' intervals, each to be spread over [B, M]."""
    m, end = layout.text, layout.length
    k = paddle.arange(m, dtype="int32").unsqueeze(0)  # [1, M]
    source = role.image_sees_text(k, length, prefix)
    own, zero = k.expand([length.shape[0], m]), paddle.zeros([length.shape[0], m], "int32")
    # Source text is hidden from padding alone, target text also from the image, padding from everyone but itself.
    return [paddle.where(k >= length, own + 1, length.expand([length.shape[0], m])),
            paddle.where(source, zero + m, zero + end), 0, paddle.where(source, zero, own)]


def _spread(value: Tensor | int, batch: int, slots: int) -> Tensor:
    return paddle.full([batch, slots], value, "int32") if isinstance(value, int) else value.expand([batch, slots])
