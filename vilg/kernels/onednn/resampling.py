"""Pictures doubled by nearest neighbour; the gradient is a sum over windows, where the library's pooling is fast."""
import ctypes

from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn.autograd import contiguous, new, refuse_double_backward
from vilg.kernels.onednn.library import (
    DST, FORWARD_INFERENCE, NO_ATTRIBUTES, SRC, Cache, Dims, Primitive, operation, plain,
)
from vilg.kernels.onednn.precision import chain, linear_step

_NEAREST, _AVERAGE = 0x2FFF0, 0x2FF
_plans = Cache(512)


def _build(batch: int, channels: int, height: int, width: int) -> tuple[Primitive, Primitive]:
    """(x, y) and (dy, dx)."""
    small, large = plain([batch, channels, height, width]), plain([batch, channels, 2 * height, 2 * width])
    twice = operation("resampling_forward", FORWARD_INFERENCE, _NEAREST, (ctypes.c_float * 2)(2.0, 2.0), small, large,
                      NO_ATTRIBUTES)
    window, none = Dims(2, 2), Dims(0, 0)
    sums = operation("pooling_forward", FORWARD_INFERENCE, _AVERAGE, large, small, window, window, none, none, none,
                     chain(linear_step(4.0, 0.0)))
    return Primitive(twice, [(SRC, small), (DST, large)]), Primitive(sums, [(SRC, large), (DST, small)])


def nearest_twice(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B, C, 2H, 2W], not recorded."""
    batch, channels, height, width = x.shape
    x, y = contiguous(x), new([batch, channels, 2 * height, 2 * width])
    _plans.get((batch, channels, height, width), _build)[0](x.data_ptr(), y.data_ptr())
    return y


class NearestTwice(PyLayer):
    """x [B, C, H, W] → [B, C, 2H, 2W], every value four times."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return nearest_twice(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        refuse_double_backward()
        dy, dx = contiguous(dy), new(ctx.shape)
        _plans.get(tuple(ctx.shape), _build)[1](dy.data_ptr(), dx.data_ptr())
        return dx
