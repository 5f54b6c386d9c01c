"""Matrix products and softmax on strided pieces of tensors, in place: what block-wise attention is made of.

The library's product takes operands with any strides along the batch axes and the rows, so that a head, a row or a
column of the token grid is read where it lies and a result is written, or added, where it belongs.
"""
import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vilg.nn.onednn import precision
from vilg.nn.onednn.library import (
    DST, NOTHING, SRC, WEIGHTS, Cache, Descriptor, Handle, Library, Primitive, load, operation)

_LINEAR = 0x26
_FLOAT_BYTES = 4
_products = Cache(4096)


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

    def at(self, index: int) -> "View":
        """Item ``index`` of the first batch axis."""
        return View(self.address + _FLOAT_BYTES * index * self.strides[0], self.dims[1:], self.strides[1:])


def _misread(view: View) -> bool:
    """Do the strides of the batch axes coincide in the way that makes the library take gaps for values?

    It then believes the first axis to lie just around the last one, writes wrong values, and some beyond the tensor.
    """
    axes = [axis for axis in range(len(view.dims) - 2) if view.dims[axis] > 1]
    if len(axes) < 2:
        return False
    first, last = axes[0], axes[-1]
    around = view.dims[first] * view.dims[last] * view.strides[last]
    return view.strides[axes[-2]] == around


def _build(a: tuple, a_strides: tuple, b: tuple, b_strides: tuple, c: tuple, c_strides: tuple, scale: float,
           add: bool, fpmath: int) -> Primitive:
    api = load().api
    left, right, out = _plain(a, a_strides), _plain(b, b_strides), _plain(c, c_strides)
    after = Handle("post_ops", api.dnnl_post_ops_create)
    if scale != 1:
        Library.check(api.dnnl_post_ops_append_eltwise(
            after.value, _LINEAR, ctypes.c_float(scale), ctypes.c_float(0)), "scale")
    if add:
        Library.check(api.dnnl_post_ops_append_sum(after.value, ctypes.c_float(1), 0, 0), "sum")
    attributes = Handle("primitive_attr", api.dnnl_primitive_attr_create)
    Library.check(api.dnnl_primitive_attr_set_fpmath_mode(attributes.value, fpmath), "math mode")
    Library.check(api.dnnl_primitive_attr_set_post_ops(attributes.value, after.value), "post-operations")
    descriptor = operation("matmul", left, right, NOTHING, out, attributes)
    return Primitive(descriptor, [(SRC, left), (WEIGHTS, right), (DST, out)])


def multiply(a: View, b: View, out: View, scale: float = 1.0, add: bool = False) -> None:
    """out = scale · a·b, or out += scale · a·b when ``add``; the batch axes are equal."""
    if a.dims[-2] == 1 or a.dims[-1] == 1 or b.dims[-1] == 1:
        _multiply_vectors(_array(a), _array(b), _array(out), scale, add)
        return
    if _misread(a) or _misread(b) or _misread(out):
        for index in range(a.dims[0]):
            multiply(a.at(index), b.at(index), out.at(index), scale, add)
        return
    key = (a.dims, a.strides, b.dims, b.strides, out.dims, out.strides, scale, add, precision.fpmath())
    _products.get(key, _build)(a.address, b.address, out.address)


def _array(view: View) -> np.ndarray:
    extent = 1 + sum((size - 1) * step for size, step in zip(view.dims, view.strides))
    flat = np.ctypeslib.as_array((ctypes.c_float * extent).from_address(view.address))
    return as_strided(flat, view.dims, [flat.itemsize * step for step in view.strides])


def _multiply_vectors(a: np.ndarray, b: np.ndarray, out: np.ndarray, scale: float, add: bool) -> None:
    # The library misreads strided matrices of a single row or column.
    result = np.float32(scale) * (a @ b)
    out[...] = out + result if add else result


def _plain(dims: tuple[int, ...], strides: tuple[int, ...]) -> Descriptor:
    """The descriptor without batch axes of one: the library goes wrong when these have strides of their own."""
    kept = [axis for axis in range(len(dims)) if dims[axis] > 1 or axis >= len(dims) - 2]
    return Descriptor([dims[axis] for axis in kept], [strides[axis] for axis in kept])
