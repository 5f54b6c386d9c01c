"""One stack of pre-LN transformer blocks for training, prefill and cached decoding alike.

A block computes everything but attention itself; that is handed in as ``attend(layer, qkv)``, which knows whether the
slots are whole streams (:class:`StreamAttention`) or one step over a cache (:mod:`vilg.nn.attention.slots`).
"""
from typing import Protocol

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import CONV_WINDOW, Pattern
from vilg.nn.attention.sparse import stream_attention
from vilg.nn.layers import LayerNorm, Linear, LinearAfterGelu


class Attend(Protocol):
    """The attention of every layer, for one pass through a stack."""

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Queries, keys and values [B, T, 3, N, H] of layer number ``layer`` (from 0) → [B, T, N, H]."""


class StreamAttention:
    """Attention of whole streams, laid one after another along the batch: the form of training and of prefill.

    ``contexts`` describes each stream in turn; all have the same number of slots. ``patterns`` holds one pattern a
    layer. ``dropout`` is the probability on attention weights, 0 when evaluating.
    """

    def __init__(self, contexts: list[StreamContext], patterns: list[Pattern], window: int = CONV_WINDOW,
                 dropout: float = 0.0):
        self.contexts, self.patterns, self.window, self.dropout = contexts, patterns, window, dropout

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Packed qkv [sum of batches, L, 3, N, H] → [sum of batches, L, N, H]."""
        pattern = self.patterns[layer]
        if pattern is not Pattern.DENSE:
            return stream_attention(qkv, self.contexts, pattern, self.window, self.dropout)
        parts = paddle.split(qkv, [context.batch for context in self.contexts], axis=0)
        done = [dense_attention(*paddle.unbind(part, axis=2), context, pattern, self.window, self.dropout)
                for context, part in zip(self.contexts, parts)]
        return done[0] if len(done) == 1 else paddle.concat(done, axis=0)


class Block(nn.Layer):
    """x + Attention(LN(x)), then x + FFN(LN(x)), on x [B, T, D]; Q, K and V come from one linear map."""

    def __init__(self, index: int, layers: int, width: int, heads: int, mlp_ratio: int, dropout: float):
        super().__init__()
        self.index, self.heads, self.dropout = index, heads, dropout
        into_residual = 0.02 / (2 * layers) ** 0.5
        self.norm1 = LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width, std=into_residual)
        self.norm2 = LayerNorm(width)
        self.fc1 = Linear(width, mlp_ratio * width)
        self.fc2 = LinearAfterGelu(mlp_ratio * width, width, std=into_residual)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x [B, T, D] → [B, T, D]."""
        batch, slots, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape([batch, slots, 3, self.heads, width // self.heads])
        x = x + self._drop(self.proj(attend(self.index, qkv).reshape([batch, slots, width])))
        return x + self._drop(self.fc2(self.fc1(self.norm2(x))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class Stack(nn.Layer):
    """``layers`` blocks one after another, without the final normalisation."""

    def __init__(self, layers: int, width: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.LayerList([Block(i, layers, width, heads, mlp_ratio, dropout) for i in range(layers)])

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """x [B, T, D] → [B, T, D]."""
        for block in self.blocks:
            x = block(x, attend)
        return x
