"""Full attention of packed queries, keys and values against its definition, forward and backward."""
import numpy as np
import paddle
import pytest

from vilg.kernels.onednn import precision
from vilg.nn import functional
from vilg.nn.attention import packed
from vilg.nn.attention.packed import HiddenKeys, packed_attention

SHAPE = (3, 7, 3, 2, 8)  # [B, L, 3, N, H]


def given(seed=0):
    random = np.random.default_rng(seed)
    qkv = paddle.to_tensor(random.standard_normal(SHAPE).astype("float32"), stop_gradient=False)
    return qkv, paddle.to_tensor([[0.0] * 7, [0.0] * 5 + [-1e4] * 2, [0.0] * 2 + [-1e4] * 5])


def defined(qkv: np.ndarray, rows: int, added: np.ndarray | None) -> np.ndarray:
    q, k, v = qkv[:, :rows, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = np.einsum("brnh,blnh->bnrl", q, k) / np.sqrt(qkv.shape[-1])
    scores = scores if added is None else scores + added[:, None, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnrl,blnh->brnh", weights / weights.sum(-1, keepdims=True), v)


def outcome(rows, masked, dropout=0.0):
    qkv, added = given()
    out = packed_attention(qkv, rows, HiddenKeys(added) if masked else None, dropout)
    incoming = np.cos(np.arange(out.size)).reshape(out.shape).astype("float32")
    out.backward(paddle.to_tensor(incoming))
    return out.numpy(), qkv.grad.numpy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_it_is_the_weighted_mean_of_values(rows, masked):
    qkv, added = given()
    expected = defined(qkv.numpy().astype("float64"), rows, added.numpy().astype("float64") if masked else None)
    np.testing.assert_allclose(outcome(rows, masked)[0], expected, atol=1e-6)
    with paddle.no_grad():
        plain = packed_attention(qkv, rows, HiddenKeys(added) if masked else None)
    np.testing.assert_allclose(plain.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [2, 5, 7])
def test_gradients_are_those_of_stock_operators(rows, masked):
    mine = outcome(rows, masked)
    with functional.stock_operators():
        stock = outcome(rows, masked)
    for one, other in zip(mine, stock):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_what_is_hidden_gets_no_gradient_and_the_rest_does():
    gradient = outcome(7, True)[1]
    assert not gradient[1, 5:, 1:].any() and not gradient[2, 2:, 1:].any(), "keys and values of padding"
    assert gradient[1, :5].any(-1).all() and gradient[2, :2].any(-1).all()


def test_a_mask_that_hides_nothing_is_none():
    assert HiddenKeys(paddle.zeros([2, 4])).rows is None and HiddenKeys(paddle.full([2, 4], -1.0)).rows is not None


def test_dropout_leaves_the_mean_and_its_gradient_is_of_the_same_draw():
    paddle.seed(3)
    qkv = paddle.to_tensor(np.zeros(SHAPE, "float32"), stop_gradient=False)  # all weights are 1/7
    with paddle.no_grad():
        qkv[:, :, 2] = 1.0
    draws = []
    for _ in range(200):
        out = packed_attention(qkv, 7, None, 0.5)  # of ones: the sum of what dropout left
        out.sum().backward()
        heads = qkv.grad.numpy()[:, :, 2].sum((1, 3)) / SHAPE[-1]  # Σ of the weights that were used, by head
        np.testing.assert_allclose(heads, out.numpy()[..., 0].sum(1), rtol=1e-5)
        qkv.clear_gradient()
        draws.append(out.numpy())
    assert np.std(draws) > 0.1
    np.testing.assert_allclose(np.mean(draws), 1, atol=0.05)


def test_gradients_under_dropout_are_those_of_the_weights_that_were_used(monkeypatch):
    without = outcome(7, True)[1]
    factors = paddle.to_tensor(np.random.default_rng(5).choice([0.0, 2.0], [3, 2, 7, 7]).astype("float32"))
    monkeypatch.setattr(packed, "dropped", lambda weights, rate: (weights * factors, factors))
    monkeypatch.setattr(packed.F, "dropout", lambda weights, rate: weights * factors)
    mine = outcome(7, True, 0.5)
    with functional.stock_operators():
        stock = outcome(7, True, 0.5)
    for one, other in zip(mine, stock):
        np.testing.assert_allclose(one, other, atol=2e-6)
    assert np.abs(mine[1] - without).max() > 0.1


def test_second_derivatives_are_refused():
    qkv, _ = given()
    if not packed.usable(qkv):
        pytest.skip("stock operators have them")
    with pytest.raises(Exception, match="no second derivatives"):  # as Paddle passes it on
        paddle.grad([packed_attention(qkv, 7).sum()], [qkv], create_graph=True)


def test_bf16_products_are_near():
    exact = outcome(7, True)
    precision.use_bf16(True)
    try:
        rounded = outcome(7, True)
    finally:
        precision.use_bf16(False)
    for one, other in zip(rounded, exact):
        np.testing.assert_allclose(one, other, atol=0.05)
