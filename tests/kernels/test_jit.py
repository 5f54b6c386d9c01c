"""Compiled loops against stock Paddle, and when they are loaded, refused and left out."""
import importlib.util
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from vilg.kernels.jit import elementwise, groups, rows, selftest, switch, team
from vilg.kernels.onednn import precision, switch as onednn
from vilg.kernels.onednn.elementwise import Softmax
from vilg.kernels.onednn.library import Unavailable
from vilg.kernels.onednn.norm import LayerNorm
from vilg.machine import process
from vilg.nn import functional

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed (the jit extra)"),
    pytest.mark.skipif(not onednn.active(), reason="the fast path is off"),
]
# Pictures, channels, sides, groups: vectors and rests, one channel a group, one group, one picture, more than a cache.
SHAPES = [(2, 9, (5, 3), 3), (3, 6, (7, 11), 6), (2, 8, (13, 16), 1), (1, 64, (16, 16), 32), (2, 6, (1, 1), 2),
          (2, 4, (400, 380), 2), (2, 6, (40,), 3), (1, 4, (3, 5, 7), 2)]


def random(*shape: int, seed: int = 0) -> paddle.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape, dtype="float32")
    return paddle.to_tensor(values, stop_gradient=False)


def gradients(function, arguments: list[paddle.Tensor]) -> list[np.ndarray]:
    y = function(*arguments)
    incoming = paddle.to_tensor(np.cos(np.arange(y.size)).reshape(y.shape)).astype(y.dtype)
    return [y.numpy(), *(g.numpy() for g in paddle.grad([y], arguments, [incoming]))]


def assert_same(function, stock, arguments: list[paddle.Tensor], tolerance: float = 1e-5) -> None:
    """Stock Paddle computes in float64: in float32 it is off by more than the tolerance itself."""
    exact = [x.detach().astype("float64") for x in arguments]
    for x in exact:
        x.stop_gradient = False
    for mine, theirs in zip(gradients(function, arguments), gradients(stock, exact), strict=True):
        assert mine.shape == theirs.shape and mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * max(1.0, np.abs(theirs).max()))


def stock_group_norm(x, count, weight, bias, epsilon, silu):
    y = F.group_norm(x, count, epsilon, weight, bias)
    return F.silu(y) if silu else y


@pytest.fixture
def anew():
    """The decision is made anew in the test, and again after it."""
    switch.allow(True)
    yield
    switch.allow(True)


def test_they_are_on():
    assert switch.active(), switch.reason()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("images, channels, sides, count", SHAPES)
def test_group_norm(images, channels, sides, count, silu, threads):
    before = process.threads()
    process.set_threads(threads)
    try:
        arguments = [random(images, channels, *sides), random(channels, seed=1), random(channels, seed=2)]
        assert_same(lambda x, w, b: groups.GroupNorm.apply(x * 3 + 5, count, w, b, 1e-6, silu),
                    lambda x, w, b: stock_group_norm(x * 3 + 5, count, w, b, 1e-6, silu), arguments, tolerance=2e-5)
        with paddle.no_grad():
            x, w, b = arguments
            plain = groups.group_norm(x, count, w, b, 1e-6, silu)
        np.testing.assert_array_equal(plain.numpy(), groups.GroupNorm.apply(x, count, w, b, 1e-6, silu).numpy())
    finally:
        process.set_threads(before)


def silu(x):
    return elementwise.Map.apply(x, elementwise.SILU)


def gelu(x):
    return elementwise.Map.apply(x, elementwise.GELU)


def quick_gelu(x):
    return elementwise.Map.apply(x, elementwise.QUICK_GELU)


def softmax(x):
    return Softmax.apply(x, rows.softmax, rows.softmax_gradient)


def layer_norm(x, weight, bias):
    return LayerNorm.apply(x, weight, bias, 1e-5, rows.normalise)


def stock_layer_norm(x, weight, bias):
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


