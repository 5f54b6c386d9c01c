"""Attention of a decoding step on a CPU as one compiled loop, over keys and values in float16: for drawing in int8.

At several rows keys and values are as many bytes as the weights of a small model, and at one row each of the operators
between two products takes longer to start than to do.
"""
import math
from typing import Any

import numpy as np

from vilg.kernels.jit import team
from vilg.nn.attention.cached import Reading, Source
from vilg.nn.attention.cached_host import HostMaths

_NEAR, _ENTRY, _HIDDEN = (team.Prepared.FIRST + place for place in (6, 8, 9))
"""Where the loop's row of numbers has what changes from step to step."""


class LoopMaths(HostMaths):
    """:class:`~vilg.nn.attention.cached_host.HostMaths` whose source and caches are float16: [P, N, L, H] and
    [R, N, entries, H] each. Every row and head is done by itself, so that its bits do not depend on those beside it."""

    def __init__(self, source: Source, samples: int, padded_rows: int):
        super().__init__(source, samples, padded_rows)
        self._factor, self._kernel = team.bits(1 / math.sqrt(self._shape[-1])), team.kernels().attend.address
        self._prepared: dict[tuple[int, int, int], team.Prepared] = {}  # (layer, buffer, keys that are read) → the loop

    def mask(self, seen: np.ndarray) -> tuple[int, int, int, Any]:
        """As :class:`HostMaths` has it: the address of what to add to scores (0: nothing is hidden), from which on, and
        to how many of them; and what lies there."""
        found = super().mask(seen)
        if found is None:
            return 0, 0, 0, None
        run, added = found
        return added.ctypes.data, run.start, run.stop - run.start, added

    def attend_buffers(self, layer: int, entries: int, reading: Reading) -> None:
        near, mask = reading.near, reading.mask
        width = near.stop - near.start
        key = layer, reading.buffer, width
        loop = self._prepared.get(key)
        if loop is None:
            loop = self._prepared[key] = self._prepare(layer, reading.buffer, entries, width)
        numbers = loop.numbers
        numbers[_NEAR], numbers[_ENTRY] = near.start, reading.entry
        numbers[_HIDDEN], numbers[_HIDDEN + 1], numbers[_HIDDEN + 2] = mask[:3]
        loop()

    def _prepare(self, layer: int, buffer: int, entries: int, width: int) -> team.Prepared:
        prompts, samples, heads, head = self._shape
        keys, values = self._cache(layer, buffer, entries)
        return team.Prepared(
            self._kernel, prompts * samples, heads, samples, head, self._source, entries, 0, width, 0, 0, 0, 0,
            self.qkv.address, self.attended.address, self._keys[layer].ctypes.data, self._values[layer].ctypes.data,
            keys.ctypes.data, values.ctypes.data, self._scores_of(width).ctypes.data, self._factor)

    def _cache(self, layer: int, buffer: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
        pair = self._caches.get((layer, buffer))
        if pair is None:
            prompts, samples, heads, head = self._shape
            shape = prompts * samples, heads, entries, head
            pair = self._caches[layer, buffer] = np.zeros(shape, "float16"), np.zeros(shape, "float16")
        return pair


def to_half(values: np.ndarray) -> np.ndarray:
    """Float32 → float16 of the same shape in C order; what is finite and beyond float16 becomes its largest."""
    largest = np.finfo(np.float16).max
    clipped = np.where(np.isfinite(values), np.clip(values, -largest, largest), values)
    return np.ascontiguousarray(clipped.astype("float16"))
