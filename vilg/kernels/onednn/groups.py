"""Group normalisation, with SiLU after it if asked, put together from primitives where the library's own is slow.

The statistics are those of a layer normalisation over the B · groups runs; the gradient's sums are products with ones.
All steps go over a few runs at a time, so that only the first and the last touch memory beyond the cache.
"""
import ctypes
import math
from dataclasses import dataclass

import numpy as np
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn.autograd import contiguous, memory, new, refuse_double_backward
from vilg.kernels.onednn.library import (
    DST, FORWARD_INFERENCE, FORWARD_TRAINING, MEAN, NO_ATTRIBUTES, NOTHING, SRC, SRC_1, VARIANCE, WEIGHTS, Cache,
    Primitive, operation, plain,
)
from vilg.kernels.onednn.precision import BINARY_ADD, BINARY_MUL, Step, chain, linear_step, post_operand, swish_step

_LOGISTIC = 0x29
_FORWARD_CHUNK, _BACKWARD_CHUNK = 1 << 20, 1 << 19
"""Elements of the runs that are gone over together: four and two megabytes."""
_LANE_PARTS = 64
_FLOAT = 4


@dataclass
class _Forward:
    """Primitives over ``runs`` runs of ``run`` elements, ``lanes`` channels in all."""

    runs: int
    run: int
    lanes: int
    standardise: Primitive
    affine: Primitive
    affine_silu: Primitive


@dataclass
class _Backward:
    """Primitives over ``runs`` runs of ``run`` elements, ``lanes`` channels in all, each summed in ``parts`` parts."""

    runs: int
    run: int
    lanes: int
    parts: int
    affine: Primitive
    logistic: Primitive
    silu_gradient: Primitive
    multiply: Primitive
    sums: Primitive
    line: Primitive
    combine: Primitive


def _runs_together(images: int, groups: int, run: int, chunk: int) -> int:
    return max(count for count in range(1, images * groups + 1)
               if images * groups % count == 0 and (count == 1 or count * run <= chunk))


def _build_forward(images: int, channels: int, pixels: int, groups: int, epsilon: float) -> _Forward:
    run = channels // groups * pixels
    runs = _runs_together(images, groups, run, _FORWARD_CHUNK)
    lanes = runs * channels // groups
    rows, statistics = plain([runs, run]), plain([runs])
    standardise = operation("layer_normalization_forward", FORWARD_TRAINING, rows, rows, statistics,
                            ctypes.c_float(epsilon), 0, NO_ATTRIBUTES)
    return _Forward(runs, run, lanes,
                    Primitive(standardise, [(SRC, rows), (MEAN, statistics), (VARIANCE, statistics), (DST, rows)]),
                    _affine(lanes, pixels), _affine(lanes, pixels, swish_step()))


