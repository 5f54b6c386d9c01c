"""Group normalisation, put together from primitives that are fast where the library's own is not.

Statistics are those of a layer normalisation over the B · groups runs; scaling and the sums over channels are those of
a batch normalisation with given statistics over B · C channels.
"""
import ctypes
from dataclasses import dataclass

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.nn.onednn.autograd import contiguous, refuse_double_backward
from vilg.nn.onednn.library import (
    BACKWARD, DIFF_DST, DIFF_SCALE, DIFF_SHIFT, DIFF_SRC, DST, FORWARD_INFERENCE, FORWARD_TRAINING, MEAN, NO_ATTRIBUTES,
    SCALE, SHIFT, SRC, SRC_1, VARIANCE, Cache, Primitive, operation, plain,
)
from vilg.nn.onednn.precision import BINARY_ADD, BINARY_MUL, post_operand, then_binary

_GIVEN_STATISTICS, _SCALE, _SHIFT = 1, 2, 4


@dataclass
class _Plan:
    """Primitives of one shape; ``rows`` = B · groups runs of ``run`` elements."""

    standardise: Primitive
    scale: Primitive
    gradient: Primitive
    combine: Primitive


def _build(images: int, channels: int, pixels: int, groups: int, epsilon: float) -> _Plan:
    rows, run, lanes = images * groups, channels // groups * pixels, images * channels
    eps = ctypes.c_float(epsilon)
    flat, statistics = plain([rows, run]), plain([rows])
    standardise = operation("layer_normalization_forward", FORWARD_TRAINING, flat, flat, statistics, eps, 0,
                            NO_ATTRIBUTES)
    image, lane = plain([1, lanes, pixels]), plain([lanes])
    given = _GIVEN_STATISTICS | _SCALE | _SHIFT
    scale = operation("batch_normalization_forward", FORWARD_INFERENCE, image, image, eps, given, NO_ATTRIBUTES)
    hint = operation("batch_normalization_forward", FORWARD_TRAINING, image, image, eps, given, NO_ATTRIBUTES)
    gradient = operation("batch_normalization_backward", BACKWARD, image, image, image, eps, given, hint,
                         NO_ATTRIBUTES)
    # Shaped so that what is spread over a run is "per channel": the library has no fast code for other broadcasts.
    spread, column = plain([1, rows, run]), plain([1, rows, 1])
    combine = operation("binary", BINARY_MUL, spread, column, spread,
                        then_binary((BINARY_ADD, spread), (BINARY_ADD, column)))
    moments = [(SRC, image), (MEAN, lane), (VARIANCE, lane), (SCALE, lane)]
    return _Plan(
        Primitive(standardise, [(SRC, flat), (MEAN, statistics), (VARIANCE, statistics), (DST, flat)]),
        Primitive(scale, [*moments, (SHIFT, lane), (DST, image)]),
        Primitive(gradient, [*moments, (DIFF_DST, image), (DIFF_SRC, image), (DIFF_SCALE, lane), (DIFF_SHIFT, lane)]),
        Primitive(combine, [(SRC, spread), (SRC_1, column), (post_operand(0), spread), (post_operand(1), column),
                            (DST, spread)]))


_plans = Cache(512)


def _plan(x: Tensor, groups: int, epsilon: float) -> _Plan:
    images, channels = x.shape[:2]
    return _plans.get((images, channels, x.size // (images * channels), groups, epsilon), _build)


def _by_channel(statistics: Tensor, groups: int, channels: int) -> Tensor:
    """[B · groups] → [B · C]."""
    return statistics.reshape([-1, 1]).expand([-1, channels // groups]).reshape([-1])


def _normalise(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    images, channels = x.shape[:2]
    plan = _plan(x, groups, epsilon)
    y = paddle.empty(x.shape, "float32")
    mean, variance = paddle.empty([images * groups], "float32"), paddle.empty([images * groups], "float32")
    plan.standardise(x.data_ptr(), mean.data_ptr(), variance.data_ptr(), y.data_ptr())
    lanes = [_by_channel(mean, groups, channels), _by_channel(variance, groups, channels),
             weight.tile([images]), bias.tile([images])]
    plan.scale(x.data_ptr(), *(lane.data_ptr() for lane in lanes), y.data_ptr())
    return y, mean, variance


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """x [B, C, ...] normalised over each of ``groups`` runs of channels, not recorded."""
    return _normalise(contiguous(x), groups, weight, bias, epsilon)[0]


class GroupNorm(PyLayer):
    """x [B, C, ...] normalised over each of ``groups`` runs of channels; weight and bias are [C]."""

    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        ctx.needs = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        x = contiguous(x)
        y, mean, variance = _normalise(x, groups, weight, bias, epsilon)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.groups, ctx.epsilon = groups, epsilon
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        x, weight, mean, variance = ctx.saved_tensor()
        groups, (images, channels) = ctx.groups, x.shape[:2]
        plan, dy = _plan(x, groups, ctx.epsilon), contiguous(dy)
        dx, lanes = paddle.empty(x.shape, "float32"), images * channels
        by_scale, by_shift = paddle.empty([lanes], "float32"), paddle.empty([lanes], "float32")
        given = [_by_channel(mean, groups, channels), _by_channel(variance, groups, channels), weight.tile([images])]
        plan.gradient(x.data_ptr(), *(lane.data_ptr() for lane in given), dy.data_ptr(), dx.data_ptr(),
                      by_scale.data_ptr(), by_shift.data_ptr())
        if ctx.needs[0]:
            # dx = w·r·dy − r·⟨w·dy⟩ − r·x̂·⟨w·dy·x̂⟩ with r = 1/σ, ⟨⟩ the mean over a run; the first term is there
            # already.
            run = x.size // mean.size
            r = (variance + ctx.epsilon).rsqrt()
            shifted = (by_shift * given[2]).reshape([mean.size, -1]).sum(1) / run
            scaled = (by_scale * given[2]).reshape([mean.size, -1]).sum(1) / run
            slope = -r * r * scaled
            offset = -r * shifted - slope * mean
            plan.combine(x.data_ptr(), slope.data_ptr(), dx.data_ptr(), offset.data_ptr(), dx.data_ptr())
        dw = by_scale.reshape([images, channels]).sum(0) if ctx.needs[1] else None
        db = by_shift.reshape([images, channels]).sum(0) if ctx.needs[2] else None
        return (dx if ctx.needs[0] else None), dw, db
