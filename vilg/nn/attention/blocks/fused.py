"""The same block-wise attention on a CPU, without copies: strided products on the packed [B, L, 3, N, H] tensor.

Scores of the image queries live in one buffer [B, N, n, M + S·C] (text first, then one group a shift) that receives
each block's masked product where it belongs, and becomes the attention weights in place. The backward keeps those
weights, and writes the gradients of queries, keys and values into one packed tensor.
"""
import math

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn.autograd import contiguous, refuse_double_backward, wants_gradient
from vilg.kernels.onednn.elementwise import softmax_primitives
from vilg.kernels.onednn.strided import agrees as strided_products_agree, multiply
from vilg.kernels.onednn.switch import active
from vilg.nn.attention.blocks.fields import Field, Product, array, fields, head_by_head, scores_field
from vilg.nn.attention.blocks.layout import block_layout, image_text_mask, text_scores_mask
from vilg.nn.attention.blocks.scores import agrees as masked_products_agree, masked_product
from vilg.nn.attention.dense import HIDDEN, StreamContext, check_stream
from vilg.nn.attention.patterns import Pattern


def usable(qkv: Tensor) -> bool:
    """Can this tensor take the path: float32 on a CPU, with the fast operators on?"""
    return (qkv.dtype == paddle.float32 and qkv.place.is_cpu_place() and bool(qkv.size) and active()
            and strided_products_agree() and masked_products_agree())


def stream_attention(qkv: Tensor, contexts: list[StreamContext], pattern: Pattern, dropout: float) -> Tensor:
    """See :func:`vilg.nn.attention.sparse.stream_attention`."""
    check_stream(qkv, *contexts)
    if wants_gradient(qkv):
        return _StreamAttention.apply(qkv, contexts, pattern, dropout)
    return _forward(contiguous(qkv), contexts, pattern, dropout)[0]


