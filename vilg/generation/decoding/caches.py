"""What every layer of a stack remembers of the tokens decoded so far, and which of it a step reads."""
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.nn.attention.cached import DeviceMaths, Reading, Source, fill
from vilg.nn.attention.cached_host import HostMaths
from vilg.nn.attention.cached_loop import LoopMaths
from vilg.nn.attention.patterns import TARGET, Layout, Pattern
from vilg.nn.attention.slots import Slots

# Matrix products give a row the same bits whatever rows stand beside it only in whole multiples of this many rows.
ROW_BLOCK = 8


@dataclass(frozen=True)
class LayerCache:
    """One layer's cache: of the tokens that ``layout`` holds as an image, as its pattern sees them."""

    pattern: Pattern
    layout: Layout

    @cached_property
    def slots(self) -> Slots:
        """The shape of the cache."""
        return self.pattern.slots(self.layout)

    def seen(self, step: int) -> np.ndarray:
        """Which of the entries read at ``step`` its query may see: booleans [W]."""
        held = self.slots.held(step)
        return (held >= 0) & self.pattern.sees(np.int64(step), held, self.layout, TARGET)


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
        maths = DeviceMaths if not source.on_host else LoopMaths if source.in_half else HostMaths
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
        return fill(x, self.padded_rows)
