"""Linear maps with int8 weights and int8 rows (W8A8), for drawing: a weight is read as one byte.

Weights have a scale an output channel, set once; a row of activations has a scale of its own, found as it comes, so
that its result does not depend on the rows beside it. Sums are int32 and exact, whatever kernel computes them; scales
and bias follow in float32. Needs VNNI: without it the kernels add pairs of products in 16 bits, which overflow.
"""
import functools
import math

import numpy as np
import paddle
from paddle import Tensor

from vilg.kernels.onednn import switch
from vilg.kernels.onednn.autograd import contiguous, new
from vilg.kernels.onednn.buffers import Buffer
from vilg.kernels.onednn.library import (
    DST, F32, NOTHING, S8, SRC, SRC_1, WEIGHTS, Cache, Descriptor, Library, Primitive, Unavailable, descriptor_bytes,
    load, operation, plain, query, reorder,
)
from vilg.kernels.onednn.precision import BINARY_ADD, BINARY_MUL, Step, chain, post_operand
from vilg.weights.int8 import LARGEST, rounded

_VNNI = 0x48  # of AVX-512 or of AVX2
_WEIGHTS_OF_DESCRIPTOR = 131
_SCALES = 4096 | WEIGHTS
_PER_COLUMN = 2
_SMALLEST = np.float32(1e-30)  # a row of zeros has a scale as well
_TOLERANCE = 1e-5
_products = Cache(512)


@functools.lru_cache(maxsize=1)
def _found() -> str:
    try:
        if not load().isa & _VNNI:
            return "the CPU has no VNNI, the instructions for products of int8"
        _self_test()
    except Unavailable as error:
        return str(error)
    except Exception as error:  # the library is internal to the wheel: whatever it does must not stop the user
        return f"the self-test of int8 products failed ({type(error).__name__}: {error})"
    return ""


