"""Attention of a decoding step on a CPU as one compiled loop, over keys and values in float16: for drawing in int8.

At several rows keys and values are as many bytes as the weights of a small model, and at one row each of the operators
between two products takes longer to start than to do.
"""
import math

import numpy as np

from vilg.kernels.jit import team
from vilg.nn.attention.cached import Reading, Source
from vilg.nn.attention.cached_host import HostMaths


class LoopMaths(HostMaths):
    """:class:`~vilg.nn.attention.cached_host.HostMaths` whose source and caches are float16: [P, N, L, H] and
    [R, N, entries, H] each. Every row and head is done by itself, so that its bits do not depend on those beside it."""

    def __init__(self, source: Source, samples: int, padded_rows: int):
        super().__init__(source, samples, padded_rows)
        self._factor, self._kernel = team.bits(1 / math.sqrt(self._shape[-1])), team.kernels().attend.address

    def attend_buffers(self, layer: int, entries: int, reading: Reading) -> None:
        prompts, samples, heads, head = self._shape
        near, mask = reading.near, reading.mask
        width = near.stop - near.start
        keys, values = self._cache(layer, reading.buffer, entries)
        hidden = (mask[1].ctypes.data, mask[0].start, mask[0].stop - mask[0].start) if mask else (0, 0, 0)
        team.run(self._kernel, prompts * samples, heads, samples, head, self._source, entries, near.start, width,
                 reading.entry, *hidden, self.qkv.address, self.attended.address,
                 self._keys[layer].ctypes.data, self._values[layer].ctypes.data, keys.ctypes.data, values.ctypes.data,
                 self._scores_of(width).ctypes.data, self._factor)

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
