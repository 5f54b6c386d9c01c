"""Reconstruction losses against their formulas."""
import numpy as np
import paddle
import pytest

from vilg.errors import DataError
from vilg.losses.reconstruction import logit_laplace_loss, pixel_loss
from vilg.tokenizers.image.pixels import from_laplace, to_laplace

RNG = np.random.default_rng(0)


def test_pixel_loss_weighs_absolute_and_squared_distance():
    x, y = RNG.standard_normal((2, 2, 3, 4, 4)).astype("float32")
    for l1, l2 in ((1.0, 0.0), (0.0, 2.0), (0.5, 2.0)):
        expected = l1 * np.abs(x - y).mean() + l2 * ((x - y) ** 2).mean()
        assert float(pixel_loss(paddle.to_tensor(x), paddle.to_tensor(y), l1, l2)) == pytest.approx(expected, rel=1e-5)


def test_the_map_keeps_clear_of_zero_and_one_and_comes_back():
    x = paddle.linspace(-1, 1, 9)
    mapped = to_laplace(x).numpy()
    assert mapped.min() == pytest.approx(0.1) and mapped.max() == pytest.approx(0.9)
    np.testing.assert_allclose(from_laplace(paddle.to_tensor(mapped)).numpy(), x.numpy(), atol=1e-6)


@pytest.mark.parametrize("least", [0.0, 0.1, 2.0])
def test_logit_laplace_is_the_negative_log_density(least):
    x = RNG.uniform(0.1, 0.9, (2, 3, 4, 4)).astype("float32")
    raw = RNG.standard_normal((2, 6, 4, 4)).astype("float32")
    mean, scale = raw[:, :3].astype("float64"), np.exp(raw[:, 3:].astype("float64")) + least
    density = np.exp(-np.abs(np.log(x / (1 - x)) - mean) / scale) / (2 * scale * x * (1 - x))
    found = logit_laplace_loss(paddle.to_tensor(raw), paddle.to_tensor(x), least)
    assert float(found) == pytest.approx(-np.log(density).mean(), rel=1e-5)


def test_a_least_scale_bounds_the_gradient_of_a_sure_network():
    x = paddle.full([1, 3, 2, 2], 0.5)
    slopes = []
    for least in (0.0, 0.1):
        raw = paddle.full([1, 6, 2, 2], -20.0)  # b = e⁻²⁰
        raw[:, :3] = 0.01
        raw.stop_gradient = False
        logit_laplace_loss(raw, x, least).backward()
        slopes.append(float(raw.grad[:, :3].sum()))
    assert slopes[0] > 1e8 and slopes[1] == pytest.approx(10.0, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_values_outside_the_open_interval_are_refused(value):
    x = paddle.full([1, 3, 2, 2], 0.5)
    x[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"inside \(0, 1\).*to_laplace"):
        logit_laplace_loss(paddle.zeros([1, 6, 2, 2]), x)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"\[B, 6, H, W\]"):
        logit_laplace_loss(paddle.zeros([1, 3, 2, 2]), paddle.full([1, 3, 2, 2], 0.5))