@pytest.mark.parametrize("shape", [(1,), (17,), (3, 5, 7), (2, 130, 130)])
@pytest.mark.parametrize("mine, stock", [(silu, F.silu), (gelu, F.gelu),
                                         (quick_gelu, lambda x: x * F.sigmoid(1.702 * x))],
                         ids=["silu", "gelu", "quick gelu"])
def test_maps(mine, stock, shape):
    assert_same(mine, stock, [random(*shape) * 4])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (5, 43), (2, 3, 64), (301, 128), (3, 20_001)])
def test_rows(shape, threads):
    before = process.threads()
    process.set_threads(threads)
    try:
        assert_same(softmax, F.softmax, [random(*shape) * 3])
        vectors = [random(shape[-1], seed=1), random(shape[-1], seed=2)]
        # 1 / σ is up to 1 / √ε where a row has one value.
        assert_same(layer_norm, stock_layer_norm, [random(*shape) * 3 + 5, *vectors], 1e-5 if shape[-1] > 1 else 1e-4)
    finally:
        process.set_threads(before)


@pytest.mark.parametrize("threads", [1, 3, 5, 100])
def test_no_share_is_left_undone_where_fewer_threads_come_than_were_counted_on(monkeypatch, threads):
    monkeypatch.setattr(process, "threads", lambda: threads)
    for size in (1, 16_384, 100_000, 2_000_003):
        x = random(size).detach()
        np.testing.assert_allclose(elementwise.mapped(x, elementwise.GELU).numpy(), F.gelu(x).numpy(), atol=1e-6)
    x = random(3001, 70).detach()
    np.testing.assert_allclose(rows.softmax(x).numpy(), F.softmax(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 255), (4, 256), (9, 257), (1030, 600), (2, 5, 7)])
def test_sums_of_columns(shape, accumulate):
    x = random(*shape).detach()
    out = random(shape[-1], seed=1).detach()
    expected = x.numpy().reshape(-1, shape[-1]).sum(0, "float64") + (out.numpy() if accumulate else 0)
    rows.add_column_sums(out.data_ptr(), x, x.size // shape[-1], shape[-1], accumulate)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("first", [3.9, 1e2, -1e4, 1e6])
def test_layer_norm_of_rows_far_from_zero_or_from_their_first_value(first):
    values = np.random.default_rng(0).standard_normal((6, 512)).astype("float32")
    values[:, 0] = first
    values[3:, 1:] += np.float32(first)
    vectors = [paddle.ones([512]), paddle.zeros([512])]
    exact = stock_layer_norm(*(x.astype("float64") for x in (paddle.to_tensor(values), *vectors)))
    y, moments = rows.normalise(paddle.to_tensor(values), *vectors, 1e-5)
    np.testing.assert_allclose(y.numpy(), exact.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moments.numpy(), np.concatenate([values.mean(1, "float64"), values.var(1, "float64")]),
                               rtol=1e-5)


def test_silu_of_large_values_and_of_nan():
    values = [-1000.0, -100.0, -88.0, -80.0, -20.0, -0.0, 0.0, 20.0, 80.0, 100.0, 1000.0]
    x = paddle.to_tensor(values, stop_gradient=False)
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-np.array(values)))
    exact = [values * s, np.cos(np.arange(s.size)) * s * (1 + values * (1 - s))]
    for mine, theirs in zip(gradients(silu, [x]), exact):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-30)
    assert_nan_and_infinity(silu)


def test_gelu_of_large_values_and_of_nan():
    values = [-1e38, -1000.0, -14.0, -13.2, -13.0, -5.0, -0.0, 0.0, 1e-30, 5.0, 13.0, 14.0, 1e20, 1e38]
    assert_same(gelu, F.gelu, [paddle.to_tensor(values, stop_gradient=False)])
    assert_nan_and_infinity(gelu)


