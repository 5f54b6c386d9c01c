"""Matrix products on strided pieces of tensors, in place: what block-wise attention is made of.

The library's product takes operands with strides along a batch axis and the rows, so that a head, a row or a column of
the token grid is read where it lies and a result is written, or added, where it belongs. With two or more batch axes it
mistakes some strides for a layout that it knows, and then writes wrong values, some of them beyond the tensor. So it is
only ever given one, the longest; the others are a loop of a few microseconds a turn.
"""
import ctypes
import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vilg.kernels.onednn import precision
from vilg.kernels.onednn.library import (
    DST, NOTHING, SRC, WEIGHTS, Cache, Descriptor, Handle, Library, Primitive, load, operation,
)

_LINEAR = 0x26
_BYTES = 4
_plans = Cache(4096)


@dataclass(frozen=True, slots=True)
class View:
    """Float32 values at ``address`` with a shape and strides (in elements), the last two axes being the matrix."""

    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def transposed(self) -> "View":
        """The same matrices, rows and columns exchanged."""
        *lead, rows, columns = self.dims
        *steps, down, right = self.strides
        return View(self.address, (*lead, columns, rows), (*steps, right, down))


def multiply(a: View, b: View, out: View, scale: float = 1.0, add: bool = False, axis: int | None = None) -> None:
    """out = scale · a·b, or out += scale · a·b when ``add``; the batch axes are equal.

    ``axis`` is the batch axis given to the library, by default the longest. Along the others, matrices may overlap.
    """
    if a.dims[-2] == 1 or a.dims[-1] == 1 or b.dims[-1] == 1:
        for index in np.ndindex(a.dims[:-2]):
            _multiply_vectors(_array(a)[index], _array(b)[index], _array(out)[index], scale, add)
        return
    batch = max(range(len(a.dims) - 2), key=a.dims.__getitem__) if axis is None else axis
    key = (a.dims, a.strides, b.strides, out.dims, out.strides, batch, scale, add, precision.fpmath())
    primitive, turns = _plans.get(key, _build)
    left, right, target = a.address, b.address, out.address
    for to_a, to_b, to_out in turns:
        primitive(left + to_a, right + to_b, target + to_out)


def _build(a: tuple, a_strides: tuple, b_strides: tuple, out: tuple, out_strides: tuple, batch: int, scale: float,
           add: bool, fpmath: int) -> tuple[Primitive, list[tuple[int, int, int]]]:
    """The primitive over the ``batch`` axis, and the byte offsets at which to run it."""
    *lead, m, k = a
    n = out[-1]
    strides = a_strides, b_strides, out_strides
    axes = [batch, -2, -1] if lead[batch] > 1 else [-2, -1]
    descriptors = [Descriptor([(*lead, *matrix)[axis] for axis in axes], [steps[axis] for axis in axes])
                   for matrix, steps in zip(((m, k), (k, n), (m, n)), strides)]
    loops = [axis for axis in range(len(lead)) if axis != batch]
    turns = [tuple(_BYTES * sum(i * steps[axis] for i, axis in zip(index, loops)) for steps in strides)
             for index in itertools.product(*(range(lead[axis]) for axis in loops))]
    return _primitive(descriptors, scale, add, fpmath), turns


def _primitive(descriptors: list[Descriptor], scale: float, add: bool, fpmath: int) -> Primitive:
    api, (a, b, out) = load().api, descriptors
    after = Handle("post_ops", api.dnnl_post_ops_create)
    if scale != 1:
        Library.check(api.dnnl_post_ops_append_eltwise(
            after.value, _LINEAR, ctypes.c_float(scale), ctypes.c_float(0)), "scale")
    if add:
        Library.check(api.dnnl_post_ops_append_sum(after.value, ctypes.c_float(1), 0, 0), "sum")
    attributes = Handle("primitive_attr", api.dnnl_primitive_attr_create)
    Library.check(api.dnnl_primitive_attr_set_fpmath_mode(attributes.value, fpmath), "math mode")
    Library.check(api.dnnl_primitive_attr_set_post_ops(attributes.value, after.value), "post-operations")
    return Primitive(operation("matmul", a, b, NOTHING, out, attributes), [(SRC, a), (WEIGHTS, b), (DST, out)])


def _array(view: View) -> np.ndarray:
    extent = 1 + sum((size - 1) * step for size, step in zip(view.dims, view.strides))
    flat = np.ctypeslib.as_array((ctypes.c_float * extent).from_address(view.address))
    return as_strided(flat, view.dims, [flat.itemsize * step for step in view.strides])


def _multiply_vectors(a: np.ndarray, b: np.ndarray, out: np.ndarray, scale: float, add: bool) -> None:
    # The library misreads strided matrices of a single row or column.
    result = np.float32(scale) * (a @ b)
    out[...] = out + result if add else result


@functools.lru_cache(maxsize=1)
def agrees() -> bool:
    """Do strided products here give what numpy gives, and leave what lies around the result alone?"""
    random = np.random.default_rng(0)
    steps = 576, 96, 192, 12, 1  # of [2, 2, 3, 8, 8] inside [2, 3, 2, 8, 12]: the axes of one batch interleave
    for transposed, add in itertools.product((False, True), repeat=2):
        a, b, out = (random.integers(-2, 3, 1152).astype("float32") for _ in range(3))
        views = [View(x.ctypes.data, (2, 2, 3, 8, 8), steps) for x in (a, b, out)]
        expected = out.copy()
        target = View(expected.ctypes.data, (2, 2, 3, 8, 8), steps)
        views[1] = views[1].transposed if transposed else views[1]
        _multiply_vectors(_array(views[0]), _array(views[1]), _array(target), 0.5, add)
        multiply(*views, scale=0.5, add=add)
        if not np.array_equal(out, expected):
            return False
    return True
