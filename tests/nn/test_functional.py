"""Every operator of the house against stock Paddle: values and gradients, whatever the shape, layout and data type."""
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from vilg.kernels.jit import switch as loops
from vilg.kernels.onednn.library import Unavailable
from vilg.kernels.onednn.switch import active
from vilg.nn import functional

PAD = (0, 1, 2, 1)
LABELS = paddle.to_tensor([3, 0, 36, 7, -100, 20, 11])
CASES = {
    "linear": (functional.linear, F.linear, [(3, 5, 7), (7, 11), (11,)]),
    "linear_flat": (functional.linear, F.linear, [(1, 33), (33, 17)]),
    "linear_many_rows": (functional.linear, F.linear, [(3, 175, 7), (7, 11), (11,)]),
    "linear_many_rows_unbiased": (functional.linear, F.linear, [(600, 16), (16, 1)]),
    "linear_after_gelu": (functional.linear_after_gelu, lambda x, w, b: F.linear(F.gelu(x), w, b),
                          [(3, 5, 7), (7, 11), (11,)]),
    "linear_after_gelu_many_rows": (functional.linear_after_gelu, lambda x, w, b: F.linear(F.gelu(x), w, b),
                                    [(3, 175, 7), (7, 11), (11,)]),
    "linear_after_gelu_unbiased": (functional.linear_after_gelu, lambda x, w: F.linear(F.gelu(x), w), [(9, 7), (7, 4)]),
    "matmul": (functional.matmul, paddle.matmul, [(2, 3, 5, 7), (2, 3, 7, 9)]),
    "matmul_transposed": (lambda a, b: functional.matmul(a, b, True, True),
                          lambda a, b: paddle.matmul(a, b, True, True), [(3, 7, 5), (3, 9, 7)]),
    "matmul_right": (lambda a, b: functional.matmul(a, b, False, True),
                     lambda a, b: paddle.matmul(a, b, False, True), [(5, 7), (9, 7)]),
    "matmul_broadcast": (functional.matmul, paddle.matmul, [(2, 3, 5, 7), (7, 9)]),
    "layer_norm": (functional.layer_norm, lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
                   [(3, 5, 13), (13,), (13,)]),
    "softmax": (functional.softmax, F.softmax, [(2, 3, 4, 21)]),
    "gelu": (functional.gelu, F.gelu, [(3, 29)]),
    "gelu_tanh": (lambda x: functional.gelu(x, True), lambda x: F.gelu(x, True), [(3, 29)]),
    "quick_gelu": (functional.quick_gelu, lambda x: x * F.sigmoid(1.702 * x), [(2, 3, 5, 7)]),
    "silu": (functional.silu, F.silu, [(2, 3, 5, 7)]),
    "group_norm": (lambda x, w, b: functional.group_norm(x, 3, w, b), lambda x, w, b: F.group_norm(x, 3, 1e-6, w, b),
                   [(2, 9, 5, 3), (9,), (9,)]),
    "group_norm_silu": (lambda x, w, b: functional.group_norm(x, 3, w, b, silu=True),
                        lambda x, w, b: F.silu(F.group_norm(x, 3, 1e-6, w, b)), [(3, 9, 5, 3), (9,), (9,)]),
    "group_norm_in_chunks": (lambda x, w, b: functional.group_norm(x * 3 + 5, 2, w, b, silu=True),
                             lambda x, w, b: exact_group_norm(x * 3 + 5, 2, w, b), [(2, 4, 400, 380), (4,), (4,)]),
    "conv2d": (lambda x, w, b: functional.conv2d(x, w, b, 1, 1), lambda x, w, b: F.conv2d(x, w, b, 1, 1),
               [(2, 5, 7, 6), (9, 5, 3, 3), (9,)]),
    "conv2d_strided": (lambda x, w: functional.conv2d(x, w, None, 2, PAD),
                       lambda x, w: F.conv2d(x, w, None, 2, list(PAD)), [(2, 16, 9, 8), (32, 16, 3, 3)]),
    "conv2d_pointwise": (functional.conv2d, F.conv2d, [(1, 3, 4, 5), (6, 3, 1, 1), (6,)]),
    "nearest_twice": (functional.nearest_twice, lambda x: F.interpolate(x, scale_factor=2), [(2, 3, 5, 7)]),
    "cross_entropy": (lambda x: functional.cross_entropy(x, LABELS),
                      lambda x: F.cross_entropy(x, LABELS, reduction="none"), [(7, 37)]),
    "linear_cross_entropy": (lambda x, w, b: functional.linear_cross_entropy(x, w, b, LABELS),
                             lambda x, w, b: F.cross_entropy(F.linear(x, w, b), LABELS, reduction="none"),
                             [(7, 12), (12, 37), (37,)]),
}


