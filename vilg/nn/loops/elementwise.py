"""SiLU."""
import math

from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.nn.loops import team
from vilg.nn.onednn.autograd import contiguous, new, refuse_double_backward


def silu(x: Tensor) -> Tensor:
    """x · logistic(x), not recorded."""
    x = contiguous(x)
    y = new(x.shape)
    team.run(team.kernels().silu.address, math.prod(x.shape), x.data_ptr(), y.data_ptr())
    return y


class SiLU(PyLayer):
    """x · logistic(x)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = contiguous(x)
        ctx.save_for_backward(x)
        return silu(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        refuse_double_backward()
        x, = ctx.saved_tensor()
        dy, dx = contiguous(dy), new(x.shape)
        team.run(team.kernels().silu_gradient.address, math.prod(x.shape), x.data_ptr(), dy.data_ptr(), dx.data_ptr())
        return dx
