"""Block-wise sparse attention: the image attends to the image only where the pattern allows it, and never n×n.

Every image query meets the text and the few groups of slots that its pattern names, in one softmax; the text queries,
few as they are, are computed densely. Time and memory grow with n·(M + 2N) for rows, n·(M + N) for columns. The result
is that of :func:`vilg.nn.attention.dense.dense_attention`, to rounding.
"""
import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.nn import functional
from vilg.nn.attention import flashmask
from vilg.nn.attention.blocks import fused as block_fused
from vilg.nn.attention.blocks.layout import BlockLayout, block_layout, image_scores_mask, text_scores_mask
from vilg.nn.attention.dense import StreamContext, check_stream
from vilg.nn.attention.patterns import Pattern


def stream_attention(qkv: Tensor, contexts: list[StreamContext], pattern: Pattern, dropout: float = 0.0) -> Tensor:
    """Attention of streams laid one after another along the batch: packed qkv [ΣB, L, 3, N, H] → [ΣB, L, N, H].

    ``contexts`` describes the streams in turn. On a CPU the packed tensor is read and its gradient written in place,
    without a copy. Raises ShapeError when the streams do not fit their contexts.
    """
    if block_fused.usable(qkv):
        return block_fused.stream_attention(qkv, contexts, pattern, dropout)
    q, k, v = (qkv[:, :, part] for part in range(3))
    sizes = [context.batch for context in contexts]
    parts = zip(*(paddle.split(x, sizes, axis=0) for x in (q, k, v))) if len(contexts) > 1 else [(q, k, v)]
    done = [block_sparse_attention(*part, context, pattern, dropout) for context, part in zip(contexts, parts)]
    return done[0] if len(done) == 1 else paddle.concat(done, axis=0)


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, context: StreamContext, pattern: Pattern,
                           dropout: float = 0.0) -> Tensor:
    """Attention within the blocks of ``pattern``: q, k, v [B, L, N, H] → [B, L, N, H], of any floating type.

    ``dropout`` is the probability applied to the attention weights (0 when evaluating). Raises ShapeError when the
    stream does not fit the context.
    """
    check_stream(q, context)
    if flashmask.usable(q, pattern, context.layout, dropout):
        return flashmask.attention(q, k, v, context, pattern, dropout)
    blocks = block_layout(pattern, context.role, context.layout)
    m = context.layout.text
    q = q * (1 / math.sqrt(q.shape[-1]))
    image = _image_queries(q, k, v, context, blocks, dropout)
    if not m:
        return image
    mask = context.once(("text", q.dtype, q.shape[2]), lambda: _over_heads(text_scores_mask(blocks, context), q))
    keys = mask.shape[-1]
    queries, text_k, text_v = (x.transpose([0, 2, 1, 3]) for x in (q[:, :m], k[:, :keys], v[:, :keys]))  # [B, N, ., H]
    weights = _weights(functional.matmul(queries, text_k, transpose_y=True) + mask, dropout)
    text = functional.matmul(weights, text_v).transpose([0, 2, 1, 3])  # [B, M, N, H]
    return paddle.concat([text, image], axis=1)


def _image_queries(q: Tensor, k: Tensor, v: Tensor, context: StreamContext, blocks: BlockLayout,
                   dropout: float) -> Tensor:
    """Scaled q, and k, v [B, L, N, H] → what the image slots attend to, [B, n, N, H]."""
    batch, _, heads, head = q.shape
    m, n = blocks.layout.text, blocks.layout.image

    def build() -> Tensor:
        order = blocks.index().reshape(-1)  # [n], group by group
        return _over_heads(image_scores_mask(blocks, context)[:, order], q)

    mask = context.once(("blocks", blocks, q.dtype, heads), build)  # [B, N, n, M + S·C], slots group by group
    queries = _grouped(q[:, m:], blocks)  # [B, N, G, C, H]
    keys, values = (_windows(_grouped(x[:, m:], blocks), blocks) for x in (k, v))  # [B, N, G, S·C, H]
    scores = functional.matmul(queries, keys, transpose_y=True).reshape([batch, heads, n, -1])  # [B, N, n, S·C]
    if m:
        text_k, text_v = (x[:, :m].transpose([0, 2, 1, 3]) for x in (k, v))  # [B, N, M, H]
        queries = queries.reshape([batch, heads, n, head])  # [B, N, n, H]
        to_text = functional.matmul(queries, text_k, transpose_y=True)
        scores = paddle.concat([to_text, scores], axis=-1)
    weights = _weights(scores + mask, dropout)
    within = weights[..., m:].reshape([batch, heads, blocks.groups, blocks.size, -1])  # [B, N, G, C, S·C]
    out = functional.matmul(within, values).reshape([batch, heads, n, head])  # [B, N, n, H]
    if m:
        out = out + functional.matmul(weights[..., :m], text_v)
    return _raster(out, blocks)


def _weights(scores: Tensor, dropout: float) -> Tensor:
    weights = functional.softmax(scores)
    return F.dropout(weights, dropout) if dropout else weights


def _over_heads(mask: np.ndarray, q: Tensor) -> Tensor:
    """[B, queries, keys] → [B, N, queries, keys] of q's type: adding a broadcast mask is several times slower."""
    mask = paddle.to_tensor(mask).astype(q.dtype).unsqueeze(1)
    return paddle.expand(mask, [-1, q.shape[2], -1, -1]).contiguous()


def _grouped(x: Tensor, blocks: BlockLayout) -> Tensor:
    """Image slots in raster order [B, n, N, H] → [B, N, G, C, H]."""
    batch, _, heads, head = x.shape
    if blocks.across:
        x = x.reshape([batch, blocks.size, blocks.groups, heads, head])  # [B, C, G, N, H]
        return x.transpose([0, 3, 2, 1, 4])
    x = x.reshape([batch, blocks.groups, blocks.size, heads, head])  # [B, G, C, N, H]
    return x.transpose([0, 3, 1, 2, 4])


def _raster(x: Tensor, blocks: BlockLayout) -> Tensor:
    """The way back: [B, N, n, H], group by group → [B, n, N, H] in raster order."""
    batch, heads, n, head = x.shape
    x = x.reshape([batch, heads, blocks.groups, blocks.size, head])  # [B, N, G, C, H]
    x = x.transpose([0, 3, 2, 1, 4] if blocks.across else [0, 2, 3, 1, 4])  # [B, C, G, N, H] or [B, G, C, N, H]
    return x.reshape([batch, n, heads, head])  # [B, n, N, H]


def _windows(x: Tensor, blocks: BlockLayout) -> Tensor:
    """Groups [B, N, G, C, H] → for each group those at its shifts, one after another: [B, N, G, S·C, H]."""
    if len(blocks.shifts) == 1:
        return x
    batch, heads, groups, size, head = x.shape
    shifted = []
    for shift in blocks.shifts:
        beyond = paddle.zeros([batch, heads, abs(shift), size, head], x.dtype)
        if shift < 0:
            shifted.append(paddle.concat([beyond, x[:, :, :shift]], axis=2))
        else:
            shifted.append(paddle.concat([x[:, :, shift:], beyond], axis=2) if shift else x)
    return paddle.concat(shifted, axis=3)