def missing() -> str:
    """Why int8 products are not to be had here; empty when they are."""
    return switch.reason() or _found()


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight [in, out] float32 → int8 [in, out] and scales [out]: the largest of a column is 127 scales."""
    values, scales = rounded(weight, axis=1)
    return values, scales[0]


def quantize_rows(x: np.ndarray, scratch: np.ndarray, values: np.ndarray, scales: np.ndarray) -> None:
    """x [R, D] float32 → ``values`` [R, D] int8 and ``scales`` [R, 1]; ``scratch`` is [R, D] float32.

    In numpy whatever the number of rows: few are quicker here than through the library, which would wake its threads.
    """
    np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True), out=scales)
    np.maximum(scales, _SMALLEST, out=scales)
    np.multiply(x, np.float32(LARGEST) / scales, out=scratch)
    np.multiply(scales, np.float32(1 / LARGEST), out=scales)
    np.rint(scratch, out=scratch)
    with np.errstate(invalid="ignore"):  # what is not finite stays so by its scale
        np.copyto(values, scratch, casting="unsafe")


class Int8Weight:
    """The weight of a linear map: int8 values [in, out], a float32 scale a column [out] and a bias [out].

    It is laid out for the kernels at first use, once a layout; products of all numbers of rows mostly share one.
    """

    def __init__(self, values: np.ndarray, scales: np.ndarray, bias: np.ndarray | None = None):
        self.values = np.ascontiguousarray(values)
        self.inputs, self.outputs = values.shape
        self._scales, self._bias = Buffer((self.outputs,)), Buffer((self.outputs,))
        self._scales.array[...] = scales
        if bias is not None:
            self._bias.array[...] = bias
        self._packed: list[tuple[Int8Product, Buffer]] = []

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray | None) -> "Int8Weight":
        """Rounded from float32 [in, out]."""
        return cls(*quantize_columns(weight), bias)

    def operands(self, product: "Int8Product") -> tuple[int, int, int]:
        """Addresses of the packed weights, the scales and the bias, as ``product`` takes them."""
        return self._pack(product).address, self._scales.address, self._bias.address

    def _pack(self, product: "Int8Product") -> Buffer:
        for made, buffer in self._packed:
            if made is product or load().api.dnnl_memory_desc_equal(made.layout, product.layout):
                return buffer
        buffer = Buffer((product.size,), S8)
        product.pack(self.values.ctypes.data, buffer.address)
        self._packed.append((product, buffer))
        return buffer


class Int8Product:
    """x [rows, inputs] · weights [inputs, outputs] · scales + bias, and what is done ``after``; the result is
    of type ``target``.

    ``multiply`` takes the int8 rows, the packed weights (``size`` bytes), float32 memory for the sums in scales of
    their columns, and these scales; ``finish`` the sums, the rows' scales, the result and the bias. They are two
    because the library multiplies without its fast kernels where every row is to have a factor of its own.
    """

    def __init__(self, rows: int, inputs: int, outputs: int, after: tuple[Step, ...] = (), target: int = F32):
        source, sums, result = plain([rows, inputs], S8), plain([rows, outputs]), plain([rows, outputs], target)
        of_rows, offset = plain([rows, 1]), plain([1, outputs])
        attributes = chain()
        Library.check(load().api.dnnl_primitive_attr_set_scales_mask(attributes.value, WEIGHTS, _PER_COLUMN), "scales")
        descriptor = operation("matmul", source, Descriptor([inputs, outputs], None, S8), NOTHING, sums, attributes)
        self.layout = query(descriptor, _WEIGHTS_OF_DESCRIPTOR)
        self.size = descriptor_bytes(self.layout)
        self.pack = reorder(plain([inputs, outputs], S8), self.layout)
        self.multiply = Primitive(descriptor, [(SRC, source), (WEIGHTS, self.layout), (DST, sums),
                                               (_SCALES, plain([outputs]))])
        descriptor = operation("binary", BINARY_MUL, sums, of_rows, result, chain((BINARY_ADD, offset), *after))
        self.finish = Primitive(descriptor, [(SRC, sums), (SRC_1, of_rows), (DST, result),
                                             (post_operand(0), offset)])


def product_of(rows: int, inputs: int, outputs: int, after: tuple[Step, ...] = (), target: int = F32) -> Int8Product:
    """The product of these shapes, made once; ``after`` of steps that are no handles."""
    return _products.get((rows, inputs, outputs, after, target), Int8Product)


def linear(x: Tensor, weight: Int8Weight) -> Tensor:
    """x [..., in] · weight + bias → float32 [..., out], not recorded; x is float32 on the CPU."""
    *lead, inputs = x.shape
    rows = math.prod(lead)
    array = contiguous(x).numpy().reshape(rows, inputs)
    values, scales = np.empty((rows, inputs), "int8"), np.empty((rows, 1), "float32")
    quantize_rows(array, np.empty_like(array), values, scales)
    y, product = new([*lead, weight.outputs]), product_of(rows, inputs, weight.outputs)
    packed, of_columns, bias = weight.operands(product)
    product.multiply(values.ctypes.data, packed, y.data_ptr(), of_columns)
    product.finish(y.data_ptr(), scales.ctypes.data, y.data_ptr(), bias)
    return y


def _self_test() -> None:
    """Raise Unavailable when a product is not what float64 gives for the same int8 numbers, at their largest too."""
    random = np.random.default_rng(0)
    for rows, inputs, outputs in ((1, 64, 96), (8, 256, 40), (72, 48, 33)):
        x = random.standard_normal((rows, inputs), dtype="float32")
        weight = random.standard_normal((inputs, outputs), dtype="float32")
        x[0], weight[:, 0] = 1, 1  # sums of 127 · 127, where 16 bits would not do
        bias = random.standard_normal(outputs, dtype="float32")
        found = linear(paddle.to_tensor(x), Int8Weight.of(weight, bias)).numpy()
        values, scales = np.empty(x.shape, "int8"), np.empty((rows, 1), "float32")
        quantize_rows(x, np.empty_like(x), values, scales)
        columns, of_columns = quantize_columns(weight)
        exact = (values.astype("float64") @ columns.astype("float64")) * scales * of_columns + bias
        error = float(np.abs(found - exact).max() / np.abs(exact).max())
        if not error <= _TOLERANCE:
            raise Unavailable(f"int8 products differ from float64 by {error:.1e}")