def assert_nan_and_infinity(function) -> None:
    lost = paddle.to_tensor([float("nan"), float("inf")] * 20, stop_gradient=False)
    y, slope = gradients(function, [lost])
    assert np.isnan(y[::2]).all() and np.isnan(slope[::2]).all() and np.isposinf(y[1::2]).all()


def test_softmax_of_large_and_of_masked_scores():
    infinity = float("inf")
    scores = [[-infinity, 0.0, -infinity, 1.0], [1e30, -1e30, 0.0, 1e30], [-3e38, -1e38, -2e38, -3e38],
              [-0.0, 0.0, -1e-40, 1e-40], [-100.0, -187.0, -188.5, -99.0], [-infinity] * 4]
    y = rows.softmax(paddle.to_tensor(scores)).numpy()
    # Stock Paddle gives every score exp(−64) at least.
    np.testing.assert_allclose(y, F.softmax(paddle.to_tensor(scores)).numpy(), rtol=1e-6, atol=1e-27)
    assert (y[0, [0, 2]] == 0).all() and np.isnan(y[5]).all()


@pytest.mark.parametrize("place", [0, 5])
def test_nan_reaches_its_own_row_alone(place):
    x = random(4, 40).detach()
    x[1, place] = float("nan")
    y = rows.normalise(x, paddle.ones([40]), paddle.zeros([40]), 1e-5)[0].numpy()
    slope = rows.softmax_gradient(x, paddle.ones([4, 40])).numpy()
    for result in (y, slope, rows.softmax(x).numpy(), rows.softmax(-x).numpy()):
        assert np.isnan(result[1]).all() and np.isfinite(result[[0, 2, 3]]).all()


def test_nan_reaches_its_own_run_alone():
    x = random(2, 4, 5, 5).detach()
    x[0, 0, 0, 0] = float("nan")
    y = groups.group_norm(x, 2, paddle.ones([4]), paddle.zeros([4]), 1e-6, True).numpy()
    assert np.isnan(y[0, :2]).all() and np.isfinite(y[0, 2:]).all() and np.isfinite(y[1]).all()


def test_operands_that_are_views():
    before = paddle.get_flags("FLAGS_use_stride_kernel")
    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    try:
        x, w, b = random(2, 7, 9, 6), random(6, seed=1), random(6, seed=2)
        viewed = x.detach().transpose([0, 3, 1, 2])
        assert not viewed.is_contiguous()
        assert_same(lambda w, b: groups.GroupNorm.apply(viewed, 3, w, b, 1e-6, True),
                    lambda w, b: stock_group_norm(viewed.astype("float64"), 3, w, b, 1e-6, True), [w, b])
        turned = lambda function: lambda x, *more: function(x.transpose([0, 3, 1, 2]), *more).transpose([0, 2, 3, 1])
        for mine, stock in ((silu, F.silu), (gelu, F.gelu), (softmax, F.softmax)):
            assert_same(turned(mine), turned(stock), [x])
        assert_same(turned(layer_norm), turned(stock_layer_norm), [x, random(9, seed=1), random(9, seed=2)])
    finally:
        paddle.set_flags(before)


