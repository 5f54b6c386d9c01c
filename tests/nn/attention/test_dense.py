import numpy as np
import paddle
import pytest

from vilg.errors import ShapeError
from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import MASKED, SOURCE, TARGET, Column, Convolution, Dense, Layout, Role, Row, dense_mask

LAYOUT = Layout(text=3, rows=2, columns=3)


def context(role: Role) -> StreamContext:
    return StreamContext(LAYOUT, role, paddle.to_tensor([3, 1]), paddle.to_tensor([2, 0]))


@pytest.mark.parametrize("role", [TARGET, SOURCE, MASKED], ids=lambda role: role.name)
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(3)], ids=lambda pattern: pattern.name)
def test_dense_attention_is_a_masked_mean_of_values(role, pattern):
    paddle.seed(0)
    q, k, v = (paddle.randn([2, LAYOUT.length, 2, 4]) for _ in range(3))
    out = dense_attention(q, k, v, context(role), pattern).numpy()
    mask = dense_mask(LAYOUT, role, pattern, [3, 1], [2, 0])
    for b, i, h in np.ndindex(2, LAYOUT.length, 2):
        seen = np.flatnonzero(mask[b, i])
        scores = k.numpy()[b, seen, h] @ q.numpy()[b, i, h] / 2
        weights = np.exp(scores - scores.max())
        np.testing.assert_allclose(out[b, i, h], weights @ v.numpy()[b, seen, h] / weights.sum(), atol=1e-5)


def test_masks_are_built_once_a_step():
    shared, built = context(TARGET), []
    for _ in range(3):
        shared.once("key", lambda: built.append(1))
    assert built == [1]


def test_dropout_leaves_the_mean_alone():
    paddle.seed(0)
    q, v = paddle.zeros([2, LAYOUT.length, 1, 4]), paddle.ones([2, LAYOUT.length, 1, 4])
    draws = [dense_attention(q, q, v, context(SOURCE), Dense(), dropout=0.5).numpy() for _ in range(200)]
    assert np.std(draws) > 0.1
    np.testing.assert_allclose(np.mean(draws), 1, atol=0.05)


def test_a_stream_of_another_shape_is_refused_with_both_numbers():
    x = paddle.zeros([2, 8, 1, 4])
    with pytest.raises(ShapeError, match=r"8 slots .* 9 \(3 text \+ 2×3 image\)"):
        dense_attention(x, x, x, context(TARGET), Row())
    x = paddle.zeros([5, 9, 1, 4])
    with pytest.raises(ShapeError, match="batch of 5 .* made for 2"):
        dense_attention(x, x, x, context(TARGET), Row())
