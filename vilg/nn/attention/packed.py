"""Full attention of packed queries, keys and values: who is hidden is a matter of keys alone.

On a CPU without copies: strided products where heads lie in the packed tensor. The scores [B, N, R, L] become the
attention weights in place, and the backward writes the gradients of queries, keys and values into one packed tensor.
"""
import math
from functools import cached_property

import numpy as np
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn.autograd import contiguous, memory, new, refuse_double_backward, wants_gradient
from vilg.kernels.onednn.strided import multiply
from vilg.nn import functional
from vilg.nn.attention.blocks.fields import fields, scores_field
from vilg.nn.attention.blocks.fused import dropped, softmax_gradient_in_place, softmax_in_place, usable
from vilg.nn.attention.blocks.scores import masked_product


class HiddenKeys:
    """What is added to the scores of every key, [B, L], the same for all heads and queries of a sample."""

    def __init__(self, added: Tensor):
        self.added = contiguous(added.detach())

    @cached_property
    def rows(self) -> np.ndarray | None:
        """As masks [B, 1, L] of products on a CPU; None where nothing is added."""
        batch, length = self.added.shape
        values = memory(self.added).reshape(batch, 1, length)
        return values if values.any() else None

    def to(self, scores: Tensor) -> Tensor:
        """Scores [B, N, R, L] with what is added."""
        batch, length = self.added.shape
        # Expanded over heads and queries: adding a broadcast mask is several times slower on a CPU.
        return scores + self.added.reshape([batch, 1, 1, length]).expand(scores.shape).contiguous()


def packed_attention(qkv: Tensor, rows: int, hidden: HiddenKeys | None = None, dropout: float = 0.0) -> Tensor:
    """What the first ``rows`` queries R of packed qkv [B, L, 3, N, H] see: [B, R, N, H]."""
    # A single row is a product of vectors, which the library has no strides for.
    if rows < 2 or not usable(qkv):
        return _plain(qkv, rows, hidden, dropout)
    if wants_gradient(qkv):
        return _Packed.apply(qkv, rows, hidden, dropout)
    return _forward(contiguous(qkv), rows, hidden, dropout)[0]


def _plain(qkv: Tensor, rows: int, hidden: HiddenKeys | None, dropout: float) -> Tensor:
    q = qkv[:, :rows, 0].transpose([0, 2, 1, 3]) * (1 / math.sqrt(qkv.shape[-1]))  # [B, N, R, H]
    k, v = (qkv[:, :, part].transpose([0, 2, 1, 3]) for part in (1, 2))  # [B, N, L, H]
    scores = functional.matmul(q, k, transpose_y=True)  # [B, N, R, L]
    weights = functional.softmax(scores if hidden is None else hidden.to(scores))
    weights = F.dropout(weights, dropout) if dropout else weights
    return functional.matmul(weights, v).transpose([0, 2, 1, 3])


def _forward(qkv: Tensor, rows: int, hidden: HiddenKeys | None, dropout: float
             ) -> tuple[Tensor, Tensor, Tensor | None]:
    """What queries see [B, R, N, H], the weights [B, N, R, L], and what dropout multiplied these with."""
    batch, length, _, heads, head = qkv.shape
    (q, k, v), weights, out = fields(qkv, 0, batch), new([batch, heads, rows, length]), new([batch, rows, heads, head])
    products = q.rows(rows), k.rows(length).transposed, scores_field(weights).rows(rows), 1 / math.sqrt(head)
    mask = None if hidden is None else hidden.rows
    if mask is None:
        multiply(*products)
    else:
        masked_product(*products, mask)
    softmax_in_place(weights)
    used, factors = dropped(weights, dropout)
    target, = fields(out, 0, batch)
    multiply(scores_field(used).rows(rows), v.rows(length), target.rows(rows))
    return out, weights, factors


class _Packed(PyLayer):
    """The same with a hand-written gradient."""

    @staticmethod
    def forward(ctx, qkv: Tensor, rows: int, hidden: HiddenKeys | None, dropout: float) -> Tensor:
        qkv = contiguous(qkv)
        out, weights, factors = _forward(qkv, rows, hidden, dropout)
        ctx.save_for_backward(qkv, weights, *([] if factors is None else [factors]))
        return out

    @staticmethod
    def backward(ctx, dout: Tensor) -> Tensor:
        refuse_double_backward()
        qkv, weights, *factors = ctx.saved_tensor()
        (batch, length), rows, scale = qkv.shape[:2], dout.shape[1], 1 / math.sqrt(qkv.shape[-1])
        dout, dqkv, gradient = contiguous(dout), new(qkv.shape), new(weights.shape)
        (q, k, v), (dq, dk, dv) = fields(qkv, 0, batch), fields(dqkv, 0, batch)
        arriving = fields(dout, 0, batch)[0].rows(rows)
        used = weights * factors[0] if factors else weights
        multiply(scores_field(used).rows(rows).transposed, arriving, dv.rows(length))
        multiply(arriving, v.rows(length).transposed, scores_field(gradient).rows(rows))
        gradient = gradient.multiply_(factors[0]) if factors else gradient
        softmax_gradient_in_place(weights, gradient)
        scores = scores_field(gradient).rows(rows)
        multiply(scores, k.rows(length), dq.rows(rows), scale)
        multiply(scores.transposed, q.rows(rows), dk.rows(length), scale)
        if rows < length:
            dqkv[:, rows:, 0] = 0.0
        return dqkv
