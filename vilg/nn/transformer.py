"""One stack of transformer blocks for training, prefill and cached decoding alike.

A block runs its program (:mod:`vilg.nn.program`) on whole streams or on one new token a row. It computes everything but
attention itself; that is handed in as ``attend(layer, qkv)``, which knows what the slots are: whole streams
(:class:`StreamAttention`), or one step over caches (:class:`vilg.generation.decoding.caches.CachedAttention`).
"""
from typing import Protocol

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.nn.attention import flashmask
from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import Pattern
from vilg.nn.attention.sparse import stream_attention
from vilg.nn.layers import LayerNorm, Linear, LinearAfterGelu
from vilg.nn.program import Activation, Add, Attend, Fork, Map, Norm, Operation, Program, around

ACTIVATIONS: dict[str, tuple[type[Linear], type[Linear]]] = {"gelu": (Linear, LinearAfterGelu)}
"""The layers before and after an activation, which compute it between them: after, its input alone need be kept."""


class LayerAttention(Protocol):
    """The attention of every layer, for one pass through a stack."""

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Queries, keys and values [B, T, 3, N, H] of layer number ``layer`` (from 0) → [B, T, N, H]."""


class StreamAttention:
    """Attention of whole streams, laid one after another along the batch: the form of training and of prefill.

    ``contexts`` describes each stream in turn; all have the same number of slots. ``patterns`` holds one pattern a
    layer. ``dropout`` is the probability on attention weights, 0 when evaluating.
    """

    def __init__(self, contexts: list[StreamContext], patterns: list[Pattern], dropout: float = 0.0):
        self.contexts, self.patterns, self.dropout = contexts, patterns, dropout

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Packed qkv [sum of batches, L, 3, N, H] → [sum of batches, L, N, H]."""
        pattern = self.patterns[layer]
        # On a device that has it, flash attention serves dense layers too, and never makes the L×L weights.
        if pattern.sparse or flashmask.usable(qkv, pattern, self.contexts[0].layout, self.dropout):
            return stream_attention(qkv, self.contexts, pattern, self.dropout)
        parts = paddle.split(qkv, [context.batch for context in self.contexts], axis=0)
        done = [dense_attention(*paddle.unbind(part, axis=2), context, pattern, self.dropout)
                for context, part in zip(self.contexts, parts)]
        return done[0] if len(done) == 1 else paddle.concat(done, axis=0)


class Block(nn.Layer):
    """The layers that a program names, and the program run on them: block number ``index`` of ``layers``.

    A linear map whose result is added to the residual starts smaller, the more blocks add to it.
    """

    def __init__(self, index: int, layers: int, program: Program, dropout: float = 0.0):
        super().__init__()
        self.index, self.program, self.dropout = index, program, dropout
        into_residual = 0.02 / (2 * layers) ** 0.5
        for before, operation, after in around(program):
            match operation:
                case Norm(name, width, epsilon):
                    setattr(self, name, LayerNorm(width, epsilon))
                case Map(name, inputs, outputs):
                    kind = _map_kind(before, after)
                    std = {"std": into_residual} if isinstance(after, Add) else {}
                    setattr(self, name, kind(inputs, outputs, **std))

    def forward(self, x: Tensor, attend: LayerAttention) -> Tensor:
        """x [B, T, D] → [B, T, D]."""
        residual = x
        for operation in self.program:
            match operation:
                case Fork():
                    residual = x
                case Norm(name) | Map(name):
                    x = getattr(self, name)(x)  # an activation is computed by the maps about it
                case Attend(heads, width):
                    batch, slots = x.shape[:2]
                    x = attend(self.index, x.reshape([batch, slots, 3, heads, width // heads]))  # [B, T, 3, N, H]
                    x = x.reshape([batch, slots, width])  # [B, T, D]
                case Add():
                    x = residual + self._drop(x)
        return x

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


def _map_kind(before: Operation | None, after: Operation | None) -> type[Linear]:
    """The class of a linear map between two operations."""
    if isinstance(after, Activation):
        return ACTIVATIONS[after.kind][0]
    return ACTIVATIONS[before.kind][1] if isinstance(before, Activation) else Linear


class Stack(nn.Layer):
    """``layers`` blocks of one program one after another, without the final normalisation."""

    def __init__(self, layers: int, program: Program, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.LayerList([Block(i, layers, program, dropout) for i in range(layers)])

    def forward(self, x: Tensor, attend: LayerAttention) -> Tensor:
        """x [B, T, D] → [B, T, D]."""
        for block in self.blocks:
            x = block(x, attend)
        return x