def exact_group_norm(x, groups, weight, bias):
    """Over so many values stock Paddle's gradients in float32 are off by 1.5e-5 themselves."""
    if not active():  # what is compared is stock Paddle then, whose float32 is off by more than the tolerance
        return F.silu(F.group_norm(x, groups, 1e-6, weight, bias))
    wide = [tensor.astype("float64") for tensor in (x, weight, bias)]
    return F.silu(F.group_norm(wide[0], groups, 1e-6, *wide[1:])).astype(x.dtype)


def tensors(shapes, dtype="float32", seed=0) -> list[paddle.Tensor]:
    random = np.random.default_rng(seed)
    return [paddle.to_tensor(random.standard_normal(shape).astype(dtype), stop_gradient=False) for shape in shapes]


def outcome(function, arguments) -> list[np.ndarray]:
    y = function(*arguments)
    incoming = paddle.to_tensor(np.cos(np.arange(y.size)).reshape(y.shape).astype(str(y.dtype).split(".")[-1]))
    return [y.numpy(), *(g.numpy() for g in paddle.grad([y], arguments, [incoming]))]


def assert_equal(function, stock, arguments, tolerance=1e-5) -> None:
    for mine, theirs in zip(outcome(function, arguments), outcome(stock, arguments), strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        scale = max(1.0, np.abs(theirs).max(initial=0))
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    function, stock, shapes = CASES[name]
    assert_equal(function, stock, tensors(shapes))


@pytest.mark.parametrize("name", ["silu", "quick_gelu", "linear_after_gelu", "group_norm",
                                  "group_norm_silu", "group_norm_in_chunks"])
def test_values_and_gradients_without_compiled_loops(name):
    function, stock, shapes = CASES[name]
    loops.allow(False)
    try:
        assert_equal(function, stock, tensors(shapes))
    finally:
        loops.allow(True)


@pytest.mark.parametrize("name", CASES)
def test_float64_falls_through(name):
    function, stock, shapes = CASES[name]
    assert_equal(function, stock, tensors(shapes, "float64"), 1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if "cross_entropy" not in name])
def test_empty_batch(name):
    function, _, (first, *rest) = CASES[name]
    with paddle.no_grad():
        if name.startswith("matmul"):
            rest = [(0, *rest[0][1:])] if len(rest[0]) > 2 and rest[0][0] == first[0] else rest
        y = function(*tensors([(0, *first[1:]), *rest]))
    assert y.size == 0


@pytest.mark.parametrize("name", CASES)
def test_without_gradient_the_same_values(name):
    function, _, shapes = CASES[name]
    arguments = tensors(shapes)
    recorded = function(*arguments)
    with paddle.no_grad():
        plain = function(*arguments)
    assert plain.stop_gradient and not recorded.stop_gradient
    np.testing.assert_array_equal(plain.numpy(), recorded.numpy())