def test_each_argument_may_be_constant():
    everything = [random(2, 6, 5, 4), random(6, seed=1), random(6, seed=2)]
    complete = gradients(lambda x, w, b: groups.GroupNorm.apply(x, 3, w, b, 1e-6, True), everything)[1:]
    incoming = paddle.cos(paddle.arange(240, dtype="float32")).reshape([2, 6, 5, 4])
    for constant in range(3):
        arguments = [x.detach() for x in everything]
        for position, x in enumerate(arguments):
            x.stop_gradient = position == constant
        groups.GroupNorm.apply(arguments[0], 3, *arguments[1:], 1e-6, True).backward(incoming)
        assert arguments[constant].grad is None
        for position, x in enumerate(arguments):
            if position != constant:
                np.testing.assert_allclose(x.grad.numpy(), complete[position], rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_refused():
    x, w, b = random(2, 6, 5, 4), random(6), random(6)
    for y in (functional.silu(x), functional.group_norm(x, 3, w, b, silu=True), functional.gelu(x),
              functional.softmax(x), functional.layer_norm(x, random(4), random(4))):
        with pytest.raises(Exception, match="no second derivatives.*stock_operators"):
            paddle.grad([y.sum()], [x], create_graph=True)


def test_recompute_gives_the_same_gradients():
    from paddle.distributed.fleet.utils import recompute

    block = lambda x, w, b: functional.silu(functional.group_norm(x, 3, w, b, silu=True))
    results = []
    for run in (block, lambda *a: recompute(block, *a, use_reentrant=True),
                lambda *a: recompute(block, *a, use_reentrant=False)):
        arguments = [random(2, 6, 5, 4), random(6, seed=1), random(6, seed=2)]
        run(*arguments).sum().backward()
        results.append([x.grad.numpy() for x in arguments])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other):
            np.testing.assert_array_equal(mine, theirs)


def test_threads_do_not_mix_their_operands():
    def work(seed: int) -> None:
        first = None
        for _ in range(20):
            arguments = [random(2, 6, 24, 24, seed=seed), random(6, seed=seed + 10), random(6, seed=seed + 20)]
            y = groups.GroupNorm.apply(arguments[0], 3, *arguments[1:], 1e-6, True)
            y.sum().backward()  # paddle.grad is not made for several threads at a time
            outcome = [y.numpy(), *(x.grad.numpy() for x in arguments)]
            first = first or outcome
            for one, other in zip(first, outcome):
                np.testing.assert_array_equal(one, other)
        expected = stock_group_norm(arguments[0], 3, *arguments[1:], 1e-6, True)
        np.testing.assert_allclose(first[0], expected.numpy(), atol=1e-5)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_in_a_forked_worker():
    x, w, b = random(2, 6, 24, 24), random(6, seed=1), random(6, seed=2)
    run = lambda: groups.group_norm(x, 3, w, b, 1e-6, True).numpy()
    here = run()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=lambda: sender.send(run()), daemon=True)
    worker.start()
    assert receiver.poll(60), "the worker hangs"
    np.testing.assert_array_equal(receiver.recv(), here)
    worker.join(10)


def test_the_functions_use_them(monkeypatch):
    ran = []
    run = team.run
    monkeypatch.setattr(team, "run", lambda *numbers: ran.append(numbers[0]) or run(*numbers))
    assert switch.active()
    x, w, b = random(2, 6, 5, 4), random(6), random(6)
    functional.group_norm(functional.silu(x), 3, w, b).sum().backward()
    with paddle.no_grad():
        functional.group_norm(functional.silu(x), 3, w, b)
    assert len(set(ran)) == 4 and len(ran) >= 6
    ran.clear()
    functional.layer_norm(functional.softmax(functional.gelu(x)), random(4), random(4)).sum().backward()
    compiled = team.kernels()
    assert set(ran) == {kernel.address for kernel in (compiled.gelu, compiled.gelu_gradient, compiled.softmax,
                                                      compiled.softmax_gradient, compiled.layer_norm)}
    ran.clear()
    maps = random(4, 7), random(7)
    functional.linear(x, *maps).sum().backward()
    functional.linear_cross_entropy(x.reshape([-1, 4]), *maps, paddle.zeros([60], "int64")).sum().backward()
    assert set(ran) == {compiled.column_sums.address} and len(ran) == 2
    ran.clear()
    functional.linear_after_gelu(x, *maps).sum().backward()
    assert set(ran) == {kernel.address for kernel in (compiled.gelu, compiled.gelu_and_gradient, compiled.column_sums)}
    ran.clear()
    functional.linear(x, maps[0]).sum().backward()
    monkeypatch.setattr(switch._State, "trains", False)
    with paddle.no_grad():  # a server's results must not change with the hour at which it loads the loops
        functional.layer_norm(functional.softmax(functional.gelu(x)), random(4), random(4))
    functional.gelu(x, True)
    assert not ran and switch.active()
    functional.start_training()
    with paddle.no_grad():  # those of a training must not change with the step at which it was resumed
        functional.layer_norm(functional.softmax(functional.gelu(x)), random(4), random(4))
    assert set(ran) == {compiled.gelu.address, compiled.softmax.address, compiled.layer_norm.address}