def softmax_in_place(scores: Tensor) -> None:
    """Scores → weights, over the last axis of a contiguous tensor."""
    keys = scores.shape[-1]
    softmax_primitives(scores.size // keys, keys)[0](scores.data_ptr(), scores.data_ptr())


def softmax_gradient_in_place(weights: Tensor, gradient: Tensor) -> None:
    """Gradient of the weights → gradient of the scores, in place."""
    keys = weights.shape[-1]
    softmax_primitives(weights.size // keys, keys)[1](
        weights.data_ptr(), gradient.data_ptr(), gradient.data_ptr())


def dropped(weights: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Weights after dropout, and the factors that did it."""
    if not dropout:
        return weights, None
    factors = paddle.nn.functional.dropout(paddle.ones(weights.shape), dropout)
    return weights * factors, factors


class _Stream:
    """Forward and backward of one stream of the batch, on the memory of the packed tensors."""

    def __init__(self, context: StreamContext, pattern: Pattern):
        self.context = context
        self.blocks = context.once(("block layout", pattern),
                                   lambda: block_layout(pattern, context.role, context.layout))
        self.products = context.once(("block products", pattern),
                                     lambda: [Product(self.blocks, piece) for piece in self.blocks.pieces()])
        self.m, self.n = context.layout.text, context.layout.image

    def image_mask(self) -> np.ndarray:
        return self.context.once("image text mask", lambda: image_text_mask(self.blocks, self.context))

    def text_mask(self) -> np.ndarray:
        return self.context.once("text mask", lambda: text_scores_mask(self.blocks, self.context))

    def image_weights(self, q: Field, k: Field, scale: float) -> Tensor:
        """Softmax of the image queries' scores: [B, N, n, M + S·C]."""
        m, n = self.m, self.n
        scores = paddle.empty([q.batch, q.heads, n, self.blocks.keys], "float32")
        field, queries, keys = scores_field(scores), q.after(m), k.after(m)
        if m:
            masked_product(queries.rows(n), k.rows(m).transposed, field.part(0, m).rows(n), scale, self.image_mask())
        for each in self.products:
            masked_product(each.queries(queries), each.keys(keys).transposed, each.scores(field), scale, each.mask)
            each.fill_beyond(scores, HIDDEN)
        softmax_in_place(scores)
        return scores

    def text_weights(self, q: Field, k: Field, scale: float) -> Tensor:
        """Softmax of the text queries' scores: [B, N, M, Y]."""
        mask = self.text_mask()
        scores = paddle.empty([q.batch, q.heads, *mask.shape[1:]], "float32")
        field = scores_field(scores)
        masked_product(q.rows(self.m), k.rows(field.width).transposed, field.rows(self.m), scale, mask)
        softmax_in_place(scores)
        return scores

    def image_output(self, weights: Tensor, v: Field, out: Field) -> None:
        """Weights · values into the image slots of ``out``."""
        m, n = self.m, self.n
        field, values, target = scores_field(weights), v.after(m), out.after(m)
        if m:
            text, _kept = head_by_head(v, m)
            multiply(field.part(0, m).rows(n), text.rows(m), target.rows(n))
        for each in self.products:
            multiply(each.scores(field), each.keys(values), each.queries(target), 1, bool(m), each.axis)

    def text_backward(self, weights: Tensor, factors: Tensor | None, qkv: tuple, grads: tuple, dout: Field,
                      scale: float) -> None:
        """Gradients of the text queries' attention, written to the first Y slots."""
        (q, k, v), (dq, dk, dv), m = qkv, grads, self.m
        used = weights if factors is None else weights * factors
        field = scores_field(used)
        gradient = paddle.empty(weights.shape, "float32")
        scores, keys = scores_field(gradient), field.width
        multiply(field.rows(m).transposed, dout.rows(m), dv.rows(keys))
        multiply(dout.rows(m), v.rows(keys).transposed, scores.rows(m))
        gradient = gradient if factors is None else gradient.multiply_(factors)
        softmax_gradient_in_place(weights, gradient)
        multiply(scores.rows(m), k.rows(keys), dq.rows(m), scale)
        multiply(scores.rows(m).transposed, q.rows(m), dk.rows(keys), scale)

    def image_backward(self, weights: Tensor, factors: Tensor | None, qkv: tuple, grads: tuple, dout: Field,
                       scale: float) -> None:
        """Gradients of the image queries' attention, added to those of all keys and values."""
        (q, k, v), (dq, dk, dv), (m, n) = qkv, grads, (self.m, self.n)
        used = weights if factors is None else weights * factors
        field, arriving = scores_field(used), dout.after(m)
        gradient = paddle.empty(weights.shape, "float32")
        scores = scores_field(gradient)
        if m:
            multiply(arriving.rows(n), v.rows(m).transposed, scores.part(0, m).rows(n))
            multiply(field.part(0, m).rows(n).transposed, arriving.rows(n), dv.rows(m), 1, True)
        for each in self.products:
            each.fill_beyond(gradient, 0)
            above = each.queries(arriving)
            multiply(above, each.keys(v.after(m)).transposed, each.scores(scores), axis=each.axis)
            multiply(each.scores(field).transposed, above, each.keys(dv.after(m)), 1, True, each.axis)
        gradient = gradient if factors is None else gradient.multiply_(factors)
        softmax_gradient_in_place(weights, gradient)
        queries, to = q.after(m), dq.after(m)
        if m:
            text, _kept = head_by_head(k, m)
            multiply(scores.part(0, m).rows(n), text.rows(m), to.rows(n), scale)
            multiply(scores.part(0, m).rows(n).transposed, queries.rows(n), dk.rows(m), scale, True)
        for each in self.products:
            multiply(each.scores(scores), each.keys(k.after(m)), each.queries(to), scale, bool(m), each.axis)
            multiply(each.scores(scores).transposed, each.queries(queries), each.keys(dk.after(m)), scale, True,
                     each.axis)


def _forward(qkv: Tensor, contexts: list[StreamContext], pattern: Pattern,
             dropout: float) -> tuple[Tensor, list[list[Tensor | None]]]:
    """The output [ΣB, L, N, H], and for every stream the weights and dropout factors of its image and text queries."""
    batch, slots, _, heads, head = qkv.shape
    out = paddle.empty([batch, slots, heads, head], "float32")
    scale, at, kept = 1 / math.sqrt(head), 0, []
    for context in contexts:
        stream = _Stream(context, pattern)
        q, k, v = fields(qkv, at, context.batch)
        target, = fields(out, at, context.batch)
        weights = stream.image_weights(q, k, scale)
        used, factors = dropped(weights, dropout)
        stream.image_output(used, v, target)
        kept.append([weights, factors])
        if stream.m:
            weights = stream.text_weights(q, k, scale)
            used, factors = dropped(weights, dropout)
            field = scores_field(used)
            multiply(field.rows(stream.m), v.rows(field.width), target.rows(stream.m))
            kept[-1] += [weights, factors]
        at += context.batch
    return out, kept


class _StreamAttention(PyLayer):
    """Block-wise attention of packed streams with a hand-written gradient."""

    @staticmethod
    def forward(ctx, qkv: Tensor, contexts: list[StreamContext], pattern: Pattern, dropout: float) -> Tensor:
        qkv = contiguous(qkv)
        out, kept = _forward(qkv, contexts, pattern, dropout)
        ctx.save_for_backward(qkv, *[tensor for stream in kept for tensor in stream if tensor is not None])
        ctx.streams, ctx.dropout = [_Stream(context, pattern) for context in contexts], dropout
        return out

    @staticmethod
    def backward(ctx, dout: Tensor) -> Tensor:
        refuse_double_backward()
        qkv, *kept = ctx.saved_tensor()
        dout, kept = contiguous(dout), iter(kept)
        dqkv = paddle.empty(qkv.shape, "float32")
        scale, at = 1 / math.sqrt(qkv.shape[-1]), 0
        for stream in ctx.streams:
            batch = stream.context.batch
            values, gradients = fields(qkv, at, batch), fields(dqkv, at, batch)
            arriving, = fields(dout, at, batch)
            image = next(kept), next(kept) if ctx.dropout else None
            reached = 0
            if stream.m:
                text = next(kept), next(kept) if ctx.dropout else None
                stream.text_backward(*text, values, gradients, arriving, scale)
                reached = text[0].shape[-1]
            array(dqkv)[at:at + batch, reached:, 1:] = 0
            stream.image_backward(*image, values, gradients, arriving, scale)
            at += batch
        return dqkv
