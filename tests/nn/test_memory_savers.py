"""What devices compute twice: values and gradients are those of the operators that keep everything."""
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from vilg.nn import functional, memory_savers


def tensors(*shapes):
    random = np.random.default_rng(0)
    values = [paddle.to_tensor(random.normal(size=shape).astype("float32")) for shape in shapes]
    for value in values:
        value.stop_gradient = False
    return values


def assert_alike(ours, stock, operands):
    weight = paddle.to_tensor(np.random.default_rng(1).normal(size=ours().shape).astype("float32"))
    found = [ours(), *paddle.grad([(ours() * weight).sum()], operands)]
    wanted = [stock(), *paddle.grad([(stock() * weight).sum()], operands)]
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("biased", [True, False])
def test_a_map_after_a_gelu_is_the_same_with_less_kept(biased):
    x, weight, bias = tensors([2, 5, 7], [7, 3], [3])
    bias, operands = (bias, [x, weight, bias]) if biased else (None, [x, weight])
    assert_alike(lambda: memory_savers.LinearAfterGelu.apply(x, weight, bias),
                 lambda: F.linear(F.gelu(x), weight, bias), operands)


@pytest.mark.parametrize("chunk", [13, 40, 2**26])
@pytest.mark.parametrize("biased", [True, False])
def test_chunked_cross_entropy_is_cross_entropy(monkeypatch, chunk, biased):
    monkeypatch.setattr(memory_savers, "CHUNK", chunk)
    x, weight, bias = tensors([11, 7], [7, 13], [13])
    bias, operands = (bias, [x, weight, bias]) if biased else (None, [x, weight])
    labels = paddle.to_tensor(np.array([0, 5, -100, 12, 3, 3, -100, 1, 2, 4, 6]))
    assert_alike(lambda: memory_savers.LinearCrossEntropy.apply(x, weight, bias, labels),
                 lambda: F.cross_entropy(F.linear(x, weight, bias), labels, reduction="none"), operands)


def test_the_cpu_and_float32_keep_their_own_ways(monkeypatch):
    x, weight, bias = tensors([4, 7], [7, 3], [3])
    monkeypatch.setattr(memory_savers.LinearAfterGelu, "apply", None)
    functional.linear_after_gelu(x, weight, bias)
    assert not functional._saves_memory(x.astype("bfloat16"), weight.astype("bfloat16"), None)
