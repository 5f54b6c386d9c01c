import numpy as np
import paddle
import pytest

from vilg.nn.attention.dense import StreamContext
from vilg.nn.attention.patterns import Layout, Role, layer_patterns
from vilg.nn.transformer import Block, Stack, StreamAttention

LAYOUT = Layout(text=3, rows=4, columns=3)


def stream(role: Role, lengths: list[int], prefixes: list[int]) -> StreamContext:
    return StreamContext(LAYOUT, role, paddle.to_tensor(lengths), paddle.to_tensor(prefixes))


@pytest.mark.parametrize("sparse", [False, True])
def test_streams_along_the_batch_equal_streams_one_by_one(sparse):
    paddle.seed(0)
    stack = Stack(3, 16, 2)
    patterns = layer_patterns(3, sparse)
    contexts = [stream(Role.TARGET, [3, 2], [0, 0]), stream(Role.SOURCE, [3, 1], [1, 0])]
    x = paddle.randn([4, LAYOUT.length, 16])
    together = stack(x, StreamAttention(contexts, patterns)).numpy()
    apart = [stack(part, StreamAttention([context], patterns)).numpy() for part, context in zip(x.split(2), contexts)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


def test_block_is_two_residual_branches():
    paddle.seed(0)
    block = Block(0, 1, width=8, heads=2, mlp_ratio=4, dropout=0.0)
    x = paddle.randn([2, 5, 8])
    for branch in (block.proj, block.fc2):
        branch.weight.set_value(paddle.zeros_like(branch.weight))
    np.testing.assert_array_equal(block(x, lambda layer, qkv: qkv[:, :, 2]).numpy(), x.numpy())


def test_dropout_works_in_training_alone():
    paddle.seed(0)
    block = Block(0, 1, width=8, heads=2, mlp_ratio=4, dropout=0.5)
    x = paddle.randn([2, 5, 8])
    run = lambda: block(x, lambda layer, qkv: qkv[:, :, 2]).numpy()
    assert not np.array_equal(run(), run())
    block.eval()
    np.testing.assert_array_equal(run(), run())
