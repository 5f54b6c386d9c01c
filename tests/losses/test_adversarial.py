"""The patch adversary: its size, the hinge, and the adaptive weight against whole-graph gradients."""
import numpy as np
import paddle
import pytest

from vilg.losses.adversarial import (
    AdversaryConfig, PatchDiscriminator, adaptive_weight, hinge_discriminator_loss, hinge_generator_loss,
)
from vilg.nn.functional import stock_operators
from vilg.nn.layers import Conv2D


def test_the_discriminator_is_the_public_patchgan():
    layer = PatchDiscriminator(layers=3, channels=64)
    middle = (128 * 64 + 256 * 128 + 512 * 256) * 16 + 2 * (128 + 256 + 512)
    expected = (3 * 64 * 16 + 64) + middle + (512 * 16 + 1)
    assert sum(int(weight.size) for weight in layer.parameters() if not weight.stop_gradient) == expected
    assert layer(paddle.zeros([1, 3, 64, 64])).shape == [1, 1, 6, 6]
    assert float(layer.convolutions[2].weight.std()) == pytest.approx(0.02, rel=0.02)


def test_hinge_losses():
    real, fake = paddle.to_tensor([2.0, 0.5]), paddle.to_tensor([-3.0, 0.5])
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(0.5 * (0.25 + 0.75))
    assert float(hinge_generator_loss(fake)) == pytest.approx(1.25)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_weight():
    paddle.seed(0)
    body, last, critic = Conv2D(3, 8, 3, padding=1), Conv2D(8, 3, 3, padding=1), Conv2D(3, 1, 3)
    for weight in critic.parameters():
        weight.stop_gradient = True
    x = paddle.randn([2, 3, 8, 8])

    def losses() -> tuple:
        features = paddle.tanh(body(x))
        raw = last(features)
        return features, raw, (raw - x).abs().mean(), -critic(raw).mean()

    with stock_operators():
        *_, first, second = losses()
        gradients = [paddle.grad(loss, last.weight, retain_graph=True)[0].numpy() for loss in (first, second)]
    norms = [np.linalg.norm(gradient) for gradient in gradients]
    features, raw, first, second = losses()
    found = adaptive_weight(first, second, raw, features, last, [last.weight, last.bias])
    assert float(found) == pytest.approx(norms[0] / (norms[1] + 1e-4), rel=1e-4)
    assert found.stop_gradient
    (first + found * second).backward()
    assert body.weight.grad is not None, "the graph is still there for the step itself"


def test_the_adaptive_weight_is_clamped():
    last = Conv2D(2, 3, 1)
    features = paddle.ones([1, 2, 4, 4])
    raw = last(features)
    found = adaptive_weight(1e9 * raw.mean(), 0.0 * raw.mean(), raw, features, last, [last.weight, last.bias])
    assert float(found) == pytest.approx(1e4)


@pytest.mark.parametrize("settings", [{"layers": 0}, {"start_step": -1}, {"weight": -0.1}])
def test_contradictions_are_refused(settings):
    with pytest.raises(ValueError):
        AdversaryConfig(**settings)
