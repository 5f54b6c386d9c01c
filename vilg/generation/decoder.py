"""Cached decoding through the model's own blocks: the source once, then one token a step."""
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import Tensor, nn

from vilg.errors import ShapeError
from vilg.generation.cache import DenseCache, SlotCache, slot_cache
from vilg.models.bidirectional import BidirectionalTransformer
from vilg.nn import functional
from vilg.nn.attention import StreamContext, additive
from vilg.nn.masks import Layout, Pattern, Role, image_rule
from vilg.nn.transformer import StreamAttention

# Matrix products give a row the same bits whatever rows stand beside it only from this many rows on, in whole
# multiples.
ROW_BLOCK = 8


class PrefillAttention(StreamAttention):
    """Attention of one whole source stream that keeps every layer's keys and values, [B, N, L, H] each."""

    def __init__(self, context: StreamContext, patterns: list[Pattern], window: int):
        super().__init__([context], patterns, window)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        _, k, v = paddle.unbind(qkv, axis=2)
        self.keys.append(k.transpose([0, 2, 1, 3]).contiguous())
        self.values.append(v.transpose([0, 2, 1, 3]).contiguous())
        return super().__call__(layer, qkv)


class Source:
    """The prefilled source of P prompts: keys and values a layer, and which of them the targets may see [P, L]."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], visible: np.ndarray):
        self.keys, self.values, self.visible = keys, values, visible

    @property
    def prompts(self) -> int:
        """Number of prompts P."""
        return self.visible.shape[0]

    def nbytes(self) -> int:
        """Bytes of the kept keys and values."""
        return sum(kept.size * kept.element_size() for kept in self.keys + self.values)

    def take(self, prompts: list[int]) -> "Source":
        """The same source with its prompts repeated or re-ordered."""
        index = paddle.to_tensor(prompts)
        keys, values = ([paddle.index_select(kept, index, axis=0) for kept in side]
                        for side in (self.keys, self.values))
        return Source(keys, values, self.visible[prompts])


class CachedAttention:
    """Attention of one new token a row over its prompt's source and over what its layer's cache still holds.

    Rows stand prompt by prompt, ``samples`` rows each, filled up with unused rows to a multiple of :data:`ROW_BLOCK`;
    with ``samples`` None there is one row a prompt, and always will be, so a prompt's rows need no filling up.
    Set ``step`` before each pass through the stack. Raises ShapeError when the rows are not those it was made for.
    """

    def __init__(self, source: Source, caches: list[SlotCache], patterns: list[Pattern], layout: Layout, window: int,
                 samples: int | None = None):
        self.source, self.caches, self.patterns, self.samples = source, caches, patterns, samples
        self.layout, self.window = layout, window
        self.rows = source.prompts * (samples or 1)
        self.padded_rows = _whole_blocks(self.rows)
        self.step = 0
        self._source_mask = additive(np.repeat(source.visible, samples or 1, axis=0)[:, None, None])  # [R, 1, 1, L]
        self._masks: dict[Pattern, tuple[int, Tensor]] = {}

    def nbytes(self) -> int:
        """Bytes of all layers' caches, without the source."""
        return sum(cache.nbytes() for cache in self.caches)

    def pad(self, x: Tensor) -> Tensor:
        """Fill x [R, …] up to the padded number of rows."""
        return _fill(x, 0, self.padded_rows)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Packed qkv [padded R, 1, 3, N, H] → [padded R, 1, N, H]."""
        rows, tokens = qkv.shape[:2]
        if (rows, tokens) != (self.padded_rows, 1):
            raise ShapeError(f"the cache decodes 1 token of {self.padded_rows} rows, but got {tokens} of {rows}")
        q, k, v = paddle.unbind(qkv[:self.rows], axis=2)
        cache = self.caches[layer]
        cache.write(self.step, k, v)
        keys, values = cache.view(self.step)
        rows, _, heads, width = q.shape
        q = (q * (1 / math.sqrt(width))).reshape([rows, heads, 1, width])
        scores = paddle.concat([self._from_source(q, self.source.keys[layer], transpose=True),
                                functional.matmul(q, keys, transpose_y=True)], axis=-1)  # [R, N, 1, L + W]
        weights = functional.softmax(scores + self._mask(self.patterns[layer], cache))
        on_source, on_target = paddle.split(weights, [self.source.visible.shape[1], keys.shape[2]], axis=-1)
        out = self._from_source(on_source, self.source.values[layer]) + functional.matmul(on_target, values)
        return self.pad(out.reshape([rows, 1, heads, width]))

    def _from_source(self, x: Tensor, kept: Tensor, transpose: bool = False) -> Tensor:
        """x [R, N, 1, X] times each row's own prompt's keys (transposed) or values [P, N, L, H] → [R, N, 1, ·].

        The samples of a prompt form one matrix, so that its source is read once for all of them.
        """
        if self.samples is None:
            return functional.matmul(x, kept, transpose_y=transpose)
        rows, heads, _, width = x.shape
        x = x.reshape([-1, self.samples, heads, width]).transpose([0, 2, 1, 3])
        x = _fill(x, 2, _whole_blocks(self.samples))  # [P, N, S, X]
        y = functional.matmul(x, kept, transpose_y=transpose)[:, :, :self.samples]
        return y.transpose([0, 2, 1, 3]).reshape([rows, heads, 1, y.shape[-1]])

    def _mask(self, pattern: Pattern, cache: SlotCache) -> Tensor:
        """What to add to scores [R, N, 1, L + W] at this step; built by the first layer of a pattern."""
        step, mask = self._masks.get(pattern, (-1, None))
        if step != self.step:
            held = cache.held(self.step)
            rule = image_rule(pattern, Role.TARGET, np.int64(self.step), held, self.layout.columns, self.window)
            seen = (held >= 0) & rule
            target = paddle.expand(additive(seen.reshape([1, 1, 1, -1])), [self.rows, 1, 1, -1])
            mask = paddle.concat([self._source_mask, target], axis=-1)
            self._masks[pattern] = (self.step, mask)
        return mask


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
    window, rows = model.config.conv_window, source.prompts * samples
    caches = [slot_cache(pattern, rows, model.layout, window) for pattern in model.patterns]
    return CachedAttention(source, caches, model.patterns, model.layout, window, samples)


def text_attention(model: BidirectionalTransformer, source: Source, steps: int) -> CachedAttention:
    """Caches for writing a text of at most ``steps`` tokens about every picture of a source."""
    caches = [DenseCache(source.prompts, steps) for _ in model.patterns]
    return CachedAttention(source, caches, [Pattern.DENSE] * len(caches), model.layout, model.config.conv_window)


def decode_step(model: BidirectionalTransformer, attention: CachedAttention, step: int, x: Tensor) -> Tensor:
    """Embeddings of one token a row [R, D] → hidden vectors after the final normalisation [R, D]."""
    attention.step = step
    return model.norm(model.stack(attention.pad(x).unsqueeze(1), attention)).squeeze(1)[:attention.rows]


def _whole_blocks(rows: int) -> int:
    return -(-rows // ROW_BLOCK) * ROW_BLOCK


def _fill(x: Tensor, axis: int, size: int) -> Tensor:
    """Fill ``axis`` of x up to ``size`` with zeros."""
    shape = x.shape
    if shape[axis] == size:
        return x
    shape[axis] = size - shape[axis]
    return paddle.concat([x, paddle.zeros(shape, x.dtype)], axis=axis)


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
