"""GELU, its quick form, SiLU and softmax."""
import ctypes
import math
from collections.abc import Callable

from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn.autograd import contiguous, new, refuse_double_backward
from vilg.kernels.onednn.library import (
    DIFF_DST, DIFF_SRC, DST, FORWARD_TRAINING, NO_ATTRIBUTES, SRC, Cache, Primitive, operation, plain,
)

QUICK = 1.702
"""GELU is nearly x · sigmoid(1.702 x), its quick form."""
Algorithm = tuple[int, float]
"""The library's number of an elementwise map, and its α."""
GELU_TANH: Algorithm = (0x2B, 0.0)
SWISH: Algorithm = (0x2C, 1.0)
QUICK_GELU: Algorithm = (0x2C, QUICK)
GELU_ERF: Algorithm = (0x31, 0.0)
_SOFTMAX_ACCURATE = 0x30000
_maps, _softmaxes = Cache(), Cache()


def _build_map(size: int, algorithm: Algorithm) -> tuple[Primitive, Primitive]:
    flat = plain([size])
    kind, alpha, beta = algorithm[0], ctypes.c_float(algorithm[1]), ctypes.c_float(0.0)
    forward = operation("eltwise_forward", FORWARD_TRAINING, kind, flat, flat, alpha, beta, NO_ATTRIBUTES)
    backward = operation("eltwise_backward", kind, flat, flat, flat, alpha, beta, forward, NO_ATTRIBUTES)
    return (Primitive(forward, [(SRC, flat), (DST, flat)]),
            Primitive(backward, [(SRC, flat), (DIFF_DST, flat), (DIFF_SRC, flat)]))


def mapped(x: Tensor, algorithm: Algorithm) -> Tensor:
    """``algorithm`` of every element, not recorded."""
    x = contiguous(x)
    y = new(x.shape)
    _maps.get((math.prod(x.shape), algorithm), _build_map)[0](x.data_ptr(), y.data_ptr())
    return y


class Map(PyLayer):
    """``algorithm`` of every element."""

    @staticmethod
    def forward(ctx, x: Tensor, algorithm: Algorithm) -> Tensor:
        x = contiguous(x)
        ctx.save_for_backward(x)
        ctx.algorithm = algorithm
        return mapped(x, algorithm)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        refuse_double_backward()
        x, = ctx.saved_tensor()
        dy, dx = contiguous(dy), new(x.shape)  # the name keeps a copy until it has been read
        run = _maps.get((math.prod(x.shape), ctx.algorithm), _build_map)[1]
        run(x.data_ptr(), dy.data_ptr(), dx.data_ptr())
        return dx


def gelu(x: Tensor) -> Tensor:
    """GELU by erf, not recorded."""
    return mapped(x, GELU_ERF)


def gelu_and_gradient(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """GELU of x once more, and the gradient for x when that of the result is dy; both lie densely in memory."""
    forward, backward = _maps.get((math.prod(x.shape), GELU_ERF), _build_map)
    y, dx = new(x.shape), new(x.shape)
    forward(x.data_ptr(), y.data_ptr())
    backward(x.data_ptr(), dy.data_ptr(), dx.data_ptr())
    return y, dx


def _build_softmax(rows: int, columns: int) -> tuple[Primitive, Primitive]:
    md = plain([rows, columns])
    forward = operation("softmax_forward", FORWARD_TRAINING, _SOFTMAX_ACCURATE, md, md, 1, NO_ATTRIBUTES)
    backward = operation("softmax_backward", _SOFTMAX_ACCURATE, md, md, md, 1, forward, NO_ATTRIBUTES)
    return (Primitive(forward, [(SRC, md), (DST, md)]),
            Primitive(backward, [(DST, md), (DIFF_DST, md), (DIFF_SRC, md)]))


def softmax_primitives(rows: int, columns: int) -> tuple[Primitive, Primitive]:
    """Forward (scores, weights) and backward (weights, their gradient, the scores'); both may work in place."""
    return _softmaxes.get((rows, columns), _build_softmax)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis, not recorded."""
    x = contiguous(x)
    y = new(x.shape)
    columns = x.shape[-1]
    _softmaxes.get((math.prod(x.shape[:-1]), columns), _build_softmax)[0](x.data_ptr(), y.data_ptr())
    return y


def softmax_gradient(y: Tensor, dy: Tensor) -> Tensor:
    """The gradient for scores whose softmax is y, when that of y is dy; both lie densely in memory."""
    dx = new(y.shape)
    *lead, columns = y.shape
    _softmaxes.get((math.prod(lead), columns), _build_softmax)[1](y.data_ptr(), dy.data_ptr(), dx.data_ptr())
    return dx


class Softmax(PyLayer):
    """Softmax over the last axis, by :func:`softmax` and :func:`softmax_gradient` or their likes."""

    @staticmethod
    def forward(ctx, x: Tensor, softmax: Callable = softmax, gradient: Callable = softmax_gradient) -> Tensor:
        y = softmax(x)
        ctx.gradient = gradient
        # Not y itself: it will hold this node, which holds ctx, and such a ring is never freed.
        ctx.save_for_backward(y.detach())
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        refuse_double_backward()
        y, = ctx.saved_tensor()
        return ctx.gradient(y, contiguous(dy))
