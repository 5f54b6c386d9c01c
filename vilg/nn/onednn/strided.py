"""Matrix products on strided pieces of tensors, in place: what block-wise attention is made of.

The library's product takes operands with strides along the batch axes and the rows, so that a head, a row or a column of
the token grid is read where it lies and a result is written, or added, where it belongs. With two or more batch axes it
mistakes some strides for a layout that it knows, and then writes wrong values, some of them beyond the tensor. So a plan
for such axes is tried out on scratch memory before its first use, and where it fails the first axis becomes a loop.
"""
import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vilg.nn.onednn import precision
from vilg.nn.onednn.library import (
    DST, NOTHING, SRC, WEIGHTS, Cache, Descriptor, Handle, Library, Primitive, load, operation,
)

_LINEAR = 0x26
_BYTES = 4
_plans = Cache(4096)
# Larger products are looped over rather than tried out: a loop costs them nothing, and scratch memory would.
_TRIAL_ELEMENTS = 1 << 24
_TRIAL_TOLERANCE = 1e-3


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

    @property
    def extent(self) -> int:
        """Elements from the first value to the last, gaps included."""
        return 1 + sum((size - 1) * step for size, step in zip(self.dims, self.strides))

    def at(self, index: int) -> "View":
        """Item ``index`` of the first axis."""
        return View(self.address + _BYTES * index * self.strides[0], self.dims[1:], self.strides[1:])


def multiply(a: View, b: View, out: View, scale: float = 1.0, add: bool = False) -> None:
    """out = scale · a·b, or out += scale · a·b when ``add``; the batch axes are equal."""
    if a.dims[-2] == 1 or a.dims[-1] == 1 or b.dims[-1] == 1:
        _multiply_vectors(_array(a), _array(b), _array(out), scale, add)
        return
    key = (a.dims, a.strides, b.dims, b.strides, out.dims, out.strides, scale, add, precision.fpmath())
    plan = _plans.get(key, _build)
    if plan is not _LOOP:
        plan(a.address, b.address, out.address)
        return
    for index in range(a.dims[0]):
        multiply(a.at(index), b.at(index), out.at(index), scale, add)


_LOOP = object()


def _build(a: tuple, a_strides: tuple, b: tuple, b_strides: tuple, out: tuple, out_strides: tuple, scale: float,
           add: bool, fpmath: int) -> Primitive | object:
    """The primitive, or ``_LOOP`` where it cannot be relied on."""
    views = View(0, a, a_strides), View(0, b, b_strides), View(0, out, out_strides)
    uncertain = sum(size > 1 for size in a[:-2]) > 1
    if uncertain and max(view.extent for view in views) > _TRIAL_ELEMENTS:
        return _LOOP
    plan = _primitive(*(_plain(view) for view in views), scale, add, fpmath)
    return _LOOP if uncertain and not _trustworthy(plan, *views, scale, add) else plan


def _primitive(a: Descriptor, b: Descriptor, out: Descriptor, scale: float, add: bool, fpmath: int) -> Primitive:
    api = load().api
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


def _plain(view: View) -> Descriptor:
    """The descriptor without batch axes of one: the library goes wrong when these have strides of their own."""
    kept = [axis for axis in range(len(view.dims)) if view.dims[axis] > 1 or axis >= len(view.dims) - 2]
    return Descriptor([view.dims[axis] for axis in kept], [view.strides[axis] for axis in kept])


def _trustworthy(plan: Primitive, a: View, b: View, out: View, scale: float, add: bool) -> bool:
    """Does the plan compute the product, and leave what lies between and around the results alone?

    Every matrix of the batch is checked by its first and last row; values are small integers, exact in any precision.
    """
    random = np.random.default_rng(0)
    left, right = (random.integers(-2, 3, view.extent).astype("float32") for view in (a, b))
    margin = out.extent
    whole = random.integers(-2, 3, out.extent + 2 * margin).astype("float32")
    before = whole.copy()
    plan(left.ctypes.data, right.ctypes.data, whole[margin:].ctypes.data)
    found, kept = (_strided(array[margin:], out) for array in (whole, before))
    edges = slice(None, None, max(1, out.dims[-2] - 1))
    expected = np.float32(scale) * (_strided(left, a)[..., edges, :] @ _strided(right, b))
    if add:
        expected = expected + kept[..., edges, :]
    if not np.allclose(found[..., edges, :], expected, atol=_TRIAL_TOLERANCE, rtol=_TRIAL_TOLERANCE):
        return False
    kept[...] = found
    return bool(np.array_equal(whole, before))


def _strided(flat: np.ndarray, view: View) -> np.ndarray:
    return as_strided(flat, view.dims, [flat.itemsize * step for step in view.strides])


def _array(view: View) -> np.ndarray:
    return _strided(np.ctypeslib.as_array((ctypes.c_float * view.extent).from_address(view.address)), view)


def _multiply_vectors(a: np.ndarray, b: np.ndarray, out: np.ndarray, scale: float, add: bool) -> None:
    # The library misreads strided matrices of a single row or column.
    result = np.float32(scale) * (a @ b)
    out[...] = out + result if add else result
