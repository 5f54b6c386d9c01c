"""Attention of a decoding step on a CPU, in numpy and products tied to their memory."""
import math

import numpy as np
import paddle
from paddle import Tensor

from vilg.kernels.onednn.buffers import Buffer, zeros
from vilg.kernels.onednn.elementwise import softmax_primitives
from vilg.kernels.onednn.library import DST, NOTHING, SRC, WEIGHTS, Bound, Cache, Descriptor, Primitive, operation, run
from vilg.kernels.onednn.precision import attributes
from vilg.kernels.onednn.switch import active
from vilg.nn.attention.cached import Reading, Source
from vilg.nn.attention.dense import additive

_STRICT = 0  # the library's math mode: float32 products of float32 values
# Up to so many terms the library sums a product of one row as it does one of many; beyond, the bits differ.
_LONGEST_SUM = 1024
_BYTES = 4
_products = Cache(512)


class HostMaths:
    """On a CPU, in numpy and products tied to their memory: at a few rows, the cost of an operator is its call.

    Keys are kept transposed, [H, entries], so that both products of a query read memory as it lies. Every row is a
    product of its own, or one whose bits do not depend on the rows beside it. Whoever has queries, keys and values
    writes them to ``qkv`` [padded R, 3, N, H] and finds the result in ``attended`` [padded R, N, H], in unused rows 0.
    """

    def __init__(self, source: Source, samples: int, padded_rows: int):
        self._keys, self._values, self._seen = source.keys, source.values, source.visible
        heads, self._source, head = source.values[0].shape[1:]
        self._shape = source.prompts, samples, heads, head
        self.qkv, self.attended = Buffer((padded_rows, 3, heads, head)), Buffer((padded_rows, heads, head))
        rows = source.prompts * samples
        self._new = self.qkv.array[:rows].reshape(source.prompts, samples, 3, heads, head)  # [P, S, 3, N, H]
        self._caches: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}  # (layer, buffer) → two of [P, S, N, ·]
        self._scale = np.float32(1 / math.sqrt(head))
        self._queries = zeros(*self._shape)
        self._result = self.attended.array[:rows].reshape(self._shape)  # [P, S, N, H]
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
        return run_of_scores, additive(visible[:, run_of_scores])[:, None, None]

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


def _spread(entries: int) -> int:
    """How far apart the rows of keys lie: a multiple of 512 bytes would put them into few sets of a processor's cache,
    where a new key, which is a value in every row, takes ten times as long to write."""
    return entries + 16 if entries % 128 == 0 else entries
