import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from vilg.nn.attention.dense import StreamContext
from vilg.nn.attention.patterns import SOURCE, TARGET, Dense, Layout, Role, layer_patterns
from vilg.nn.program import Activation, Add, Attend, Fork, Map, Norm, pre_norm
from vilg.nn.transformer import Block, Stack, StreamAttention

LAYOUT = Layout(text=3, rows=4, columns=3)


def stream(role: Role, lengths: list[int], prefixes: list[int]) -> StreamContext:
    return StreamContext(LAYOUT, role, paddle.to_tensor(lengths), paddle.to_tensor(prefixes))


@pytest.mark.parametrize("sparse", [False, True])
def test_streams_along_the_batch_equal_streams_one_by_one(sparse):
    paddle.seed(0)
    stack = Stack(3, pre_norm(16, 2))
    patterns = layer_patterns(3) if sparse else [Dense()] * 3
    contexts = [stream(TARGET, [3, 2], [0, 0]), stream(SOURCE, [3, 1], [1, 0])]
    x = paddle.randn([4, LAYOUT.length, 16])
    together = stack(x, StreamAttention(contexts, patterns)).numpy()
    apart = [stack(part, StreamAttention([context], patterns)).numpy() for part, context in zip(x.split(2), contexts)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


def test_block_is_two_residual_branches():
    paddle.seed(0)
    block = Block(0, 1, pre_norm(8, 2))
    x = paddle.randn([2, 5, 8])
    for branch in (block.proj, block.fc2):
        branch.weight.set_value(paddle.zeros_like(branch.weight))
    np.testing.assert_array_equal(block(x, lambda layer, qkv: qkv[:, :, 2]).numpy(), x.numpy())


def test_dropout_works_in_training_alone():
    paddle.seed(0)
    block = Block(0, 1, pre_norm(8, 2), dropout=0.5)
    x = paddle.randn([2, 5, 8])
    run = lambda: block(x, lambda layer, qkv: qkv[:, :, 2]).numpy()
    assert not np.array_equal(run(), run())
    block.eval()
    np.testing.assert_array_equal(run(), run())


def post_norm(width: int, heads: int) -> tuple:
    """LN(x + Attention(x)), then LN(x + FFN(x)), as BERT and ERNIE have it."""
    return (Fork(), Map("qkv", width, 3 * width), Attend(heads, width), Map("proj", width, width), Add(),
            Norm("norm1", width, 1e-12),
            Fork(), Map("fc1", width, 2 * width), Activation("gelu", 2 * width), Map("fc2", 2 * width, width), Add(),
            Norm("norm2", width, 1e-12))


@pytest.mark.parametrize("post", [False, True])
def test_a_block_computes_what_its_program_says(post):
    paddle.seed(0)
    block = Block(0, 1, post_norm(8, 2) if post else pre_norm(8, 2, 2))
    for parameter in block.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    x = paddle.randn([2, 5, 8])

    def norm(layer, y):
        return F.layer_norm(y, [8], layer.weight, layer.bias, 1e-12 if post else 1e-5)

    def attention(y):
        return block.proj(paddle.tanh(block.qkv(y)[..., 16:]))  # values alone, bent

    def feed_forward(y):
        return F.linear(F.gelu(F.linear(y, block.fc1.weight, block.fc1.bias)), block.fc2.weight, block.fc2.bias)

    if post:
        y = norm(block.norm1, x + attention(x))
        expected = norm(block.norm2, y + feed_forward(y))
    else:
        y = x + attention(norm(block.norm1, x))
        expected = y + feed_forward(norm(block.norm2, y))
    got = block(x, lambda layer, qkv: paddle.tanh(qkv[:, :, 2]))
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-5)


def test_maps_into_the_residual_start_smaller_with_depth():
    paddle.seed(0)
    block = Block(0, 8, pre_norm(64, 2))
    spread = {name: float(getattr(block, name).weight.std()) for name in ("qkv", "proj", "fc1", "fc2")}
    assert spread == pytest.approx({"qkv": 0.02, "proj": 0.005, "fc1": 0.02, "fc2": 0.005}, rel=0.05)
