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
    BIAS, DST, F32, NOTHING, S8, SRC, SRC_1, WEIGHTS, Cache, Descriptor, Library, Primitive, Unavailable,
    descriptor_bytes, load, operation, plain, query, reorder,
)
from vilg.kernels.onednn.precision import BINARY_ADD, BINARY_MUL, Step, chain, post_operand
from vilg.weights.int8 import LARGEST, rounded

_VNNI = 0x48  # of AVX-512 or of AVX2
_WEIGHTS_OF_DESCRIPTOR = 131
_SCALES = 4096 | WEIGHTS
_PER_COLUMN = 2
_SMALLEST = np.float32(1e-30)  # a row of zeros has a scale as well
_LEVELS, OFFSET = 255, 128
"""Steps of int8 from its least to its largest, and what takes the least to 0."""
GELU_LEAST = -0.17
"""Nothing that GELU gives is below it (its least is -0.16997)."""
FEW = 8
"""Rows of the products that weights are laid out for at first: those of a decoding step."""
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


def quantize_rows(x: np.ndarray, scratch: np.ndarray, values: np.ndarray, scales: np.ndarray,
                  least: float = 0.0) -> None:
    """x [R, D] float32 → ``values`` [R, D] int8 and ``scales`` [R, 1]; ``scratch`` is [R, D] float32.

    x is about values · scales, or, where nothing in x is below a ``least`` that is not 0, (values + 128) · scales +
    least: twice as fine where nearly all that is large is positive. In numpy whatever the number of rows: few are
    quicker here than through the library, which would wake its threads.
    """
    levels = np.float32(_LEVELS if least else LARGEST)
    if least:
        np.subtract(x.max(axis=1, keepdims=True), np.float32(least), out=scales)
    else:
        np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True), out=scales)
    np.maximum(scales, _SMALLEST, out=scales)
    np.multiply(np.subtract(x, np.float32(least), out=scratch) if least else x, levels / scales, out=scratch)
    np.multiply(scales, 1 / levels, out=scales)
    np.rint(scratch, out=scratch)
    if least:
        np.subtract(scratch, np.float32(OFFSET), out=scratch)
    with np.errstate(invalid="ignore"):  # what is not finite stays so by its scale
        np.copyto(values, scratch, casting="unsafe")


class Int8Weight:
    """The weight of a linear map: int8 values [in, out], a float32 scale a column [out] and a bias [out]; what it reads
    is never below ``least``, where that is not 0 (:func:`quantize_rows`).

    It is laid out for the kernels at once, and held in that layout alone. Products of all numbers of rows mostly share
    one; of the small matrices for which they do not, another is made of it at first use.
    """

    def __init__(self, values: np.ndarray, scales: np.ndarray, bias: np.ndarray | None = None, least: float = 0.0):
        self.inputs, self.outputs = values.shape
        self.least = least
        self._scales, self._bias, self._shift = (Buffer((self.outputs,)) for _ in range(3))
        self._scales.array[...] = scales
        if bias is not None:
            self._bias.array[...] = bias
        if least:  # Σ w · ((v + 128) · s + least) = (Σ w · v + 128 · Σ w) · s + least · Σ w
            sums = values.sum(axis=0, dtype="int64") * self._scales.array.astype("float64")
            self._shift.array[...] = OFFSET * sums
            self._bias.array[...] += least * sums
        self._packed: list[tuple[Int8Product, Buffer]] = []
        self._pack(product_of(FEW, self.inputs, self.outputs, shifted=bool(least)), np.ascontiguousarray(values))

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray | None, least: float = 0.0) -> "Int8Weight":
        """Rounded from float32 [in, out]."""
        return cls(*quantize_columns(weight), bias, least)

    @property
    def values(self) -> np.ndarray:
        """The int8 values [in, out], a copy."""
        product, packed = self._packed[0]
        values = np.empty((self.inputs, self.outputs), "int8")
        reorder(product.layout, plain(values.shape, S8))(packed.address, values.ctypes.data)
        return values

    def nbytes(self) -> int:
        """Bytes of the values in all layouts."""
        return sum(product.size for product, _ in self._packed)

    def multiply(self, product: "Int8Product", values: int, sums: int) -> tuple[int, ...]:
        """The addresses that ``product.multiply`` takes: rows and sums are the caller's."""
        shift = (self._shift.address,) if product.shifted else ()
        return values, self._packed_for(product), sums, self._scales.address, *shift

    @property
    def bias(self) -> int:
        """The address of what is added to every row of the result."""
        return self._bias.address

    def _packed_for(self, product: "Int8Product") -> int:
        for made, buffer in self._packed:
            if made is product or load().api.dnnl_memory_desc_equal(made.layout, product.layout):
                return buffer.address
        return self._pack(product, self.values)

    def _pack(self, product: "Int8Product", values: np.ndarray) -> int:
        buffer = Buffer((product.size,), S8)
        product.pack(values.ctypes.data, buffer.address)
        self._packed.append((product, buffer))
        return buffer.address


