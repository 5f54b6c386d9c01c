"""Attention of a decoding step: one new token a row, over its prompt's source and what its layer's cache holds.

Here is what the step knows and the arithmetic in Paddle's operators; :mod:`vilg.nn.attention.cached_host` has that of a
CPU, and :mod:`vilg.generation.decoding.caches` says what every layer of a model reads.
"""
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor

from vilg.nn import functional
from vilg.nn.attention.dense import additive


@dataclass
class Source:
    """The prefilled source of P prompts: keys [P, N, H, L] and values [P, N, L, H] a layer, and which the targets see
    [P, L].

    Float32 on a CPU is kept as numpy arrays, anything else as tensors where the model is; for attention in a compiled
    loop both are numpy arrays [P, N, L, H] of float16.
    """

    keys: list[Any]
    values: list[Any]
    visible: np.ndarray

    @property
    def prompts(self) -> int:
        """Number of prompts P."""
        return self.visible.shape[0]

    @property
    def on_host(self) -> bool:
        """Are keys and values numpy arrays?"""
        return isinstance(self.keys[0], np.ndarray)

    @property
    def in_half(self) -> bool:
        """Are they kept for a compiled loop?"""
        return self.on_host and self.keys[0].dtype == np.float16

    def nbytes(self) -> int:
        """Bytes of the kept keys and values."""
        return sum(kept.nbytes for kept in self.keys + self.values)

    def take(self, prompts: list[int]) -> "Source":
        """The same source with its prompts repeated or re-ordered."""
        keys, values = ([kept[prompts] if self.on_host else paddle.index_select(kept, paddle.to_tensor(prompts))
                         for kept in side] for side in (self.keys, self.values))
        return Source(keys, values, self.visible[prompts])


@dataclass(frozen=True)
class Reading:
    """What a step does in the caches of layers of one kind: the entry of a buffer that it writes, those that it reads.

    ``mask`` is what :class:`StepMaths` made of what its query sees of them.
    """

    step: int
    phase: int
    buffer: int
    entry: int
    near: slice
    mask: Any


class StepMaths(Protocol):
    """The arithmetic of a step, for the place where the tensors live."""

    def mask(self, seen: np.ndarray) -> Any:
        """What to add to scores, from what is seen of the cache: booleans [W]."""

    def attend(self, layer: int, entries: int, reading: Reading, qkv: Tensor) -> Tensor:
        """Keep the new keys and values of qkv [padded R, 1, 3, N, H], then attend: → [padded R, 1, N, H]."""

    def nbytes(self) -> int:
        """Bytes of all layers' caches so far, without the source."""


class DeviceMaths:
    """On an accelerator, or in another precision, in Paddle's operators, with the buffers where the model is."""

    def __init__(self, source: Source, samples: int, padded_rows: int):
        self._source, self._samples, self._padded_rows = source, samples, padded_rows
        self._dtype = source.keys[0].dtype
        mask = np.repeat(additive(source.visible), samples, axis=0)[:, None, None]  # [R, 1, 1, L]
        self._source_mask = paddle.to_tensor(mask).astype(self._dtype)
        self._caches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (layer, buffer) → two of [R, N, entries, H]

    def nbytes(self) -> int:
        return sum(cache.nbytes for pair in self._caches.values() for cache in pair)

    def mask(self, seen: np.ndarray) -> Tensor:
        """[R, 1, 1, L + W]."""
        mask = paddle.to_tensor(additive(seen)).astype(self._dtype).reshape([1, 1, 1, -1])  # [1, 1, 1, W]
        return paddle.concat([self._source_mask, mask.expand([self._source_mask.shape[0], -1, -1, -1])], axis=-1)

    def attend(self, layer: int, entries: int, reading: Reading, qkv: Tensor) -> Tensor:
        mask = reading.mask
        q, k, v = paddle.unbind(qkv[:mask.shape[0]], axis=2)
        keys, values = self._remember(layer, entries, reading, k, v)
        rows, _, heads, width = q.shape
        q = (q * (1 / math.sqrt(width))).reshape([rows, heads, 1, width])  # [R, N, 1, H]
        source = self._source.keys[layer].shape[3]
        scores = paddle.concat([self._from_source(q, self._source.keys[layer]),
                                functional.matmul(q, keys, transpose_y=True)], axis=-1)  # [R, N, 1, L + W]
        on_source, on_cache = paddle.split(functional.softmax(scores + mask), [source, keys.shape[2]], axis=-1)
        out = self._from_source(on_source, self._source.values[layer]) + functional.matmul(on_cache, values)
        return fill(out.reshape([rows, 1, heads, width]), self._padded_rows)  # [padded R, 1, N, H]

    def _from_source(self, x: Tensor, kept: Tensor) -> Tensor:
        """x [R, N, 1, X] times its own prompt's keys [P, N, H, L] or values [P, N, L, H] → [R, N, 1, ·].

        The samples of a prompt form one matrix, so that its source is read once for all of them.
        """
        rows, heads, _, width = x.shape
        x = x.reshape([-1, self._samples, heads, width]).transpose([0, 2, 1, 3])  # [P, N, S, X]
        y = functional.matmul(x, kept)  # [P, N, S, ·]
        return y.transpose([0, 2, 1, 3]).reshape([rows, heads, 1, y.shape[-1]])  # [R, N, 1, ·]

    def _remember(self, layer: int, entries: int, reading: Reading, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [R, 1, N, H]; return the keys and values that the query reads, [R, N, W, H] each."""
        rows, _, heads, width = k.shape
        place = layer, reading.buffer
        if place not in self._caches:
            shape = [rows, heads, entries, width]
            self._caches[place] = paddle.zeros(shape, k.dtype), paddle.zeros(shape, v.dtype)
        caches, near, entry = self._caches[place], reading.near, reading.entry
        for cache, new in zip(caches, (k, v)):
            cache[:, :, entry:entry + 1] = new.reshape([rows, heads, 1, width])  # [R, N, 1, H]
        whole = near == slice(0, entries)
        keys, values = caches if whole else (cache[:, :, near] for cache in caches)
        return keys, values


def fill(x: Tensor, rows: int) -> Tensor:
    """Fill x [R, …] up to ``rows`` with zeros."""
    missing = rows - x.shape[0]
    return paddle.concat([x, paddle.zeros([missing, *x.shape[1:]], x.dtype)], axis=0) if missing else x
