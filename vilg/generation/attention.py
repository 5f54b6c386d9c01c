"""Attention of a decoding step: one new token a row, over its prompt's source and what its layer's cache holds."""
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.generation.cache import Slots
from vilg.nn import functional
from vilg.nn.attention import MASKED
from vilg.nn.masks import Pattern, Role, image_rule
from vilg.nn.onednn.elementwise import softmax_primitives
from vilg.nn.onednn.switch import active

# Matrix products give a row the same bits whatever rows stand beside it only in whole multiples of this many rows.
ROW_BLOCK = 8


@dataclass
class Source:
    """The prefilled source of P prompts: keys and values a layer [P, N, L, H], and which the targets see [P, L].

    Float32 on a CPU is kept as numpy arrays, anything else as tensors where the model is.
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

    def nbytes(self) -> int:
        """Bytes of the kept keys and values."""
        return sum(kept.nbytes for kept in self.keys + self.values)

    def take(self, prompts: list[int]) -> "Source":
        """The same source with its prompts repeated or re-ordered."""
        keys, values = ([kept[prompts] if self.on_host else paddle.index_select(kept, paddle.to_tensor(prompts))
                         for kept in side] for side in (self.keys, self.values))
        return Source(keys, values, self.visible[prompts])


def keep(x: Tensor) -> Any:
    """Keys or values of a whole stream [P, L, N, H] in the form that a :class:`Source` holds: [P, N, L, H]."""
    if x.place.is_cpu_place() and x.dtype == paddle.float32:
        return np.ascontiguousarray(x.numpy().transpose(0, 2, 1, 3))
    return x.transpose([0, 2, 1, 3]).contiguous()


@dataclass(frozen=True)
class LayerCache:
    """One layer's pattern, with the grid's columns and window that its rule needs, and the shape of its cache."""

    pattern: Pattern
    slots: Slots
    columns: int
    window: int

    def seen(self, step: int) -> np.ndarray:
        """Which of the entries read at ``step`` its query may see: booleans [W]."""
        held = self.slots.held(step)
        return (held >= 0) & image_rule(self.pattern, Role.TARGET, np.int64(step), held, self.columns, self.window)


class StepMaths(Protocol):
    """The arithmetic of a step, for the place where the tensors live."""

    def mask(self, seen: np.ndarray) -> Any:
        """What to add to scores, from what is seen of the cache: booleans [W]."""

    def attend(self, layer: int, slots: Slots, step: int, mask: Any, qkv: Tensor) -> Tensor:
        """Keep the new keys and values of qkv [padded R, 1, 3, N, H], then attend: → [padded R, 1, N, H]."""

    def nbytes(self) -> int:
        """Bytes of all layers' caches so far, without the source."""


