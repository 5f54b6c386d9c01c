"""The fast path's modes: bf16 products, packed products, several threads, the self-test's veto, data parallelism."""
import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from vilg.kernels.onednn import library, matmul, precision, selftest, switch
from vilg.kernels.onednn.library import BF16, F32
from vilg.kernels.onednn.packed import PackedProduct
from vilg.nn import functional
from vilg.tokenizers.image.kinds import build_image_tokenizer
from vilg.tokenizers.image.quantize import QuantizerConfig
from vilg.tokenizers.image.vqvae import VQConfig

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
    (functional.linear, [(3, 200, 64), (64, 96), (96,)]),
    (functional.linear_after_gelu, [(3, 40, 64), (64, 96), (96,)]),
    (functional.linear_after_gelu, [(3, 200, 64), (64, 96), (96,)]),
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


def test_full_precision_holds_inside_its_context_alone(bf16):
    x, y = random(33, 70), random(70, 50)
    rounded = functional.matmul(x, y)
    with functional.full_precision():
        exact = functional.matmul(x, y)
    assert close(exact, x @ y, 1e-6)
    assert bool((functional.matmul(x, y) == rounded).all())
    if precision.bf16_method() == "cast":
        assert not bool((rounded == exact).all())


def test_full_precision_is_a_matter_of_one_thread(bf16):
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with functional.full_precision():
            seen.append(precision.gains())
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with functional.full_precision():  # entered second, left first
        pass
    here = precision.gains()
    leave.set()
    thread.join()
    assert here and seen == [False] and precision.gains()


def test_the_codes_of_a_picture_do_not_depend_on_the_precision(bf16):
    config = VQConfig(kind="vqvae", image_size=64, patch=4, channels=16, multipliers=[1, 2], blocks=1, decoder_blocks=1,
                      attention_resolutions=[], norm_groups=4, z_channels=16, code_dim=8,
                      quantizer=QuantizerConfig(codebook_size=512))
    tokenizer = build_image_tokenizer(config)
    tokenizer.eval()
    pictures = random(8, 3, 64, 64)
    tokenizer.quantizer.codebook.set_value(tokenizer.vectors(pictures).transpose([0, 2, 3, 1]).reshape([512, 8]))
    codes = tokenizer.encode(pictures + 0.01)
    precision.use_bf16(False)
    assert bool((codes == tokenizer.encode(pictures + 0.01)).all())


@pytest.mark.parametrize("rows, inputs, outputs", [(1, 48, 80), (8, 40, 33), (40, 64, 96)])
@pytest.mark.parametrize("dtype, bound", [(F32, 1e-6), (BF16, BF16_BOUND)])
def test_packed_products_with_what_follows_them(rows, inputs, outputs, dtype, bound):
    if dtype == BF16 and precision.bf16_method() == "none":
        pytest.skip("this CPU has no bf16 arithmetic")
    x, w, b, there = random(rows, inputs), random(inputs, outputs), random(outputs), random(rows, outputs)
    source = matmul.to_bf16(x) if dtype == BF16 else x
    plain = paddle.matmul(x, w) + b
    for after, expected in ((), plain), ((precision.gelu_step(),), F.gelu(plain)), ((precision.sum_step(),),
                                                                                    there + plain):
        product, result = PackedProduct(rows, inputs, outputs, True, dtype, after), there.detach().clone()
        weights = paddle.zeros([product.size // 4 + 1])
        product.pack(w.data_ptr(), weights.data_ptr())
        library.run([product.run.at(source.data_ptr(), weights.data_ptr(), result.data_ptr(), b.data_ptr())])
        assert close(result, expected, bound)


def test_threads_do_not_mix_their_operands():
    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(40):
            a, b = (generator.standard_normal(shape, dtype="float32") for shape in ((16, 24), (24, 16)))
            x, w = (paddle.to_tensor(value, stop_gradient=False) for value in (a, b))
            y = functional.linear(x, w)
            y.backward(paddle.ones(y.shape))
            np.testing.assert_allclose(y.numpy(), a @ b, atol=1e-4)
            np.testing.assert_allclose(x.grad.numpy(), [b.sum(1)] * 16, atol=1e-4)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


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


@pytest.mark.parametrize("seed", [0, 10, 130, 306])
def test_the_selftest_does_not_depend_on_its_numbers(monkeypatch, seed):
    # Stock Paddle's group_norm in float32 is off by more than 1e-4 for these.
    generator = np.random.default_rng(seed)
    monkeypatch.setattr(np.random, "default_rng", lambda _: generator)
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
    code = "import vilg; from vilg.kernels.onednn import switch; print(switch.active(), switch.reason())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "VILG_ONEDNN": "0"},
                          capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False turned off (VILG_ONEDNN=0")


def test_a_gradient_is_rounded_as_its_forward_was(bf16):
    x, w = (paddle.randn(shape) for shape in ([24, 32], [32, 16]))
    for tensor in (x, w):
        tensor.stop_gradient = False
    for function in (functional.linear, functional.matmul):
        inside, outside = [], []
        for context, found in ((functional.full_precision(), inside), (contextlib.nullcontext(), outside)):
            y = function(x, w)
            with context:
                found += paddle.grad([y.sum()], [x, w])
        for one, other in zip(inside, outside):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_stock_operators_of_two_threads_may_overlap():
    first, second = functional.stock_operators(), functional.stock_operators()
    before = switch.active()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not switch.active()
    second.__exit__(None, None, None)
    assert switch.active() == before
