"""Cached decoding through the model's own blocks: the source once, then one token a step."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn.functional import embedding

from vilg.errors import ShapeError
from vilg.generation.decoding.caches import CachedAttention, LayerCache
from vilg.generation.decoding.compiled import CompiledStack, compilable
from vilg.kernels.onednn.switch import active
from vilg.models.bidirectional import BidirectionalTransformer, TextImageTransformer
from vilg.nn.attention.cached import Source
from vilg.nn.attention.cached_host import HostMaths
from vilg.nn.attention.patterns import Dense, Layout
from vilg.nn.layers import Linear


def image_attention(model: BidirectionalTransformer, source: Source, samples: int = 1,
                    layout: Layout | None = None) -> CachedAttention:
    """Caches for drawing ``samples`` pictures from every prompt of a text source, on the model's layout or another."""
    layout = model.layout if layout is None else layout
    return CachedAttention(source, [LayerCache(pattern, layout) for pattern in model.patterns], samples)


def text_attention(model: TextImageTransformer, source: Source, steps: int) -> CachedAttention:
    """Caches for writing a text of at most ``steps`` tokens about every picture of a source."""
    line = Layout(text=0, rows=1, columns=steps)
    return CachedAttention(source, [LayerCache(Dense(), line)] * len(model.patterns))


def is_compiled(model: TextImageTransformer, attention: CachedAttention) -> bool:
    """Is a step of the model beside these caches compiled?"""
    return (isinstance(attention.maths, HostMaths) and active() and not model.training
            and all(compilable(block.program) for block in model.stack.blocks))


class Decoder:
    """The steps of one generation: a token a row in, hidden vectors and logits out.

    ``head`` maps hidden vectors to logits; a row's input is its token's row of ``tokens`` [V, D] plus its place's row
    of ``places`` [n, D]. On a CPU a step is compiled (:mod:`vilg.generation.decoding.compiled`) from the weights as
    they are.
    """

    def __init__(self, model: TextImageTransformer, attention: CachedAttention, head: Linear, tokens: Tensor,
                 places: Tensor):
        self.attention, self._model, self._head = attention, model, head
        self._compiled: CompiledStack | None = None
        if is_compiled(model, attention):
            self._compiled = CompiledStack(model.stack, model.norm, attention.maths.qkv, attention.maths.attended,
                                           attention.rows, attention.source.in_half)
            tokens, places = tokens.numpy(), places.numpy()
        self._tables = tokens, places
        self._hidden = paddle.zeros([0, model.config.width])

    def embed(self, tokens: np.ndarray | Tensor, places: np.ndarray | Tensor) -> Any:
        """Tokens and their places, integers [R] each → what :meth:`step` takes."""
        if self._compiled is not None:
            return self._tables[0][tokens] + self._tables[1][places]
        ids = (each if isinstance(each, Tensor) else paddle.to_tensor(each) for each in (tokens, places))
        return sum(embedding(each, table) for each, table in zip(ids, self._tables))

    def step(self, number: int, x: Any) -> None:
        """Pass token ``number`` through the stack, as :meth:`embed` gives it or a Tensor: [R, D], or [1, D] for all.

        Raises ShapeError for another number of rows, and when the caches have no place for the token.
        """
        attention = self.attention
        if x.shape[0] not in (1, attention.rows):
            raise ShapeError(f"the caches were made for {attention.rows} rows, but {x.shape[0]} came")
        attention.step = number
        if self._compiled is None:
            x = attention.pad(paddle.expand(x, [attention.rows, -1])).unsqueeze(1)
            self._hidden = self._model.norm(self._model.stack(x, attention)).squeeze(1)
            return
        into = self._compiled.x
        into[:attention.rows], into[attention.rows:] = x.numpy() if isinstance(x, Tensor) else x, 0
        self._compiled(attention.attend_buffers)

    def hidden(self) -> Tensor:
        """The last step's vectors after the final normalisation: [R, D]."""
        rows = self.attention.rows
        return self._hidden[:rows] if self._compiled is None else paddle.to_tensor(self._compiled.hidden[:rows])

    def logits(self) -> np.ndarray:
        """The last step's logits, float32 [R, V]; the next call may write to the same memory."""
        rows = self.attention.rows
        if self._compiled is not None:
            return self._compiled.project(self._head)[:rows]
        return self.device_logits().numpy()

    def device_logits(self) -> Tensor:
        """The same where the model is; of a step that is not compiled."""
        return self._head(self._hidden[:self.attention.rows]).astype("float32")


def image_decoder(model: BidirectionalTransformer, source: Source, samples: int = 1,
                  layout: Layout | None = None) -> Decoder:
    """Draws ``samples`` pictures from every prompt of a text source, in raster order."""
    attention = image_attention(model, source, samples, layout)
    return Decoder(model, attention, model.image_head, model.image_embedding.weight, model.image_positions())


def text_decoder(model: TextImageTransformer, source: Source, steps: int) -> Decoder:
    """Writes at most ``steps`` tokens about every picture of a source."""
    attention = text_attention(model, source, steps)
    return Decoder(model, attention, model.text_head, model.text_embedding.weight, model.text_position.weight)


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
