"""The source of a generation, once through all layers, which keep their keys and values of it."""
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from vilg.generation.decoding.compiled import in_loops
from vilg.kernels.onednn.buffers import zeros
from vilg.models.bidirectional import BidirectionalTransformer, TextImageTransformer
from vilg.nn.attention.cached import Source
from vilg.nn.attention.cached_loop import to_half
from vilg.nn.attention.dense import StreamContext
from vilg.nn.attention.patterns import SOURCE, TARGET, Dense, Layout, Pattern
from vilg.nn.transformer import StreamAttention


def keep(keys: Tensor, values: Tensor) -> tuple[Any, Any]:
    """Keys and values of a whole stream, [P, L, N, H] each, in the form that a :class:`Source` holds."""
    if keys.place.is_cpu_place() and keys.dtype == paddle.float32:
        kept = []
        for side in (keys.numpy().transpose(0, 2, 3, 1), values.numpy().transpose(0, 2, 1, 3)):
            kept.append(zeros(*side.shape))
            kept[-1][...] = side
        return tuple(kept)
    return keys.transpose([0, 2, 3, 1]).contiguous(), values.transpose([0, 2, 1, 3]).contiguous()


def keep_half(keys: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same for attention in a compiled loop."""
    return tuple(to_half(side.numpy().transpose(0, 2, 1, 3)) for side in (keys, values))


class PrefillAttention(StreamAttention):
    """Attention of one whole source stream that keeps every layer's keys and values for a :class:`Source`."""

    def __init__(self, context: StreamContext, patterns: list[Pattern], in_half: bool = False):
        super().__init__([context], patterns)
        self._in_half = in_half
        self.keys: list[Any] = []
        self.values: list[Any] = []

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        _, k, v = paddle.unbind(qkv, axis=2)
        keys, values = keep_half(k, v) if self._in_half else keep(k, v)
        self.keys.append(keys)
        self.values.append(values)
        return super().__call__(layer, qkv)


def prefill_text(model: BidirectionalTransformer, text: Tensor, length: Tensor) -> Source:
    """The source of text→image: P texts [P, m] of ``length`` [P] real tokens, through all layers once."""
    layout = Layout(model.layout.text, 0, model.layout.columns)
    context = StreamContext(layout, TARGET, length, paddle.zeros_like(length))
    patterns = [Dense()] * len(model.patterns)
    return _prefill(model, model.embed_text(model.pad_text(text)), context, patterns, length, model.layout.image)


def prefill_image(model: TextImageTransformer, image: Tensor, text: Tensor, prefix: Tensor) -> Source:
    """The source of image→text: P pictures [P, n …] and the first ``prefix`` [P] tokens of their texts [P, m].

    The last source token of a text is left out of what the targets see here: it is the first one that is decoded, since
    its hidden vector predicts the first target, and the cache holds it from then on.
    """
    image, text = model.embed_source(image), model.pad_text(text)
    layout = model.layout if int(prefix.max()) else Layout(0, model.layout.rows, model.layout.columns)
    x = paddle.concat([model.embed_text(text), image], axis=1) if layout.text else image
    context = StreamContext(layout, SOURCE, prefix, prefix)
    return _prefill(model, x, context, model.patterns, paddle.clip(prefix - 1, min=0),
                    model.layout.text)


def _prefill(model: TextImageTransformer, x: Tensor, context: StreamContext, patterns: list[Pattern],
             seen_text: Tensor, steps: int) -> Source:
    attention = PrefillAttention(context, patterns, in_loops(model.stack, steps))
    model.stack(x, attention)
    text = np.arange(context.layout.text) < seen_text.numpy()[:, None]
    image = np.ones([context.batch, context.layout.image], dtype=bool)
    return Source(attention.keys, attention.values, np.concatenate([text, image], axis=1))
