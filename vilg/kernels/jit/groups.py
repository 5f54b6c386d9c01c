"""Group normalisation, with SiLU after it if asked: each run of channels is read while it lies in the cache."""
import math

import numpy as np
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.jit import team
from vilg.kernels.onednn.autograd import contiguous, memory, new, refuse_double_backward

_FLOAT = 4


def _normalise(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float,
               silu: bool) -> tuple[Tensor, Tensor]:
    """The result, and in one tensor the mean of every run and then 1/σ of every run."""
    images, channels, *sides = x.shape
    y, moments = new(x.shape), new([2 * images * groups])
    means = moments.data_ptr()
    team.run(team.kernels().group_norm.address, images, groups, channels // groups, math.prod(sides), silu,
             x.data_ptr(), y.data_ptr(), weight.data_ptr(), bias.data_ptr(), means, means + images * groups * _FLOAT,
             team.bits(epsilon))
    return y, moments


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
    """x [B, C, ...] normalised over each of ``groups`` runs of channels, not recorded."""
    return _normalise(contiguous(x), groups, contiguous(weight), contiguous(bias), epsilon, silu)[0]


class GroupNorm(PyLayer):
    """x [B, C, ...] normalised over each of ``groups`` runs of channels, then SiLU if asked; weight and bias [C]."""

    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
        ctx.needs = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        ctx.groups, ctx.silu = groups, silu
        x, weight, bias = contiguous(x), contiguous(weight), contiguous(bias)
        y, moments = _normalise(x, groups, weight, bias, epsilon, silu)
        ctx.save_for_backward(x, weight, bias, moments)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        x, weight, bias, moments = ctx.saved_tensor()
        images, channels, *sides = x.shape
        dy, dx = contiguous(dy), new(x.shape)
        means = moments.data_ptr()
        sums = np.empty((2, images, channels), "float32")
        by_x, by_one = (part.ctypes.data for part in sums)
        team.run(team.kernels().group_norm_gradient.address, images, ctx.groups, channels // ctx.groups,
                 math.prod(sides), ctx.silu, x.data_ptr(), dy.data_ptr(), dx.data_ptr(), weight.data_ptr(),
                 bias.data_ptr(), means, means + images * ctx.groups * _FLOAT, by_x, by_one)
        gradients = [dx, new([channels]), new([channels])]
        for values, gradient in zip(sums, gradients[1:]):
            np.sum(values, 0, out=memory(gradient))
        return tuple(value if needed else None for value, needed in zip(gradients, ctx.needs))
