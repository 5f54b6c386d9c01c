"""Attention of a decoding step: one new token a row, over its prompt's source and what its layer's cache holds."""
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.kernels.onednn.buffers import Buffer, zeros
from vilg.kernels.onednn.elementwise import softmax_primitives
from vilg.kernels.onednn.library import DST, NOTHING, SRC, WEIGHTS, Bound, Cache, Descriptor, Primitive, operation, run
from vilg.kernels.onednn.precision import attributes
from vilg.kernels.onednn.switch import active
from vilg.nn import functional
from vilg.nn.attention.dense import MASKED
from vilg.nn.attention.patterns import Pattern, Role, image_rule
from vilg.nn.attention.slots import Slots

_STRICT = 0  # the library's math mode: float32 products of float32 values
# Up to so many terms the library sums a product of one row as it does one of many; beyond, the bits differ.
_LONGEST_SUM = 1024
_BYTES = 4
_products = Cache(512)

# Matrix products give a row the same bits whatever rows stand beside it only in whole multiples of this many rows.
ROW_BLOCK = 8


@dataclass
class Source:
    """The prefilled source of P prompts: keys [P, N, H, L] and values [P, N, L, H] a layer, and which the targets see
    [P, L].

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


def keep(keys: Tensor, values: Tensor) -> tuple[Any, Any]:
    """Keys and values of a whole stream, [P, L, N, H] each, in the form that a :class:`Source` holds."""
    if keys.place.is_cpu_place() and keys.dtype == paddle.float32:
        kept = []
        for side in (keys.numpy().transpose(0, 2, 3, 1), values.numpy().transpose(0, 2, 1, 3)):
            kept.append(zeros(*side.shape))
            kept[-1][...] = side
        return tuple(kept)
    return keys.transpose([0, 2, 3, 1]).contiguous(), values.transpose([0, 2, 1, 3]).contiguous()


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
        maths = HostMaths if source.on_host else DeviceMaths
        self.maths: HostMaths | DeviceMaths = maths(source, samples, self.padded_rows)
        self._kinds = [layers.index(layer) for layer in layers]  # those alike read and write alike
        self._readings: dict[int, Reading] = {}  # of every kind, the last

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Packed qkv [padded R, 1, 3, N, H] of token number ``step`` → [padded R, 1, N, H]."""
        rows, tokens = qkv.shape[:2]
        if (rows, tokens) != (self.padded_rows, 1):
            raise ShapeError(f"the cache decodes 1 token of {self.padded_rows} rows, but got {tokens} of {rows}")
        return self.maths.attend(layer, self.layers[layer].slots.entries, self._reading(layer), qkv)

    def attend_buffers(self, layer: int) -> None:
        """The same on the host, between the buffers of its :class:`HostMaths`."""
        self.maths.attend_buffers(layer, self.layers[layer].slots.entries, self._reading(layer))

    def _reading(self, layer: int) -> Reading:
        """What this step does in the caches of the layer's kind."""
        kind = self._kinds[layer]
        last = self._readings.get(kind)
        if last is None or last.step != self.step:
            last = self._readings[kind] = self._read(self.layers[layer], last)
        return last

    def _read(self, cache: LayerCache, last: Reading | None) -> Reading:
        slots, step = cache.slots, self.step
        if step >= slots.steps:
            raise ShapeError(f"the cache holds {slots.steps} tokens, but token number {step + 1} came")
        phase = slots.phase(step)
        mask = last.mask if last is not None and last.phase == phase else self.maths.mask(cache.seen(step))
        return Reading(step, phase, *slots.place(step), slots.near(step), mask)

    def pad(self, x: Tensor) -> Tensor:
        """Fill x [R, …] up to the padded number of rows."""
        return _fill(x, self.padded_rows)