class Int8Product:
    """x [rows, inputs] · weights [inputs, outputs] · scales + bias, and what is done ``after``; the result is
    of type ``target``. ``shifted``: rows are those of a ``least``.

    ``multiply`` takes what :meth:`Int8Weight.multiply` gives: the int8 rows, the packed weights (``size`` bytes),
    float32 memory for the sums in scales of their columns, these scales, and, where it is shifted, what the offset of
    the rows adds to the sums; ``finish`` the sums, the rows' scales, the result and the bias. They are two because the
    library multiplies without its fast kernels where every row is to have a factor of its own.
    """

    def __init__(self, rows: int, inputs: int, outputs: int, after: tuple[Step, ...] = (), target: int = F32,
                 shifted: bool = False):
        source, sums, result = plain([rows, inputs], S8), plain([rows, outputs]), plain([rows, outputs], target)
        of_rows, offset = plain([rows, 1]), plain([1, outputs])
        attributes = chain()
        Library.check(load().api.dnnl_primitive_attr_set_scales_mask(attributes.value, WEIGHTS, _PER_COLUMN), "scales")
        descriptor = operation("matmul", source, Descriptor([inputs, outputs], None, S8),
                               offset if shifted else NOTHING, sums, attributes)
        self.shifted = shifted
        self.layout = query(descriptor, _WEIGHTS_OF_DESCRIPTOR)
        self.size = descriptor_bytes(self.layout)
        self.pack = reorder(plain([inputs, outputs], S8), self.layout)
        self.multiply = Primitive(descriptor, [(SRC, source), (WEIGHTS, self.layout), (DST, sums),
                                               (_SCALES, plain([outputs])), *([(BIAS, offset)] if shifted else [])])
        descriptor = operation("binary", BINARY_MUL, sums, of_rows, result, chain((BINARY_ADD, offset), *after))
        self.finish = Primitive(descriptor, [(SRC, sums), (SRC_1, of_rows), (DST, result),
                                             (post_operand(0), offset)])


def product_of(rows: int, inputs: int, outputs: int, after: tuple[Step, ...] = (), target: int = F32,
               shifted: bool = False) -> Int8Product:
    """The product of these shapes, made once; ``after`` of steps that are no handles."""
    return _products.get((rows, inputs, outputs, after, target, shifted), Int8Product)


def linear(x: Tensor, weight: Int8Weight) -> Tensor:
    """x [..., in] · weight + bias → float32 [..., out], not recorded; x is float32 on the CPU."""
    *lead, inputs = x.shape
    rows = math.prod(lead)
    array = contiguous(x).numpy().reshape(rows, inputs)
    values, scales = np.empty((rows, inputs), "int8"), np.empty((rows, 1), "float32")
    quantize_rows(array, np.empty_like(array), values, scales, weight.least)
    y, product = new([*lead, weight.outputs]), product_of(rows, inputs, weight.outputs, shifted=bool(weight.least))
    product.multiply(*weight.multiply(product, values.ctypes.data, y.data_ptr()))
    product.finish(y.data_ptr(), scales.ctypes.data, y.data_ptr(), weight.bias)
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
        x = np.maximum(x, GELU_LEAST)
        shifted = linear(paddle.to_tensor(x), Int8Weight.of(weight, bias, GELU_LEAST)).numpy()
        quantize_rows(x, np.empty_like(x), values, scales, GELU_LEAST)
        near = (values.astype("float64") + OFFSET) * scales + GELU_LEAST
        exact_shifted = near @ (columns.astype("float64") * of_columns) + bias
        for product, sums in ((found, exact), (shifted, exact_shifted)):
            error = float(np.abs(product - sums).max() / np.abs(sums).max())
            if not error <= _TOLERANCE:
                raise Unavailable(f"int8 products differ from float64 by {error:.1e}")