def _build_backward(images: int, channels: int, pixels: int, groups: int) -> _Backward:
    run = channels // groups * pixels
    runs = _runs_together(images, groups, run, _BACKWARD_CHUNK)
    lanes, size = runs * channels // groups, runs * run
    # The library sums down the columns of a small matrix three times as fast as along a row.
    parts = math.gcd(pixels, _LANE_PARTS)
    flat, image = plain([size]), plain([lanes, pixels // parts, parts])
    ones, column = plain([1, 1, pixels // parts]), plain([lanes, 1, parts])
    multiply = operation("binary", BINARY_MUL, flat, flat, flat, NO_ATTRIBUTES)
    sums = operation("matmul", ones, image, NOTHING, column, NO_ATTRIBUTES)
    return _Backward(
        runs, run, lanes, parts, _affine(lanes, pixels), _logistic(size), _silu_gradient(size),
        Primitive(multiply, [(SRC, flat), (SRC_1, flat), (DST, flat)]),
        Primitive(sums, [(SRC, ones), (WEIGHTS, image), (DST, column)]),
        _affine(runs, run), _combination(lanes, pixels))


def _affine(lanes: int, width: int, *then: Step) -> Primitive:
    """x [lanes, width] times a factor a lane plus an offset a lane, and ``then``: (x, factor, offset, dst)."""
    # Shaped so that a lane is a "channel": the library has no fast code for other broadcasts.
    spread, column = plain([1, lanes, width]), plain([1, lanes, 1])
    return Primitive(operation("binary", BINARY_MUL, spread, column, spread, chain((BINARY_ADD, column), *then)),
                     [(SRC, spread), (SRC_1, column), (post_operand(0), column), (DST, spread)])


def _combination(lanes: int, width: int) -> Primitive:
    """x [lanes, width] times a factor a lane plus what is there: (x, factor, there, dst)."""
    spread, column = plain([1, lanes, width]), plain([1, lanes, 1])
    return Primitive(operation("binary", BINARY_MUL, spread, column, spread, chain((BINARY_ADD, spread))),
                     [(SRC, spread), (SRC_1, column), (post_operand(0), spread), (DST, spread)])


def _logistic(size: int) -> Primitive:
    flat, none = plain([size]), ctypes.c_float(0.0)
    descriptor = operation("eltwise_forward", FORWARD_INFERENCE, _LOGISTIC, flat, flat, none, none, NO_ATTRIBUTES)
    return Primitive(descriptor, [(SRC, flat), (DST, flat)])


def _silu_gradient(size: int) -> Primitive:
    """(h·σ → 1 − h·σ → + h) · σ · dy, which is dy times the derivative of h·σ(h): (h, σ, h, σ, dy, dst)."""
    flat = plain([size])
    steps = chain(linear_step(-1.0, 1.0), (BINARY_ADD, flat), (BINARY_MUL, flat), (BINARY_MUL, flat))
    return Primitive(operation("binary", BINARY_MUL, flat, flat, flat, steps),
                     [(SRC, flat), (SRC_1, flat), *((post_operand(step), flat) for step in (1, 2, 3)), (DST, flat)])


_forwards, _backwards = Cache(512), Cache(512)


class _Vectors:
    """NumPy vectors by name, and their addresses at a chunk's beginning."""

    def __init__(self, **arrays: np.ndarray):
        self._arrays = {name: np.ascontiguousarray(array, "float32").reshape(-1) for name, array in arrays.items()}
        self._base = {name: array.ctypes.data for name, array in self._arrays.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def at(self, start: int, *names: str) -> list[int]:
        """Addresses of element ``start`` of each named vector."""
        return [self._base[name] + start * _FLOAT for name in names]


def _normalise(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float,
               silu: bool) -> tuple[Tensor, _Vectors]:
    images, channels, *sides = x.shape
    plan = _forwards.get((images, channels, math.prod(sides), groups, epsilon), _build_forward)
    y = new(x.shape)
    vectors = _Vectors(mean=np.zeros(images * groups), variance=np.zeros(images * groups),
                       weight=np.tile(weight.numpy(), images), bias=np.tile(bias.numpy(), images))
    affine = plan.affine_silu if silu else plan.affine
    source, target = x.data_ptr(), y.data_ptr()
    for index in range(images * groups // plan.runs):
        place = index * plan.runs * plan.run * _FLOAT
        mean, variance = vectors.at(index * plan.runs, "mean", "variance")
        plan.standardise(source + place, mean, variance, target + place)
        affine(target + place, *vectors.at(index * plan.lanes, "weight", "bias"), target + place)
    return y, vectors


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
    """x [B, C, ...] normalised over each of ``groups`` runs of channels, not recorded."""
    return _normalise(contiguous(x), groups, weight, bias, epsilon, silu)[0]


class GroupNorm(PyLayer):
    """x [B, C, ...] normalised over each of ``groups`` runs of channels, then SiLU if asked; weight and bias [C]."""

    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
        ctx.needs = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        ctx.groups, ctx.epsilon, ctx.silu = groups, epsilon, silu
        x = contiguous(x)
        y, ctx.vectors = _normalise(x, groups, weight, bias, epsilon, silu)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        x, = ctx.saved_tensor()
        images, channels = x.shape[:2]
        dx, *sums = _gradient(x, contiguous(dy), ctx.vectors, ctx.groups, ctx.epsilon, ctx.silu)
        gradients = [dx, new([channels]), new([channels])]
        for values, gradient in zip(sums, gradients[1:]):
            np.sum(values.reshape(images, channels), 0, out=memory(gradient))
        return tuple(value if needed else None for value, needed in zip(gradients, ctx.needs))


def _gradient(x: Tensor, dy: Tensor, saved: _Vectors, groups: int, epsilon: float,
              silu: bool) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """dx, and the gradients of weight and bias before their sum over pictures: [B · C] each."""
    images, channels, *sides = x.shape
    plan = _backwards.get((images, channels, math.prod(sides), groups), _build_backward)
    each = channels // groups
    mean, weight = saved["mean"], saved["weight"]
    r = 1.0 / np.sqrt(saved["variance"] + np.float32(epsilon))
    mean_by_lane, r_by_lane = np.repeat(mean, each), np.repeat(r, each)
    factor = weight * r_by_lane
    lane = _Vectors(factor=factor, offset=saved["bias"] - mean_by_lane * factor)
    ones = np.ones(plan.runs * plan.run // plan.lanes // plan.parts, "float32")
    parts = np.empty((2, plan.lanes, plan.parts), "float32")
    to_ones, of_dy, of_x_dy = (array.ctypes.data for array in (ones, *parts))
    sums = np.empty((2, factor.size), "float32")
    per_run, third_power = r / np.float32(plan.run), r ** 3 / np.float32(plan.run)
    rows = _Vectors(slope=np.zeros(r.size), offset=np.zeros(r.size))
    dx = new(x.shape)
    scratch = np.empty((2, plan.runs * plan.run), "float32")
    products, inner = (part.ctypes.data for part in scratch)
    from_x, from_dy, to_dx = x.data_ptr(), dy.data_ptr(), dx.data_ptr()
    for index in range(r.size // plan.runs):
        place, first = index * plan.runs * plan.run * _FLOAT, index * plan.lanes
        source, incoming, target = from_x + place, from_dy + place, to_dx + place
        if silu:
            plan.affine(source, *lane.at(first, "factor", "offset"), target)
            plan.logistic(target, products)
            plan.silu_gradient(target, products, target, products, incoming, inner)
            incoming = inner
        plan.sums(to_ones, incoming, of_dy)
        plan.multiply(source, incoming, products)
        plan.sums(to_ones, products, of_x_dy)
        # dx = w·r·dy − r·⟨w·dy⟩ − r·x̂·⟨w·dy·x̂⟩ with r = 1/σ and ⟨⟩ the mean over a run: a line in x, and w·r·dy.
        here, lanes = slice(index * plan.runs, (index + 1) * plan.runs), slice(first, first + plan.lanes)
        total = np.add.reduce(parts, 2, out=sums[:, lanes])
        by_dy, by_x_dy = np.add.reduce((total * weight[lanes]).reshape(2, plan.runs, each), 2)
        slope = rows["slope"][here] = third_power[here] * (mean[here] * by_dy - by_x_dy)
        rows["offset"][here] = -per_run[here] * by_dy - slope * mean[here]
        plan.line(source, *rows.at(index * plan.runs, "slope", "offset"), target)
        plan.combine(incoming, *lane.at(first, "factor"), target, target)
    return dx, r_by_lane * (sums[1] - mean_by_lane * sums[0]), sums[0]