@pytest.fixture
def stock_operators():
    with functional.stock_operators():
        yield


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name][2]) > 1])
def test_each_argument_may_be_constant(name, stock, request):
    # Held against the gradients of the case where nothing is constant: Paddle's layer_norm takes a frozen weight for 1.
    if stock:
        request.getfixturevalue("stock_operators")
    function, _, shapes = CASES[name]
    everything = tensors(shapes)
    y = function(*everything)
    y.backward(paddle.ones(y.shape))
    for constant in range(len(shapes)):
        arguments = tensors(shapes)
        arguments[constant].stop_gradient = True
        y = function(*arguments)
        y.backward(paddle.ones(y.shape))
        assert arguments[constant].grad is None
        for position, x in enumerate(arguments):
            if position != constant:
                np.testing.assert_allclose(x.grad.numpy(), everything[position].grad.numpy(), rtol=1e-5, atol=1e-5)


def test_operands_that_are_views():
    before = paddle.get_flags("FLAGS_use_stride_kernel")
    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    try:
        x, w, b = tensors([(7, 3, 5), (11, 7), (11,)])
        flipped, weight = x.transpose([1, 2, 0]), w.transpose([1, 0])
        assert not flipped.is_contiguous()
        np.testing.assert_allclose(functional.linear(flipped, weight, b).numpy(),
                                   F.linear(flipped, weight, b).numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(functional.softmax(flipped).numpy(), F.softmax(flipped).numpy(), atol=1e-6)
        image, kernel = tensors([(2, 6, 5, 4), (4, 3, 3, 8)])
        viewed, kernel = image.transpose([0, 3, 1, 2]), kernel.transpose([3, 0, 1, 2])
        np.testing.assert_allclose(functional.conv2d(viewed, kernel).numpy(), F.conv2d(viewed, kernel).numpy(),
                                   rtol=1e-5, atol=1e-5)
    finally:
        paddle.set_flags(before)


def test_large_vocabulary_in_several_chunks():
    x, w, b = tensors([(150, 8), (8, 40000), (40000,)])
    labels = paddle.to_tensor(np.random.default_rng(1).integers(0, 40000, 150))  # no loss above 64, where stock cuts
    stock = lambda x, w, b: F.cross_entropy(F.linear(x, w, b), labels, reduction="none")
    assert_equal(lambda x, w, b: functional.linear_cross_entropy(x, w, b, labels), stock, [x, w, b], 2e-5)
    logits = (F.linear(x, w, b) * 2).detach()
    logits.stop_gradient = False
    assert_equal(lambda x: functional.cross_entropy(x, labels),
                 lambda x: F.cross_entropy(x, labels, reduction="none"), [logits])


@pytest.mark.skipif(not active(), reason="stock Paddle cuts a loss off at 64")
def test_certain_and_hopeless_logits_stay_finite():
    logits = paddle.to_tensor([[200.0, 0.0, -200.0]], stop_gradient=False)
    loss = functional.cross_entropy(logits, paddle.to_tensor([2]))
    loss.sum().backward()
    np.testing.assert_allclose(loss.numpy(), [400.0])
    np.testing.assert_allclose(logits.grad.numpy(), [[1.0, 0.0, -1.0]], atol=1e-6)


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises((ValueError, IndexError), match="37"):
        functional.cross_entropy(tensors([(2, 37)])[0], paddle.to_tensor([1, 37]))


@pytest.mark.parametrize("call", [
    lambda: functional.linear(paddle.ones([3, 8]), paddle.ones([4, 5])),
    lambda: functional.linear(paddle.ones([3, 4]), paddle.ones([4, 5]), paddle.ones([6])),
    lambda: functional.matmul(paddle.ones([3, 8]), paddle.ones([4, 5])),
    lambda: functional.matmul(paddle.ones([3, 8]), paddle.ones([5, 4]), transpose_y=True),
    lambda: functional.matmul(paddle.ones([8, 3]), paddle.ones([4, 5]), transpose_x=True),
    lambda: functional.layer_norm(paddle.ones([3, 8]), paddle.ones([4]), paddle.ones([4])),
    lambda: functional.group_norm(paddle.ones([2, 8, 3, 3]), 2, paddle.ones([4]), paddle.ones([4])),
    lambda: functional.conv2d(paddle.ones([2, 8, 5, 5]), paddle.ones([4, 3, 3, 3])),
    lambda: functional.conv2d(paddle.ones([2, 3, 5, 5]), paddle.ones([4, 3, 3, 3]), paddle.ones([5])),
    lambda: functional.cross_entropy(paddle.ones([3, 8]), paddle.zeros([4], "int64")),
    lambda: functional.linear_cross_entropy(paddle.ones([3, 8]), paddle.ones([4, 5]), None, paddle.zeros([3], "int64")),
], ids=["linear", "bias", "matmul", "matmul-y", "matmul-x", "layer_norm", "group_norm", "conv2d", "conv2d-bias",
        "cross_entropy", "linear_cross_entropy"])
def test_operands_that_do_not_fit_are_refused(call):
    with pytest.raises((ValueError, RuntimeError)):  # the kernels see addresses alone and would read past the end
        call()


def test_gradient_twice_through_a_kept_graph():
    x, w, b = tensors([(4, 6), (6, 5), (5,)])
    y = functional.softmax(functional.linear(x, w, b)).square().sum()
    first = paddle.grad(y, [x, w, b], retain_graph=True)
    second = paddle.grad(y, [x, w, b])
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.skipif(not active(), reason="stock operators have second derivatives")
def test_second_derivatives_are_refused_and_stock_offers_them():
    x, = tensors([(3, 4)])
    with pytest.raises(Exception, match="no second derivatives.*stock_operators"):
        paddle.grad([functional.silu(x).sum()], [x], create_graph=True)
    with functional.stock_operators():
        slope, = paddle.grad([functional.silu(x).sum()], [x], create_graph=True)
        curve, = paddle.grad([slope.sum()], [x])
    assert np.isfinite(curve.numpy()).all() and np.abs(curve.numpy()).max() > 0
    assert active()


def test_recompute_gives_the_same_gradients():
    from paddle.distributed.fleet.utils import recompute

    def block(x, w, b, scale):
        return functional.gelu(functional.layer_norm(functional.linear(x, w, b), scale, b))

    results = []
    for run in (block, lambda *a: recompute(block, *a, use_reentrant=True),
                lambda *a: recompute(block, *a, use_reentrant=False)):
        arguments = tensors([(4, 6), (6, 5), (5,), (5,)])
        run(*arguments).sum().backward()
        results.append([x.grad.numpy() for x in arguments])
    for other in results[1:]:
        for mine, theirs in zip(results[0], other):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_forgotten_result_frees_its_memory(name):
    function, _, shapes = CASES[name]
    arguments = tensors(shapes)

    def held() -> int:
        return paddle.base.core.host_memory_stat_current_value("Allocated", 0)

    function(*arguments)
    before = held()
    for _ in range(5):
        function(*arguments)
    assert held() <= before


@pytest.mark.skipif(not active(), reason="stock operators keep what GELU gives")
def test_what_gelu_gives_is_not_kept_for_the_gradient():
    x, w = tensors([(512, 1024), (1024, 8)])
    functional.linear_after_gelu(x, w).sum().backward()
    before = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
    y = functional.linear_after_gelu(x, w)
    assert paddle.base.core.host_memory_stat_current_value("Allocated", 0) - before < 2 * y.size * 4 < x.size * 4


def test_a_missing_library_is_said_not_raised(tmp_path):
    from vilg.kernels.onednn.library import Library

    with pytest.raises(Unavailable, match="no libdnnl.so.3"):
        Library(tmp_path / "libdnnl.so.3")
    (tmp_path / "broken.so.3").write_bytes(b"not a library")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        Library(tmp_path / "broken.so.3")
