"""Layer normalisation, softmax and sums over rows: each row is read once from memory, then from the cache.

These stand in for functions of the same names in :mod:`vilg.kernels.onednn`, where also the gradient of the first is.
"""
import math

from paddle import Tensor

from vilg.kernels.jit import team
from vilg.kernels.onednn.autograd import contiguous, new

_FLOAT = 4


def normalise(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The result, and means and variances in one tensor, as :func:`vilg.kernels.onednn.norm.normalise`."""
    *lead, width = shape = x.shape
    rows = math.prod(lead)
    y, moments = new(shape), new([2 * rows])
    means = moments.data_ptr()
    team.run(team.kernels().layer_norm.address, rows, width, x.data_ptr(), y.data_ptr(), weight.data_ptr(),
             bias.data_ptr(), means, means + rows * _FLOAT, team.bits(epsilon))
    return y, moments


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis, not recorded."""
    x = contiguous(x)
    y = new(x.shape)
    *lead, columns = y.shape
    team.run(team.kernels().softmax.address, math.prod(lead), columns, x.data_ptr(), y.data_ptr())
    return y


def softmax_gradient(y: Tensor, dy: Tensor) -> Tensor:
    """The gradient for scores whose softmax is y, as :func:`vilg.kernels.onednn.elementwise.softmax_gradient`."""
    dx = new(y.shape)
    *lead, columns = y.shape
    team.run(team.kernels().softmax_gradient.address, math.prod(lead), columns, y.data_ptr(), dy.data_ptr(),
             dx.data_ptr())
    return dx


def add_column_sums(out: int, x: Tensor, rows: int, columns: int, accumulate: bool = True) -> None:
    """Add the column sums of x, seen as [rows, columns], to the float32 memory at address ``out``, or write them there.
    """
    team.run(team.kernels().column_sums.address, rows, columns, x.data_ptr(), out, accumulate)