class CachedAttention:
    """What a stack calls for the attention of one new token a row.

    Rows stand prompt by prompt, ``samples`` rows each, filled up with unused rows to a multiple of :data:`ROW_BLOCK`.
    ``step`` is set before each pass through the stack. Raises ShapeError when a step does not fit rows or cache.
    """

    def __init__(self, source: Source, layers: list[LayerCache], samples: int = 1):
        self.source, self.layers = source, layers
        self.rows = source.prompts * samples
        self.padded_rows = -(-self.rows // ROW_BLOCK) * ROW_BLOCK
        self.step = 0
        self.maths: StepMaths = (HostMaths if source.on_host else DeviceMaths)(source, samples, self.padded_rows)
        self._masks: dict[Pattern, tuple[int, Any]] = {}

    @property
    def on_host(self) -> bool:
        """Are caches and their arithmetic in numpy?"""
        return isinstance(self.maths, HostMaths)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Packed qkv [padded R, 1, 3, N, H] of token number ``step`` → [padded R, 1, N, H]."""
        rows, tokens = qkv.shape[:2]
        if (rows, tokens) != (self.padded_rows, 1):
            raise ShapeError(f"the cache decodes 1 token of {self.padded_rows} rows, but got {tokens} of {rows}")
        slots, mask = self._slots(layer)
        return self.maths.attend(layer, slots, self.step, mask, qkv)

    def attend_rows(self, layer: int, qkv: np.ndarray, out: np.ndarray) -> None:
        """The same on the host: packed qkv [padded R, 3, N, H], written to ``out`` [padded R, N, H]."""
        slots, mask = self._slots(layer)
        self.maths.attend_rows(layer, slots, self.step, mask, qkv, out)

    def _slots(self, layer: int) -> tuple[Slots, Any]:
        """Where the layer keeps its tokens, and the mask of this step."""
        cache = self.layers[layer]
        if self.step >= cache.slots.steps:
            raise ShapeError(f"the cache holds {cache.slots.steps} tokens, but token number {self.step + 1} came")
        built, mask = self._masks.get(cache.pattern, (-1, None))
        if built != self.step:  # the first layer of its pattern in this step
            mask = self.maths.mask(cache.seen(self.step))
            self._masks[cache.pattern] = (self.step, mask)
        return cache.slots, mask

    def pad(self, x: Tensor) -> Tensor:
        """Fill x [R, …] up to the padded number of rows."""
        return _fill(x, self.padded_rows)


class HostMaths:
    """On a CPU, in numpy: at a few rows, the cost of an operator is its call, and numpy's is a tenth of Paddle's.

    Every row is a product of its own, so its bits do not depend on the others.
    """

    def __init__(self, source: Source, samples: int, padded_rows: int):
        self._keys = [kept[:, None].swapaxes(-1, -2) for kept in source.keys]  # [P, 1, N, H, L] each
        self._values = [kept[:, None] for kept in source.values]
        self._source_mask = _additive(source.visible)[:, None, None, None]  # [P, 1, 1, 1, L]
        self._shape, (heads, self._source, head) = (source.prompts, samples), source.keys[0].shape[1:]
        self._padded_rows = padded_rows
        self._caches: dict[tuple[int, int], np.ndarray] = {}  # (layer, buffer) → [2, P, S, N, entries, H]
        self._scale = np.float32(1 / math.sqrt(head))
        self._queries, self._from_cache = np.empty((2, *self._shape, heads, 1, head), dtype=np.float32)
        self._scores: dict[int, np.ndarray] = {}  # keys W of the cache → [P, S, N, 1, L + W]

    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    def mask(self, seen: np.ndarray) -> np.ndarray | None:
        """[P, 1, 1, 1, L + W], or None when everything is seen."""
        if seen.all() and not self._source_mask.any():
            return None
        mask = np.broadcast_to(_additive(seen), (*self._source_mask.shape[:-1], len(seen)))
        return np.concatenate([self._source_mask, mask], axis=-1)

    def attend(self, layer: int, slots: Slots, step: int, mask: np.ndarray | None, qkv: Tensor) -> Tensor:
        out = np.zeros((self._padded_rows, *qkv.shape[3:]), dtype=np.float32)
        self.attend_rows(layer, slots, step, mask, qkv.numpy()[:, 0], out)
        return paddle.to_tensor(out[:, None])

    def attend_rows(self, layer: int, slots: Slots, step: int, mask: np.ndarray | None, qkv: np.ndarray,
                    out: np.ndarray) -> None:
        """:meth:`attend` of [padded R, 3, N, H], written to ``out`` [padded R, N, H], whose unused rows it leaves."""
        prompts, samples = self._shape
        rows, source = prompts * samples, self._source
        new = qkv[:rows].reshape(prompts, samples, *qkv.shape[1:])
        keys, values = self._remember(layer, slots, step, new)  # [P, S, N, W, H]
        q, scores = self._queries, self._scores_of(keys.shape[-2])
        np.multiply(new[:, :, 0, :, None], self._scale, out=q)
        np.matmul(q, self._keys[layer], out=scores[..., :source])
        np.matmul(q, keys.swapaxes(-1, -2), out=scores[..., source:])
        if mask is not None:
            scores += mask
        _softmax_in_place(scores)
        result = out[:rows].reshape(q.shape)
        np.matmul(scores[..., :source], self._values[layer], out=result)
        np.matmul(scores[..., source:], values, out=self._from_cache)
        result += self._from_cache

    def _scores_of(self, width: int) -> np.ndarray:
        """Room for the scores of a source and ``width`` keys of a cache."""
        scores = self._scores.get(width)
        if scores is None:
            shape = (*self._queries.shape[:-1], self._source + width)
            scores = self._scores[width] = np.empty(shape, dtype=np.float32)
        return scores

    def _remember(self, layer: int, slots: Slots, step: int, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write the new keys and values [P, S, 3, N, H]; return those that the query reads, [P, S, N, W, H] each."""
        buffer, entry = slots.place(step)
        cache = self._caches.get((layer, buffer))
        if cache is None:
            prompts, samples, _, heads, head = new.shape
            shape = (2, prompts, samples, heads, slots.entries, head)
            cache = self._caches[layer, buffer] = np.zeros(shape, dtype=np.float32)
        cache[:, :, :, :, entry] = new[:, :, 1:].transpose(2, 0, 1, 3, 4)
        keys, values = cache[:, :, :, :, slots.near(step)]
        return keys, values


class DeviceMaths:
    """On an accelerator, or in another precision, in Paddle's operators, with the buffers where the model is."""

    def __init__(self, source: Source, samples: int, padded_rows: int):
        self._source, self._samples, self._padded_rows = source, samples, padded_rows
        self._dtype = source.keys[0].dtype
        mask = np.repeat(_additive(source.visible), samples, axis=0)[:, None, None]
        self._source_mask = paddle.to_tensor(mask).astype(self._dtype)  # [R, 1, 1, L]
        self._caches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (layer, buffer) → two of [R, N, entries, H]

    def nbytes(self) -> int:
        return sum(cache.nbytes for pair in self._caches.values() for cache in pair)

    def mask(self, seen: np.ndarray) -> Tensor:
        """[R, 1, 1, L + W]."""
        mask = paddle.to_tensor(_additive(seen)).astype(self._dtype).reshape([1, 1, 1, -1])
        return paddle.concat([self._source_mask, mask.expand([self._source_mask.shape[0], -1, -1, -1])], axis=-1)

    def attend(self, layer: int, slots: Slots, step: int, mask: Tensor, qkv: Tensor) -> Tensor:
        q, k, v = paddle.unbind(qkv[:mask.shape[0]], axis=2)
        keys, values = self._remember(layer, slots, step, k, v)
        rows, _, heads, width = q.shape
        q = (q * (1 / math.sqrt(width))).reshape([rows, heads, 1, width])
        source = self._source.keys[layer].shape[2]
        scores = paddle.concat([self._from_source(q, self._source.keys[layer], transpose=True),
                                functional.matmul(q, keys, transpose_y=True)], axis=-1)  # [R, N, 1, L + W]
        on_source, on_cache = paddle.split(functional.softmax(scores + mask), [source, keys.shape[2]], axis=-1)
        out = self._from_source(on_source, self._source.values[layer]) + functional.matmul(on_cache, values)
        return _fill(out.reshape([rows, 1, heads, width]), self._padded_rows)

    def _from_source(self, x: Tensor, kept: Tensor, transpose: bool = False) -> Tensor:
        """x [R, N, 1, X] times its own prompt's keys (transposed) or values [P, N, L, H] → [R, N, 1, ·].

        The samples of a prompt form one matrix, so that its source is read once for all of them.
        """
        rows, heads, _, width = x.shape
        x = x.reshape([-1, self._samples, heads, width]).transpose([0, 2, 1, 3])  # [P, N, S, X]
        y = functional.matmul(x, kept, transpose_y=transpose)
        return y.transpose([0, 2, 1, 3]).reshape([rows, heads, 1, y.shape[-1]])

    def _remember(self, layer: int, slots: Slots, step: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [R, 1, N, H]; return the keys and values that the query reads, [R, N, W, H] each."""
        buffer, entry = slots.place(step)
        rows, _, heads, width = k.shape
        if (layer, buffer) not in self._caches:
            shape = [rows, heads, slots.entries, width]
            self._caches[layer, buffer] = paddle.zeros(shape, k.dtype), paddle.zeros(shape, v.dtype)
        caches, near = self._caches[layer, buffer], slots.near(step)
        for cache, new in zip(caches, (k, v)):
            cache[:, :, entry:entry + 1] = new.reshape([rows, heads, 1, width])
        whole = near == slice(0, slots.entries)
        keys, values = caches if whole else (cache[:, :, near] for cache in caches)
        return keys, values


def _softmax_in_place(scores: np.ndarray) -> None:
    """Softmax over the last axis of a dense array."""
    if active():
        columns = scores.shape[-1]
        address = scores.ctypes.data
        softmax_primitives(scores.size // columns, columns)[0](address, address)
        return
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def _additive(visible: np.ndarray) -> np.ndarray:
    return np.where(visible, np.float32(0), np.float32(MASKED))


def _fill(x: Tensor, rows: int) -> Tensor:
    """Fill x [R, …] up to ``rows`` with zeros."""
    missing = rows - x.shape[0]
    return paddle.concat([x, paddle.zeros([missing, *x.shape[1:]], x.dtype)], axis=0) if missing else x
