"""Layer normalisation."""
import ctypes
import math
from collections.abc import Callable

from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn.autograd import contiguous, new, refuse_double_backward
from vilg.kernels.onednn.library import (
    BACKWARD, DIFF_DST, DIFF_SCALE, DIFF_SHIFT, DIFF_SRC, DST, FORWARD_TRAINING, MEAN, NO_ATTRIBUTES, SCALE, SHIFT, SRC,
    VARIANCE, Cache, Primitive, operation, plain,
)

_SCALE_AND_SHIFT = 2 | 4
_FLOAT = 4
_layer_norms = Cache()


def _build_layer_norm(rows: int, width: int, epsilon: float) -> tuple[Primitive, Primitive]:
    md, statistics, vector = plain([rows, width]), plain([rows]), plain([width])
    eps = ctypes.c_float(epsilon)
    forward = operation("layer_normalization_forward", FORWARD_TRAINING, md, md, statistics, eps, _SCALE_AND_SHIFT,
                        NO_ATTRIBUTES)
    backward = operation("layer_normalization_backward", BACKWARD, md, md, md, statistics, eps, _SCALE_AND_SHIFT,
                         forward, NO_ATTRIBUTES)
    moments = [(MEAN, statistics), (VARIANCE, statistics), (SCALE, vector), (SHIFT, vector)]
    return (Primitive(forward, [(SRC, md), *moments, (DST, md)]),
            Primitive(backward, [(SRC, md), *moments, (DIFF_DST, md), (DIFF_SRC, md), (DIFF_SCALE, vector),
                                 (DIFF_SHIFT, vector)]))


def normalise(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The result, and means and variances in one tensor; all operands lie densely in memory."""
    *lead, width = shape = x.shape
    rows = math.prod(lead)
    y, moments = new(shape), new([2 * rows])
    mean = moments.data_ptr()
    _layer_norms.get((rows, width, epsilon), _build_layer_norm)[0](
        x.data_ptr(), mean, mean + rows * _FLOAT, weight.data_ptr(), bias.data_ptr(), y.data_ptr())
    return y, moments


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, normalise: Callable = normalise) -> Tensor:
    """Normalise the last axis by :func:`normalise` or its like, not recorded."""
    return normalise(contiguous(x), contiguous(weight), contiguous(bias), epsilon)[0]


class LayerNorm(PyLayer):
    """Normalise the last axis of x [..., D] by :func:`normalise` or its like; weight and bias are [D]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float,
                normalise: Callable = normalise) -> Tensor:
        ctx.needs = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        x, weight, bias = contiguous(x), contiguous(weight), contiguous(bias)
        y, moments = normalise(x, weight, bias, epsilon)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        x, weight, bias, moments = ctx.saved_tensor()
        *lead, width = shape = x.shape
        rows = math.prod(lead)
        dy, dx, dw, db = contiguous(dy), new(shape), new([width]), new([width])
        mean = moments.data_ptr()
        _layer_norms.get((rows, width, ctx.epsilon), _build_layer_norm)[1](
            x.data_ptr(), mean, mean + rows * _FLOAT, weight.data_ptr(), bias.data_ptr(), dy.data_ptr(), dx.data_ptr(),
            dw.data_ptr(), db.data_ptr())
        return tuple(gradient if needed else None for gradient, needed in zip((dx, dw, db), ctx.needs))
