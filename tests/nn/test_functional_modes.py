"""The fast path's modes: bf16 products, packed weights, several threads, the self-test's veto, data parallelism."""
import os
import subprocess
import sys
import threading

import numpy as np
import paddle
import pytest

from vilg.nn import functional
from vilg.nn.onednn import library, matmul, precision, selftest, switch

BF16_BOUND = 8e-3
"""Error of bf16 products relative to the largest value: two factors rounded to 8 bits, sums in float32."""

pytestmark = pytest.mark.skipif(not switch.active(), reason="the fast path is off")


@pytest.fixture
def bf16():
    if precision.bf16_method() == "none":
        pytest.skip("this CPU has no bf16 arithmetic")
    precision.use_bf16(True)
    yield
    precision.use_bf16(False)


def random(*shape) -> paddle.Tensor:
    values = np.random.default_rng(sum(shape)).standard_normal(shape, dtype="float32")
    return paddle.to_tensor(values, stop_gradient=False)


def close(mine: paddle.Tensor, theirs: paddle.Tensor, bound: float) -> bool:
    return float((mine - theirs).abs().max()) <= bound * float(theirs.abs().max())


@pytest.mark.parametrize("function, arguments", [
    (functional.linear, [(3, 40, 64), (64, 96), (96,)]),
    (functional.matmul, [(4, 40, 64), (4, 64, 33)]),
    (lambda x, w, b: functional.conv2d(x, w, b, 1, 1), [(2, 16, 9, 8), (32, 16, 3, 3), (32,)]),
    (lambda x, w, b: functional.linear_cross_entropy(x, w, b, paddle.arange(7)), [(7, 64), (64, 300), (300,)]),
])
def test_bf16_products_stay_within_the_bound(bf16, function, arguments):
    arguments = [random(*shape) for shape in arguments]
    rounded = function(*arguments)
    assert rounded.dtype == paddle.float32
    incoming = paddle.cos(paddle.arange(rounded.size, dtype="float32")).reshape(rounded.shape)
    gradients = paddle.grad([rounded], arguments, [incoming])
    precision.use_bf16(False)
    exact = function(*arguments)
    assert close(rounded, exact, BF16_BOUND)
    if precision.bf16_method() == "cast":
        assert not bool((rounded == exact).all()), "nothing was computed in bf16"
    for mine, theirs in zip(gradients, paddle.grad([exact], arguments, [incoming])):
        assert close(mine, theirs, BF16_BOUND)


@pytest.mark.parametrize("rows", [1, 8, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same(rows, bias):
    x, w, b = random(rows, 1, 48), random(48, 80), random(80) if bias else None
    with paddle.no_grad():
        expected = functional.linear(x, w, b)
        with functional.packed_weights():
            for _ in range(2):
                np.testing.assert_allclose(functional.linear(x, w, b).numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
        w.set_value(np.zeros([48, 80], "float32"))
        with functional.packed_weights():
            changed = functional.linear(x, w, b)
        np.testing.assert_array_equal(changed.numpy(), 0.0 * expected.numpy() + (b.numpy() if bias else 0.0))


def test_packed_weights_in_bf16(bf16):
    x, w = random(8, 64), random(64, 96)
    with paddle.no_grad(), functional.packed_weights():
        assert close(functional.linear(x, w), paddle.matmul(x, w), BF16_BOUND)


def test_packing_leaves_recorded_maps_alone():
    x, w = random(4, 16), random(16, 8)
    with functional.packed_weights():
        y = functional.linear(x, w)
    y.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), x.numpy().sum(0)[:, None].repeat(8, 1), rtol=1e-5, atol=1e-5)


def test_threads_do_not_mix_their_operands():
    shapes, failures = [(16, 24), (24, 16)], []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(40):
            a, b = (generator.standard_normal(shape, dtype="float32") for shape in shapes)
            x, w = (paddle.to_tensor(value, stop_gradient=False) for value in (a, b))
            y = functional.linear(x, w)
            y.backward(paddle.ones(y.shape))
            good = np.allclose(y.numpy(), a @ b, atol=1e-4) and np.allclose(x.grad.numpy(), [b.sum(1)] * 16, atol=1e-4)
            if not good:
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_cache_of_primitives_is_bounded():
    cache = library.Cache(bound=3)
    for size in (1, 2, 3, 1, 4):
        assert cache.get((size,), lambda size: size * 10) == size * 10
    assert len(cache) == 3
    built = []
    for size in (1, 3, 4, 2):
        cache.get((size,), lambda size: built.append(size) or size)
    assert built == [2]


def test_a_wrong_library_is_found_out(monkeypatch):
    monkeypatch.setattr(matmul, "_multiply", lambda out, *_, **__: None)
    with pytest.raises(library.Unavailable, match="linear differs from stock Paddle"):
        selftest.run()


def test_a_failing_selftest_means_stock_operators(monkeypatch, caplog):
    def fail():
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(selftest, "run", fail)
    switch.allow(True)
    try:
        with caplog.at_level("DEBUG", logger="vilg.onednn"):
            assert not switch.active()
        assert [record.levelname for record in caplog.records] == ["DEBUG"]
        assert "illegal instruction" in switch.reason()
        y = functional.linear(random(3, 4), random(4, 5))
        assert y.shape == [3, 5]
    finally:
        monkeypatch.undo()
        switch.allow(True)
    assert switch.active()


def test_the_environment_turns_it_off():
    code = "import vilg; from vilg.nn.onednn import switch; print(switch.active(), switch.reason())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "VILG_ONEDNN": "0"},
                          capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False turned off (VILG_ONEDNN=0")
