"""Scores that come out of their product already scaled and masked: out = scale · a·b + mask, on strided views.

A mask that lies in the buffer before the product has to be written there and read again, for every head; as the operand
of a step after the product it is read where it lies, in the cache.
"""
import ctypes
import functools
import itertools

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vilg.kernels.onednn.library import (
    DST, NOTHING, SRC, WEIGHTS, Cache, Descriptor, Library, Primitive, load, operation,
)
from vilg.kernels.onednn.precision import BINARY_ADD, chain, fpmath, linear_step, post_operand
from vilg.kernels.onednn.strided import View, multiply

_BYTES = 4
_SAMPLES, _HEADS = 0, 1
_plans = Cache(1024)


def masked_product(a: View, b: View, out: View, scale: float, mask: np.ndarray) -> None:
    """out = scale · a·b + mask, for a mask [S, rows or 1, columns] of S = 1, for all, or one a sample.

    The leading axes are samples, heads and, maybe, groups. A mask of more than one row has to lie as the result does,
    its rows as far apart (:func:`spread`).
    """
    *lead, rows, inner = a.dims
    if rows == 1 or inner == 1 or b.dims[-1] == 1:  # the library misreads these, multiply does not
        multiply(a, b, out, scale)
        array = _array(out)
        array += mask.reshape(len(mask), *[1] * (len(lead) - 1), *mask.shape[1:])
        return
    mask_strides = tuple(step // _BYTES for step in mask.strides)
    key = (a.dims, a.strides, b.strides, out.dims, out.strides, scale, mask.shape, mask_strides, fpmath())
    primitive, turns = _plans.get(key, _build)
    left, right, target, added = a.address, b.address, out.address, mask.ctypes.data
    for to_a, to_b, to_out, to_mask in turns:
        primitive(left + to_a, right + to_b, target + to_out, added + to_mask)


def _build(a: tuple, a_strides: tuple, b_strides: tuple, out: tuple, out_strides: tuple, scale: float, mask: tuple,
           mask_strides: tuple, mode: int) -> tuple[Primitive, list[tuple[int, int, int, int]]]:
    """The primitive over the heads, and the byte offsets at which to run it."""
    *lead, m, k = a
    n, strides = out[-1], (a_strides, b_strides, out_strides)
    descriptors = [Descriptor((lead[_HEADS], *matrix), (steps[_HEADS], *steps[-2:]))
                   for matrix, steps in zip(((m, k), (k, n), (m, n)), strides)]
    samples, per_sample, row = mask[0], *mask_strides[:2]
    # The library finds its place in a mask of several rows from that in the result: the rest after the stride between
    # matrices, which hence must not lie inside one another, as the columns of a grid do.
    assert mask[1] == 1 or row == out_strides[-2], "the mask's rows are not as far apart as the result's"
    added = Descriptor([1, *mask[1:]], [mask[1] * row, row, 1])
    a_md, b_md, out_md = descriptors
    steps = chain(linear_step(scale, 0.0), (BINARY_ADD, added))
    Library.check(load().api.dnnl_primitive_attr_set_fpmath_mode(steps.value, mode), "math mode")
    primitive = Primitive(operation("matmul", a_md, b_md, NOTHING, out_md, steps),
                          [*zip((SRC, WEIGHTS, DST), descriptors), (post_operand(1), added)])
    loops = [axis for axis in range(len(lead)) if axis != _HEADS]
    turns = []
    for index in itertools.product(*(range(lead[axis]) for axis in loops)):
        at = dict(zip(loops, index))
        turns.append((*(_BYTES * sum(i * step[axis] for axis, i in at.items()) for step in strides),
                      _BYTES * per_sample * at.get(_SAMPLES, 0) if samples > 1 else 0))
    return primitive, turns


def spread(mask: np.ndarray, row: int) -> np.ndarray:
    """A mask [S, rows, columns] laid out with its rows ``row`` elements apart."""
    samples, rows, columns = mask.shape
    laid = np.zeros((samples, rows, row), dtype=np.float32)[:, :, :columns]
    laid[...] = mask
    return laid


def _array(view: View) -> np.ndarray:
    extent = 1 + sum((size - 1) * step for size, step in zip(view.dims, view.strides))
    flat = np.ctypeslib.as_array((ctypes.c_float * extent).from_address(view.address))
    return as_strided(flat, view.dims, [flat.itemsize * step for step in view.strides])


@functools.lru_cache(maxsize=1)
def agrees() -> bool:
    """Do masked products here give what numpy gives, and leave what lies around the result alone?"""
    random = np.random.default_rng(0)
    steps = 576, 96, 192, 12, 1  # of [2, 2, 3, 8, 8] inside [2, 3, 2, 8, 12]: the axes of one batch interleave
    for shape in ((1, 8, 8), (1, 1, 8), (2, 8, 8), (2, 1, 8)):
        a, b, out, mask = (random.integers(-2, 3, size).astype("float32") for size in (1152, 1152, 1152, shape))
        mask = spread(mask, steps[-2])
        views = [View(x.ctypes.data, (2, 2, 3, 8, 8), steps) for x in (a, b, out)]
        expected = out.copy()
        target = _array(View(expected.ctypes.data, (2, 2, 3, 8, 8), steps))
        target[...] = (np.float32(0.5) * (_array(views[0]) @ _array(views[1]).swapaxes(-1, -2))
                       + mask.reshape(len(mask), 1, 1, *shape[1:]))
        masked_product(views[0], views[1].transposed, views[2], 0.5, mask)
        if not np.array_equal(out, expected):
            return False
    return True