class HostMaths:
    """On a CPU, in numpy and products tied to their memory: at a few rows, the cost of an operator is its call.

    Keys are kept transposed, [H, entries], so that both products of a query read memory as it lies. Every row is a
    product of its own, or one whose bits do not depend on the rows beside it. Whoever has queries, keys and values
    writes them to ``qkv`` [padded R, 3, N, H] and finds the result in ``attended`` [padded R, N, H], in unused rows 0.
    """

    def __init__(self, source: Source, samples: int, padded_rows: int):
        self._keys, self._values, self._seen = source.keys, source.values, source.visible
        heads, head, self._source = source.keys[0].shape[1:]
        self._shape = source.prompts, samples, heads, head
        self.qkv, self.attended = Buffer((padded_rows, 3, heads, head)), Buffer((padded_rows, heads, head))
        rows = source.prompts * samples
        self._new = self.qkv.array[:rows].reshape(source.prompts, samples, 3, heads, head)
        self._caches: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}  # (layer, buffer) → two of [P, S, N, ·]
        self._scale = np.float32(1 / math.sqrt(head))
        self._queries, self._result = zeros(*self._shape), self.attended.array[:rows].reshape(self._shape)
        self._scores: dict[int, np.ndarray] = {}  # keys W of the cache → [P, S, N, L + W]
        self._bound: dict[tuple[int, int, int, int], tuple[list[Bound], list[Bound]]] = {}

    def nbytes(self) -> int:
        return sum(cache.nbytes for pair in self._caches.values() for cache in pair)

    def mask(self, seen: np.ndarray) -> tuple[slice, np.ndarray] | None:
        """The run of scores [L + W] in which some are not seen and what to add there, [P, 1, 1, ·]; None if all are."""
        visible = np.concatenate([self._seen, np.broadcast_to(seen, (len(self._seen), len(seen)))], axis=-1)
        hidden = np.flatnonzero(~visible.all(axis=0))
        if not len(hidden):
            return None
        run_of_scores = slice(hidden[0], hidden[-1] + 1)
        return run_of_scores, _additive(visible[:, run_of_scores])[:, None, None]

    def attend(self, layer: int, entries: int, reading: Reading, qkv: Tensor) -> Tensor:
        self.qkv.array[...] = qkv.numpy()[:, 0]
        self.attend_buffers(layer, entries, reading)
        return paddle.to_tensor(self.attended.array[:, None])

    def attend_buffers(self, layer: int, entries: int, reading: Reading) -> None:
        """:meth:`attend` of ``qkv``, written to ``attended``."""
        near, entry, mask, new = reading.near, reading.entry, reading.mask, self._new
        keys, values = self._cache(layer, reading.buffer, entries)
        keys[..., entry], values[..., entry, :] = new[:, :, 1], new[:, :, 2]
        np.multiply(new[:, :, 0], self._scale, out=self._queries)
        scores = self._scores_of(near.stop - near.start)
        if not active():
            self._in_numpy(layer, keys[..., near], values[..., near, :], scores, mask)
            return
        key = layer, reading.buffer, near.start, near.stop
        if key not in self._bound:
            self._bound[key] = self._bind(layer, keys, values, near, scores)
        before, after = self._bound[key]
        run(before)
        if mask is not None:
            scores[..., mask[0]] += mask[1]
        run(after)

    def _cache(self, layer: int, buffer: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys [P, S, N, H, entries or more] and values [P, S, N, entries, H] of a layer's buffer, zero at first."""
        pair = self._caches.get((layer, buffer))
        if pair is None:
            *lead, head = self._shape
            pair = zeros(*lead, head, _spread(entries)), zeros(*lead, entries, head)
            self._caches[layer, buffer] = pair
        return pair

    def _scores_of(self, width: int) -> np.ndarray:
        """Room for the scores of a source and ``width`` keys of a cache."""
        scores = self._scores.get(width)
        if scores is None:
            scores = self._scores[width] = zeros(*self._shape[:-1], self._source + width)
        return scores

    def _bind(self, layer: int, keys: np.ndarray, values: np.ndarray, near: slice, scores: np.ndarray
              ) -> tuple[list[Bound], list[Bound]]:
        """What runs before the mask is added to the scores (their products), and after it (softmax and values)."""
        prompts, samples, heads, head = self._shape
        spread, entries, width, total = keys.shape[-1], values.shape[-2], near.stop - near.start, scores.shape[-1]
        pairs = prompts * samples * heads
        q, s, result, before, after = self._queries.ctypes.data, scores.ctypes.data, self._result.ctypes.data, [], []
        if self._source:
            # The samples of a prompt are the rows of one matrix, so that its source is read once for all of them.
            together = samples if self._source <= _LONGEST_SUM else 1
            step = heads if together > 1 else 1
            turns, batch = (1, pairs) if samples == 1 else (pairs // (heads * together), heads)
            inward = _product((batch, together, head, self._source), (head, step * head),
                              (head * self._source, self._source), (total, step * total), False)
            outward = _product((batch, together, self._source, head), (total, step * total),
                               (head * self._source, head), (head, step * head), False)
            source_keys, source_values = self._keys[layer].ctypes.data, self._values[layer].ctypes.data
            for turn in range(turns):
                at, prompt = turn * together * heads, turn * together // samples
                source = _BYTES * prompt * heads * head * self._source
                before.append(inward.at(q + _BYTES * at * head, source_keys + source, s + _BYTES * at * total))
                after.append(outward.at(s + _BYTES * at * total, source_values + source, result + _BYTES * at * head))
        inward = _product((pairs, 1, head, width), (head, head), (head * spread, spread), (total, total), False)
        outward = _product((pairs, 1, width, head), (total, total), (head * entries, head), (head, head),
                           bool(self._source))
        s_cache = s + _BYTES * self._source
        before.append(inward.at(q, keys.ctypes.data + _BYTES * near.start, s_cache))
        after.append(outward.at(s_cache, values.ctypes.data + _BYTES * near.start * head, result))
        return before, [softmax_primitives(pairs, total)[0].at(s, s), *after]

    def _in_numpy(self, layer: int, keys: np.ndarray, values: np.ndarray, scores: np.ndarray,
                  mask: tuple[slice, np.ndarray] | None) -> None:
        """The same without the library: keys [P, S, N, H, W] and values [P, S, N, W, H]."""
        q, source = self._queries[..., None, :], self._source
        np.matmul(q, self._keys[layer][:, None], out=scores[..., None, :source])
        np.matmul(q, keys, out=scores[..., None, source:])
        if mask is not None:
            scores[..., mask[0]] += mask[1]
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        result = self._result[..., None, :]
        np.matmul(scores[..., None, :source], self._values[layer][:, None], out=result)
        result += np.matmul(scores[..., None, source:], values)


def _product(sizes: tuple[int, int, int, int], a: tuple[int, int], b: tuple[int, int], out: tuple[int, int],
             add: bool) -> Primitive:
    """out = a·b (or += when ``add``) for ``sizes`` (batch, m, k, n); strides are those of batch and rows."""
    return _products.get((sizes, a, b, out, add), _build_product)


def _build_product(sizes: tuple[int, int, int, int], a: tuple[int, int], b: tuple[int, int], out: tuple[int, int],
                   add: bool) -> Primitive:
    batch, m, k, n = sizes
    descriptors = [Descriptor((batch, *matrix), (*steps, 1))
                   for matrix, steps in zip(((m, k), (k, n), (m, n)), (a, b, out))]
    left, right, to = descriptors
    return Primitive(operation("matmul", left, right, NOTHING, to, attributes(_STRICT, add)),
                     list(zip((SRC, WEIGHTS, DST), descriptors)))


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

    def attend(self, layer: int, entries: int, reading: Reading, qkv: Tensor) -> Tensor:
        mask = reading.mask
        q, k, v = paddle.unbind(qkv[:mask.shape[0]], axis=2)
        keys, values = self._remember(layer, entries, reading, k, v)
        rows, _, heads, width = q.shape
        q = (q * (1 / math.sqrt(width))).reshape([rows, heads, 1, width])
        source = self._source.keys[layer].shape[3]
        scores = paddle.concat([self._from_source(q, self._source.keys[layer]),
                                functional.matmul(q, keys, transpose_y=True)], axis=-1)  # [R, N, 1, L + W]
        on_source, on_cache = paddle.split(functional.softmax(scores + mask), [source, keys.shape[2]], axis=-1)
        out = self._from_source(on_source, self._source.values[layer]) + functional.matmul(on_cache, values)
        return _fill(out.reshape([rows, 1, heads, width]), self._padded_rows)

    def _from_source(self, x: Tensor, kept: Tensor) -> Tensor:
        """x [R, N, 1, X] times its own prompt's keys [P, N, H, L] or values [P, N, L, H] → [R, N, 1, ·].

        The samples of a prompt form one matrix, so that its source is read once for all of them.
        """
        rows, heads, _, width = x.shape
        x = x.reshape([-1, self._samples, heads, width]).transpose([0, 2, 1, 3])  # [P, N, S, X]
        y = functional.matmul(x, kept)
        return y.transpose([0, 2, 1, 3]).reshape([rows, heads, 1, y.shape[-1]])

    def _remember(self, layer: int, entries: int, reading: Reading, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [R, 1, N, H]; return the keys and values that the query reads, [R, N, W, H] each."""
        rows, _, heads, width = k.shape
        place = layer, reading.buffer
        if place not in self._caches:
            shape = [rows, heads, entries, width]
            self._caches[place] = paddle.zeros(shape, k.dtype), paddle.zeros(shape, v.dtype)
        caches, near, entry = self._caches[place], reading.near, reading.entry
        for cache, new in zip(caches, (k, v)):
            cache[:, :, entry:entry + 1] = new.reshape([rows, heads, 1, width])
        whole = near == slice(0, entries)
        keys, values = caches if whole else (cache[:, :, near] for cache in caches)
        return keys, values


def _spread(entries: int) -> int:
    """How far apart the rows of keys lie: a multiple of 512 bytes would put them into few sets of a processor's cache,
    where a new key, which is a value in every row, takes ten times as long to write."""
    return entries + 16 if entries % 128 == 0 else entries


def _additive(visible: np.ndarray) -> np.ndarray:
    return np.where(visible, np.float32(0), np.float32(MASKED))


def _fill(x: Tensor, rows: int) -> Tensor:
    """Fill x [R, …] up to ``rows`` with zeros."""
    missing = rows - x.shape[0]
    return paddle.concat([x, paddle.zeros([missing, *x.shape[1:]], x.dtype)], axis=0) if missing else x