def test_a_run_for_fewer_than_all_threads_is_left_to_the_library(monkeypatch):
    monkeypatch.setattr(process, "threads", lambda: 5)
    monkeypatch.setattr(groups, "group_norm", lambda *_: pytest.fail("one thread would do all of it"))
    with paddle.no_grad():
        assert functional.group_norm(random(2, 6, 5, 4), 2, random(6), random(6)).shape == [2, 6, 5, 4]


def test_loaded_for_a_gradient_or_after_much_without(monkeypatch, anew):
    monkeypatch.setattr(switch._State, "passed", 0)
    monkeypatch.setattr(switch._State, "trains", False)
    monkeypatch.setattr(switch, "WORTH_LOADING", 100)
    assert not switch.use(60, False) and switch._State.decided is None
    assert switch.use(60, False)
    switch.allow(True)
    assert switch.use(1, False), "they are loaded already"
    monkeypatch.setattr(switch._State, "passed", 0)
    switch.allow(True)
    assert switch.use(1, True)


def test_loaded_where_products_run_in_bf16(anew):
    precision.use_bf16(True)  # as configure() does before a training's first operator
    try:
        assert switch.active(), switch.reason()
    finally:
        precision.use_bf16(False)


def test_little_inference_does_not_load_numba():
    code = ("import sys, vilg, paddle; from vilg.nn import functional; from vilg.kernels.jit import switch\n"
            "x, w = paddle.rand([2, 6, 8, 8]), paddle.ones([6])\n"
            "with paddle.no_grad(): functional.group_norm(functional.silu(x), 3, w, w)\n"
            "print('numba' in sys.modules, switch.reason(), 'numba' in sys.modules)")
    for environment, told in (({}, "False  True"), ({"VILG_JIT": "0"}, "False turned off (VILG_JIT=0 or "
                                                                       "runtime.jit: false) False")):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True,
                              text=True, check=True)
        assert done.stdout.strip() == told


def assert_off(caplog, why: str) -> None:
    with caplog.at_level("DEBUG", logger="vilg.loops"):
        assert not switch.active()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert why in switch.reason() and why in caplog.text
    x, w, b = random(2, 6, 5, 4), random(6, seed=1), random(6, seed=2)
    assert_same(lambda x, w, b: functional.group_norm(x, 3, w, b), lambda x, w, b: F.group_norm(x, 3, 1e-6, w, b),
                [x, w, b])


def test_a_failure_means_the_librarys_operators(monkeypatch, caplog, anew):
    def fail():
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(selftest, "run", fail)
    assert_off(caplog, "no such instruction")


def test_without_numba(monkeypatch, caplog, anew):
    team.kernels.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_off(caplog, "numba is not installed")


def test_without_an_openmp_runtime(monkeypatch, caplog, anew):
    team._parallel.cache_clear()
    monkeypatch.setattr(process, "openmp", lambda: None)
    try:
        assert_off(caplog, "no OpenMP runtime")
    finally:
        team._parallel.cache_clear()


def test_wrong_loops_are_found_out(monkeypatch):
    bits = team.bits
    monkeypatch.setattr(team, "bits", lambda epsilon: bits(1.0))
    with pytest.raises(Unavailable, match="compiled group_norm differs from stock Paddle"):
        selftest.run()


def test_without_a_directory_for_compiled_code(monkeypatch):
    from vilg.kernels.jit import kernels

    def cfunc(signature, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: "compiled"

    monkeypatch.setattr(kernels, "cfunc", cfunc)
    assert kernels._kernel(lambda a: None) == "compiled"
