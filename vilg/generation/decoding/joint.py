"""One step of several drawings at once, each at a token of its own."""
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from vilg.generation.decoding.caches import ROW_BLOCK, CachedAttention
from vilg.generation.decoding.compiled import CompiledStack
from vilg.kernels.onednn.buffers import Buffer
from vilg.models.bidirectional import BidirectionalTransformer


class JointStep:
    """Passes a token of every row of several caches through a model's compiled stack, whose weights it so reads once.

    Nothing but attention depends on a row's place in the grid, and a row's bits depend on no other's. A stack is
    compiled for 8, 16, 32 … rows when so many first come, and kept, each with a copy of the weights as they then are.
    """

    def __init__(self, model: BidirectionalTransformer):
        self._model = model
        self._stacks: dict[tuple[int, bool], tuple[CompiledStack, Buffer, Buffer]] = {}

    def __call__(self, attentions: Sequence[CachedAttention], x: np.ndarray) -> np.ndarray:
        """Inputs [R, D] of the caches' rows, one after the other → logits of the image's tokens [R, V], in memory that
        the next call writes again. Every cache's ``step`` is set."""
        rows = sum(attention.rows for attention in attentions)
        # Caches of one model are all of one kind: nothing but the model decides whether loops do what is between.
        stack, qkv, attended = self._stack(rows, attentions[0].source.in_half)
        places = np.cumsum([0, *(attention.rows for attention in attentions)]).tolist()
        parts = [(attention, slice(*part)) for attention, part in zip(attentions, zip(places, places[1:]))]

        def attend(layer: int) -> None:
            for attention, part in parts:
                maths, own = attention.maths, attention.rows
                maths.qkv.array[:own] = qkv.array[part]
                attention.attend_buffers(layer)
                attended.array[part] = maths.attended.array[:own]

        stack.x[:rows], stack.x[rows:], attended.array[rows:] = x, 0, 0
        stack(attend)
        return stack.project(self._model.image_head)[:rows]

    def embed(self, tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Tokens and their places in the grid, integers [R] each → inputs of the next step, [R, D]."""
        return self._tables[0][tokens] + self._tables[1][places]

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        return self._model.image_embedding.weight.numpy(), self._model.image_positions().numpy()

    def _stack(self, rows: int, looped: bool) -> tuple[CompiledStack, Buffer, Buffer]:
        """What is compiled for the least number of rows that holds so many, and the buffers that attention stands
        between."""
        room = ROW_BLOCK
        while room < rows:
            room *= 2
        if (room, looped) not in self._stacks:
            config = self._model.config
            heads = config.heads, config.width // config.heads
            qkv, attended = Buffer((room, 3, *heads)), Buffer((room, *heads))
            stack = CompiledStack(self._model.stack, self._model.norm, qkv, attended, room, looped)
            self._stacks[room, looped] = stack, qkv, attended
        return self._stacks[room, looped]
