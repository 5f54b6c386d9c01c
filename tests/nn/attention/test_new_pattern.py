"""A new pattern needs no other file: written here, it trains block-wise, decodes cached and equals its reference."""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import paddle
import pytest

from vilg.generation.autoregressive import generate_images
from vilg.generation.decoding.caches import LayerCache
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.nn.attention.blocks.layout import block_layout
from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import MASKED, SOURCE, TARGET, Groups, Layout, Pattern
from vilg.nn.attention.slots import Ring
from vilg.nn.attention.sparse import stream_attention
from vilg.nn.functional import stock_operators


@dataclass(frozen=True)
class Combs:
    """One ring for every remainder of a token's number by ``stride``."""

    ring: Ring
    count: int

    @property
    def steps(self) -> int:
        return self.ring.steps

    @property
    def entries(self) -> int:
        return self.ring.entries

    def place(self, step: int) -> tuple[int, int]:
        return step % self.count, self.ring.place(step // self.count)[1]

    def near(self, step: int) -> slice:
        return self.ring.near(step // self.count)

    def held(self, step: int) -> np.ndarray:
        return self.ring.held(step // self.count) * self.count + step % self.count

    def phase(self, step: int) -> int:
        return self.ring.phase(step // self.count)


@dataclass(frozen=True)
class DilatedRow(Pattern):
    """Every ``stride``-th slot at most a row away."""

    name: ClassVar[str] = "dilated row"
    stride: int = 2

    def near(self, query, key, layout):
        return (np.abs(query - key) <= layout.columns) & ((query - key) % self.stride == 0)

    def groups(self, layout):
        return Groups(layout.rows, layout.columns, reach=1)

    def slots(self, layout):
        return Combs(Ring(layout.image, layout.columns // self.stride + 1), self.stride)


@dataclass(frozen=True)
class Chequers(Pattern):
    """The squares of the same colour: a pattern that says nothing but who sees whom."""

    name: ClassVar[str] = "chequers"

    def near(self, query, key, layout):
        colours = [slot // layout.columns + slot % layout.columns for slot in (query, key)]
        return (colours[0] - colours[1]) % 2 == 0


every_pattern = pytest.mark.parametrize("pattern", [DilatedRow(), DilatedRow(3), Chequers()], ids=str)


def outcome(attend, qkv):
    qkv = paddle.to_tensor(qkv, stop_gradient=False)
    out = attend(qkv)
    (out * paddle.to_tensor(np.cos(np.arange(out.size, dtype="float32")).reshape(out.shape))).sum().backward()
    return out.numpy(), qkv.grad.numpy()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("role", [TARGET, SOURCE, MASKED], ids=lambda role: role.name)
@every_pattern
def test_it_trains_in_blocks_as_its_dense_reference_does(pattern, role, fast):
    layout = Layout(4, 6, 5)
    context = StreamContext(layout, role, paddle.to_tensor([4, 2]), paddle.to_tensor([2, 0]))
    qkv = np.random.default_rng(0).standard_normal((2, layout.length, 3, 2, 4)).astype("float32")
    expected = outcome(lambda x: dense_attention(*paddle.unbind(x, axis=2), context, pattern), qkv)
    if fast:
        mine = outcome(lambda x: stream_attention(x, [context], pattern), qkv)
    else:
        with stock_operators():
            mine = outcome(lambda x: stream_attention(x, [context], pattern), qkv)
    for got, wanted in zip(mine, expected):
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)


def test_its_blocks_are_small():
    layout = Layout(4, 6, 5)
    assert block_layout(DilatedRow(), TARGET, layout).keys == 4 + 2 * 5 < layout.length


@every_pattern
def test_its_caches_hold_what_it_sees(pattern):
    layout = Layout(0, 6, 5)
    cache, tokens = LayerCache(pattern, layout), np.arange(layout.image)
    for step in tokens:
        seen = cache.slots.held(step)[cache.seen(step)]
        assert sorted(seen) == tokens[pattern.sees(step, tokens, layout, TARGET)].tolist()


@every_pattern
def test_it_decodes_cached_as_the_full_forward_does(pattern):
    paddle.seed(0)
    model = BidirectionalTransformer(BidirectionalConfig(
        layers=2, width=16, heads=2, vocab_size=20, codebook_size=12, text_length=5, rows=6, columns=5))
    model.patterns = [pattern] * 2
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    model.eval()
    text, length = paddle.to_tensor([[1, 4, 5, 6, 2], [1, 7, 2, 0, 0]]), paddle.to_tensor([5, 3])
    with paddle.no_grad():
        drawn = generate_images(model, text, length, seeds=3, keep_hidden="predicting")
        full = model.text_to_image_hidden(text, length, drawn.codes)
    np.testing.assert_allclose(drawn.hidden.numpy(), full.numpy(), atol=1e-5, rtol=1e-5)
