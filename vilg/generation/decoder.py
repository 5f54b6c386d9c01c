"""Cached decoding through the model's own blocks: the source once, then one token a step."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from vilg.generation.attention import CachedAttention, LayerCache, Source, keep
from vilg.generation.cache import DenseSlots, image_slots
from vilg.models.bidirectional import BidirectionalTransformer
from vilg.nn.attention import StreamContext
from vilg.nn.masks import Layout, Pattern, Role
from vilg.nn.transformer import StreamAttention


class PrefillAttention(StreamAttention):
    """Attention of one whole source stream that keeps every layer's keys and values for a :class:`Source`."""

    def __init__(self, context: StreamContext, patterns: list[Pattern], window: int):
        super().__init__([context], patterns, window)
        self.keys: list[Any] = []
        self.values: list[Any] = []

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        _, k, v = paddle.unbind(qkv, axis=2)
        self.keys.append(keep(k))
        self.values.append(keep(v))
        return super().__call__(layer, qkv)


def prefill_text(model: BidirectionalTransformer, text: Tensor, length: Tensor) -> Source:
    """The source of text→image: P texts [P, m] of ``length`` [P] real tokens, through all layers once."""
    layout = Layout(model.layout.text, 0, model.layout.columns)
    context = StreamContext(layout, Role.TARGET, length, paddle.zeros_like(length))
    patterns = [Pattern.DENSE] * len(model.patterns)
    return _prefill(model, model.embed_text(model.pad_text(text)), context, patterns, length)


def prefill_image(model: BidirectionalTransformer, codes: Tensor, text: Tensor, prefix: Tensor) -> Source:
    """The source of image→text: P pictures [P, n] and the first ``prefix`` [P] tokens of their texts [P, m].

    The last source token of a text is left out of what the targets see here: it is the first one that is decoded, since
    its hidden vector predicts the first target, and the cache holds it from then on.
    """
    image, text = model.embed_image(codes), model.pad_text(text)
    layout = model.layout if int(prefix.max()) else Layout(0, model.layout.rows, model.layout.columns)
    x = paddle.concat([model.embed_text(text), image], axis=1) if layout.text else image
    context = StreamContext(layout, Role.SOURCE, prefix, prefix)
    return _prefill(model, x, context, model.patterns, paddle.clip(prefix - 1, min=0))


def _prefill(model: BidirectionalTransformer, x: Tensor, context: StreamContext, patterns: list[Pattern],
             seen_text: Tensor) -> Source:
    attention = PrefillAttention(context, patterns, model.config.conv_window)
    model.stack(x, attention)
    text = np.arange(context.layout.text) < seen_text.numpy()[:, None]
    image = np.ones([context.batch, context.layout.image], dtype=bool)
    return Source(attention.keys, attention.values, np.concatenate([text, image], axis=1))


def image_attention(model: BidirectionalTransformer, source: Source, samples: int = 1) -> CachedAttention:
    """Caches for drawing ``samples`` pictures from every prompt of a text source."""
    window, layout = model.config.conv_window, model.layout
    layers = [LayerCache(pattern, image_slots(pattern, layout, window), layout.columns, window)
              for pattern in model.patterns]
    return CachedAttention(source, layers, samples)


def text_attention(model: BidirectionalTransformer, source: Source, steps: int) -> CachedAttention:
    """Caches for writing a text of at most ``steps`` tokens about every picture of a source."""
    dense = LayerCache(Pattern.DENSE, DenseSlots(steps), model.layout.columns, model.config.conv_window)
    return CachedAttention(source, [dense] * len(model.patterns))


def decode_step(model: BidirectionalTransformer, attention: CachedAttention, step: int, x: Tensor) -> Tensor:
    """Embeddings of one token a row [R, D] → hidden vectors after the final normalisation [R, D]."""
    attention.step = step
    compiled = attention.compiled(model.stack, model.norm)
    if compiled is not None:
        compiled.x[:attention.rows], compiled.x[attention.rows:] = x.numpy(), 0
        compiled(attention.attend_rows)
        return paddle.to_tensor(compiled.hidden[:attention.rows])
    return model.norm(model.stack(attention.pad(x).unsqueeze(1), attention)).squeeze(1)[:attention.rows]


@contextmanager
def evaluating(model: nn.Layer) -> Iterator[None]:
    """Without dropout and without gradients, leaving the model's mode as it was."""
    training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            yield
    finally:
        if training:
            model.train()
