"""Compares every fast operator with stock Paddle, forward and backward, on small shapes (a few milliseconds)."""
from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.kernels.onednn import conv, elementwise, groups, losses, matmul, norm, precision, resampling
from vilg.kernels.onednn.library import Unavailable

_TOLERANCE = 1e-4


def run() -> None:
    """Raise :class:`Unavailable` naming the first operator that disagrees with stock Paddle."""
    compare(_cases())


def compare(cases: list[tuple[str, Callable, Callable, list[tuple[int, ...]]]]) -> None:
    """Raise :class:`Unavailable` when an operator, or a gradient of it, is not what stock Paddle gives; in float32,
    whatever products are to run in. Stock Paddle computes in float64: in float32 it can be off by more than we are.

    Every case is a name, the operator, stock Paddle's, and the shapes of their arguments.
    """
    random = np.random.default_rng(0)
    for name, fast, stock, shapes in cases:
        arrays = [random.standard_normal(shape, dtype="float32") for shape in shapes]
        with precision.full_precision():
            found = _outcome(fast, arrays)
        for mine, theirs in zip(found, _outcome(stock, [array.astype("float64") for array in arrays])):
            error = float(np.abs(mine - theirs).max())
            if not error <= _TOLERANCE:
                raise Unavailable(f"{name} differs from stock Paddle by {error:.1e}")


def _cases() -> list:
    pad, labels = (0, 1, 0, 1), paddle.to_tensor([3, 0, 36, losses.IGNORED, 7])
    return [
        ("linear", matmul.Linear.apply, F.linear, [(5, 24), (24, 33), (33,)]),
        ("linear of many rows", matmul.Linear.apply, F.linear, [(520, 24), (24, 33), (33,)]),
        ("matmul", lambda a, b: matmul.Matmul.apply(a, b, False, True),
         lambda a, b: paddle.matmul(a, b, transpose_y=True), [(2, 3, 7, 16), (2, 3, 9, 16)]),
        ("gelu", lambda x: elementwise.Map.apply(x, elementwise.GELU_ERF), F.gelu, [(3, 17)]),
        ("linear after gelu", lambda x, w, b: matmul.LinearAfterGelu.apply(x, w, b, elementwise),
         lambda x, w, b: F.linear(F.gelu(x), w, b), [(5, 24), (24, 33), (33,)]),
        ("tanh gelu", lambda x: elementwise.Map.apply(x, elementwise.GELU_TANH), lambda x: F.gelu(x, True), [(3, 17)]),
        ("quick gelu", lambda x: elementwise.Map.apply(x, elementwise.QUICK_GELU), lambda x: x * F.sigmoid(1.702 * x),
         [(3, 17)]),
        ("silu", lambda x: elementwise.Map.apply(x, elementwise.SWISH), F.silu, [(3, 17)]),
        ("softmax", elementwise.Softmax.apply, F.softmax, [(4, 19)]),
        ("layer_norm", lambda x, w, b: norm.LayerNorm.apply(x, w, b, 1e-5),
         lambda x, w, b: F.layer_norm(x, [x.shape[-1]], w, b, 1e-5), [(6, 40), (40,), (40,)]),
        ("group_norm with SiLU", lambda x, w, b: groups.GroupNorm.apply(x, 3, w, b, 1e-6, True),
         lambda x, w, b: F.silu(F.group_norm(x, 3, 1e-6, w, b)), [(2, 6, 5, 4), (6,), (6,)]),
        ("group_norm", lambda x, w, b: groups.GroupNorm.apply(x, 3, w, b, 1e-6, False),
         lambda x, w, b: F.group_norm(x, 3, 1e-6, w, b), [(2, 6, 5, 4), (6,), (6,)]),
        ("cross_entropy", lambda x: losses.CrossEntropy.apply(x, labels),
         lambda x: F.cross_entropy(x, labels, reduction="none"), [(5, 37)]),
        ("linear_cross_entropy", lambda x, w, b: losses.LinearCrossEntropy.apply(x, w, b, labels),
         lambda x, w, b: F.cross_entropy(F.linear(x, w, b), labels, reduction="none"), [(5, 16), (16, 37), (37,)]),
        ("nearest_twice", resampling.NearestTwice.apply, lambda x: F.interpolate(x, scale_factor=2), [(2, 3, 5, 4)]),
        ("conv2d", lambda x, w, b: conv.Conv2D.apply(x, w, b, 2, pad),
         lambda x, w, b: F.conv2d(x, w, b, 2, list(pad)), [(2, 16, 9, 8), (24, 16, 3, 3), (24,)]),
    ]


def _outcome(function, arrays: list[np.ndarray]) -> list[np.ndarray]:
    tensors = [paddle.to_tensor(array, stop_gradient=False) for array in arrays]
    with paddle.enable_grad():
        y: Tensor = function(*tensors)
        weights = paddle.to_tensor(np.cos(np.arange(y.size)).reshape(y.shape)).astype(y.dtype)
        gradients = paddle.grad([(y * weights).sum()], tensors)
    return [y.numpy(), *(gradient.numpy() for gradient in gradients)]
