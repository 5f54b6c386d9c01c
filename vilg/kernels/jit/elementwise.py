"""GELU (by erf), its quick form x · logistic(1.702 x), and SiLU."""
import math

from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.jit import team
from vilg.kernels.onednn.autograd import contiguous, new, refuse_double_backward

GELU, QUICK_GELU, SILU = "gelu", "quick_gelu", "silu"


def mapped(x: Tensor, kernel: str) -> Tensor:
    """``kernel`` of every element, not recorded."""
    x = contiguous(x)
    y = new(x.shape)
    team.run(getattr(team.kernels(), kernel).address, math.prod(x.shape), x.data_ptr(), y.data_ptr())
    return y


class Map(PyLayer):
    """``kernel`` (:data:`GELU`, :data:`QUICK_GELU`, :data:`SILU`) of every element."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: str) -> Tensor:
        x = contiguous(x)
        ctx.save_for_backward(x)
        ctx.gradient = f"{kernel}_gradient"
        return mapped(x, kernel)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        refuse_double_backward()
        x, = ctx.saved_tensor()
        dy, dx = contiguous(dy), new(x.shape)
        team.run(getattr(team.kernels(), ctx.gradient).address, math.prod(x.shape), x.data_ptr(), dy.data_ptr(),
                 dx.data_ptr())
        return dx


def gelu(x: Tensor) -> Tensor:
    """GELU by erf, not recorded."""
    return mapped(x, GELU)


def gelu_and_gradient(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """GELU of x once more, and the gradient for x when that of the result is dy; both lie densely in memory."""
    y, dx = new(x.shape), new(x.shape)
    team.run(team.kernels().gelu_and_gradient.address, math.prod(x.shape), x.data_ptr(), dy.data_ptr(), y.data_ptr(),
             dx.data_ptr())
    return y, dx
