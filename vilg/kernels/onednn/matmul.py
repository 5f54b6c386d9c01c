"""Matrix products: batched and 2-D, float32 tensors with float32 or bf16 arithmetic."""
import math
from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn import precision
from vilg.kernels.onednn.autograd import BFLOAT16, FLOAT32, contiguous, new, refuse_double_backward
from vilg.kernels.onednn.library import (
    BF16, BIAS, DIFF_BIAS, DIFF_DST, DIFF_SRC, DIFF_WEIGHTS, DST, F32, FORWARD_TRAINING, NO_ATTRIBUTES, NOTHING, SRC,
    WEIGHTS, Cache, Descriptor, Primitive, operation, plain, reorder,
)
from vilg.machine import process

_products, _maps, _casts = Cache(), Cache(), Cache()
_NARROW = 1024
"""The gradient of an input that is narrower than this, and no wider than the output, is shared out badly by the
library's inner product: with two threads, in float32, it takes 1.1 to 1.5 times as long as the product."""
_MANY_ROWS = 512
"""From here on linear maps run as inner products: their kernels do not mind widths that are powers of two, where the
product's lose 10–15 %; in float32 the gradient of the bias comes with the weight's. With fewer rows products win."""


def _build_product(groups: int, m: int, k: int, n: int, transpose_a: bool, transpose_b: bool, bias: bool,
                   dtype: int, fpmath: int, accumulate: bool) -> Primitive:
    lead, step = ([groups], lambda size: [size]) if groups else ([], lambda size: [])
    a = Descriptor([*lead, m, k], step(m * k) + ([1, m] if transpose_a else [k, 1]), dtype)
    b = Descriptor([*lead, k, n], step(k * n) + ([1, k] if transpose_b else [n, 1]), dtype)
    c = plain([*lead, m, n])
    bias_md = plain([*(1 for _ in lead), 1, n]) if bias else NOTHING
    descriptor = operation("matmul", a, b, bias_md, c, precision.attributes(fpmath, accumulate))
    return Primitive(descriptor, [(SRC, a), (WEIGHTS, b), (DST, c)] + ([(BIAS, bias_md)] if bias else []))


def _build_cast(size: int) -> Primitive:
    return reorder(plain([size]), plain([size], BF16))


def to_bf16(x: Tensor) -> Tensor:
    """A bfloat16 copy of a contiguous float32 tensor."""
    y = new(x.shape, BFLOAT16)
    size = math.prod(x.shape)
    _casts.get((size,), _build_cast)(x.data_ptr(), y.data_ptr())
    return y


def operand(x: Tensor) -> Tensor:
    """``x`` as the products take it in the present precision: itself, or cast to bf16."""
    return to_bf16(contiguous(x)) if precision.casts() else contiguous(x)


def map_operand(x: Tensor, rows: int) -> Tensor:
    """:func:`operand` of a linear map of ``rows`` rows. From :data:`_MANY_ROWS` on AMX kernels take 1.1 to 2 times as
    long to convert values as they load them, which they do again and again, as for products of cast ones."""
    cast = precision.casts() or (precision.fpmath() and rows >= _MANY_ROWS)
    return to_bf16(contiguous(x)) if cast else contiguous(x)


def product(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False,
            bias: Tensor | None = None) -> Tensor:
    """a [..., m, k] · b [..., k, n] (+ bias [n]) → float32 [..., m, n]; operands from :func:`operand`."""
    rows = a.shape[-1] if transpose_a else a.shape[-2]
    out = new([*a.shape[:-2], rows, b.shape[-2] if transpose_b else b.shape[-1]])
    product_into(out.data_ptr(), a, b, transpose_a, transpose_b, bias)
    return out


def product_into(out: int, a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False,
                 bias: Tensor | None = None, accumulate: bool = False, exact: bool = False) -> None:
    """:func:`product` written, or added when ``accumulate``, to the float32 memory at address ``out``.

    ``exact`` keeps float32 arithmetic whatever the precision.
    """
    *lead, rows, columns = a.shape
    m, k = (columns, rows) if transpose_a else (rows, columns)
    n = b.shape[-2] if transpose_b else b.shape[-1]
    sizes = (math.prod(lead) if lead else 0, m, k, n)
    _multiply(out, a, b, sizes, transpose_a, transpose_b, bias, accumulate, exact)


def _multiply(out: int, a: Tensor, b: Tensor, sizes: tuple[int, int, int, int], transpose_a: bool = False,
              transpose_b: bool = False, bias: Tensor | None = None, accumulate: bool = False,
              exact: bool = False) -> None:
    """:func:`product_into` for (groups or 0, m, k, n), whatever shapes the operands go by."""
    dtype = F32 if a.dtype is FLOAT32 or a.dtype == FLOAT32 else BF16
    key = (*sizes, transpose_a, transpose_b, bias is not None, dtype, 0 if exact else precision.fpmath(), accumulate)
    run = _products.get(key, _build_product)
    if bias is None:
        run(a.data_ptr(), b.data_ptr(), out)
    else:
        run(a.data_ptr(), b.data_ptr(), out, bias.data_ptr())


def _build_map(rows: int, inputs: int, outputs: int, bias: bool, dtype: int, sums: bool) -> tuple[Primitive, ...]:
    """A linear map of many rows: (x, weight, y[, bias]), (dy, weight, dx) and (x, dy, dw[, db with ``sums``])."""
    def weight(kind: int) -> Descriptor:
        return Descriptor([outputs, inputs], [1, outputs], kind)

    x, y, offset = plain([rows, inputs], dtype), plain([rows, outputs], dtype), plain([outputs])
    dx, result, offset_or_nothing = plain([rows, inputs]), plain([rows, outputs]), offset if bias else NOTHING
    forward = operation("inner_product_forward", FORWARD_TRAINING, x, weight(dtype), offset_or_nothing, result,
                        NO_ATTRIBUTES)
    to_x = operation("inner_product_backward_data", dx, weight(dtype), y, forward, NO_ATTRIBUTES)
    to_weight = operation("inner_product_backward_weights", x, weight(F32), offset if sums else NOTHING, y, forward,
                          NO_ATTRIBUTES)
    return (Primitive(forward, [(SRC, x), (WEIGHTS, weight(dtype)), (DST, result)] + [(BIAS, offset)] * bias),
            Primitive(to_x, [(DIFF_DST, y), (WEIGHTS, weight(dtype)), (DIFF_SRC, dx)]),
            Primitive(to_weight, [(SRC, x), (DIFF_DST, y), (DIFF_WEIGHTS, weight(F32))] + [(DIFF_BIAS, offset)] * sums))


def _map_of_many_rows(x: Tensor, weight: Tensor, bias: bool, sums: bool = False) -> tuple[Primitive, ...] | None:
    """The primitives of :func:`_build_map`, or None where products serve better."""
    rows = math.prod(x.shape[:-1])
    if rows < _MANY_ROWS or precision.fpmath():  # AMX kernels would want another layout of the weight
        return None
    dtype = F32 if weight.dtype is FLOAT32 or weight.dtype == FLOAT32 else BF16
    return _maps.get((rows, *weight.shape, bias, dtype, sums), _build_map)


def _shared_badly(weight: Tensor) -> bool:
    inputs, outputs = weight.shape
    return inputs < _NARROW and inputs <= outputs and weight.dtype == FLOAT32 and process.threads() > 1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] · weight [in, out] + bias [out], not recorded."""
    rows = math.prod(x.shape[:-1])
    return linear_product(map_operand(x, rows), map_operand(weight, rows), bias)


def linear_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`linear` of operands from :func:`operand`."""
    (*lead, inputs), outputs = x.shape, weight.shape[1]
    y = new([*lead, outputs])
    many = _map_of_many_rows(x, weight, bias is not None)
    if many is None:
        _multiply(y.data_ptr(), x, weight, (0, math.prod(lead), inputs, outputs), bias=bias)
    elif bias is None:
        many[0](x.data_ptr(), weight.data_ptr(), y.data_ptr())
    else:
        many[0](x.data_ptr(), weight.data_ptr(), y.data_ptr(), bias.data_ptr())
    return y


class Linear(PyLayer):
    """x [..., in] · weight [in, out] + bias [out]; the bias's gradient by ``add_sums``, or where that is None by the
    library."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, add_sums: Callable | None = None) -> Tensor:
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient, bias is not None and not bias.stop_gradient)
        ctx.has_bias, ctx.add_sums, ctx.exact = bias is not None, add_sums, precision.exact()
        rows = math.prod(x.shape[:-1])
        x, weight = map_operand(x, rows), map_operand(weight, rows)
        ctx.save_for_backward(x, weight)
        return linear_product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        x, weight = ctx.saved_tensor()
        with precision.as_forward(ctx.exact):
            arrived = _Arrived(dy, x, weight, ctx)
            gradients = arrived.to_input() if ctx.needs[0] else None, *arrived.to_weight_and_bias(x)
        return gradients if ctx.has_bias else gradients[:2]


class LinearAfterGelu(PyLayer):
    """GELU(x) [..., in] · weight [in, out] + bias [out]; keeps x alone and computes its GELU again for the gradient.

    ``maps`` has :func:`vilg.kernels.onednn.elementwise.gelu` and ``gelu_and_gradient`` or their likes.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, maps: Any,
                add_sums: Callable | None = None) -> Tensor:
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient, bias is not None and not bias.stop_gradient)
        ctx.has_bias, ctx.add_sums, ctx.maps, ctx.exact = bias is not None, add_sums, maps, precision.exact()
        rows = math.prod(x.shape[:-1])
        x, weight = contiguous(x), map_operand(weight, rows)
        ctx.save_for_backward(x, weight)
        return linear_product(map_operand(maps.gelu(x), rows), weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        x, weight = ctx.saved_tensor()
        with precision.as_forward(ctx.exact):
            arrived, dx = _Arrived(dy, x, weight, ctx), None
            if ctx.needs[0]:
                inner, dx = ctx.maps.gelu_and_gradient(x, arrived.to_input())
            else:
                inner = ctx.maps.gelu(x)
            gradients = dx, *arrived.to_weight_and_bias(to_bf16(inner) if weight.dtype == BFLOAT16 else inner)
        return gradients if ctx.has_bias else gradients[:2]


class _Arrived:
    """The gradient dy of a linear map's result, and what follows from it. ``ctx`` has ``needs`` for x, weight and bias,
    ``has_bias`` and ``add_sums``."""

    def __init__(self, dy: Tensor, x: Tensor, weight: Tensor, ctx: Any):
        self.shape, self.weight, self.ctx = x.shape, weight, ctx
        self.rows = math.prod(self.shape[:-1])
        self.exact = contiguous(dy)
        # As forward did, whatever is asked for now.
        self.rounded = to_bf16(self.exact) if weight.dtype == BFLOAT16 else self.exact
        # Sums of a gradient rounded to bf16 would be off by more than a product is.
        self.with_sums = ctx.needs[1] and ctx.needs[2] and ctx.add_sums is None and weight.dtype != BFLOAT16
        self.many = _map_of_many_rows(x, weight, ctx.has_bias, self.with_sums)
        self.db = new([weight.shape[1]]) if ctx.needs[2] else None
        if self.db is not None and not (self.with_sums and self.many is not None):  # now, while dy lies in the cache
            (ctx.add_sums or add_column_sums)(self.db.data_ptr(), self.exact, self.rows, weight.shape[1], False)

    def to_input(self) -> Tensor:
        """The gradient of x."""
        dx, (inputs, outputs) = new(self.shape), self.weight.shape
        if self.many is None or _shared_badly(self.weight):
            _multiply(dx.data_ptr(), self.rounded, self.weight, (0, self.rows, outputs, inputs), transpose_b=True)
        else:
            self.many[1](self.rounded.data_ptr(), self.weight.data_ptr(), dx.data_ptr())
        return dx

    def to_weight_and_bias(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Their gradients, for x from :func:`operand` as forward had it; None where none is needed."""
        if not self.ctx.needs[1]:
            return None, self.db
        inputs, outputs = self.weight.shape
        dw = new([inputs, outputs])
        if self.many is None:
            _multiply(dw.data_ptr(), x, self.rounded, (0, inputs, self.rows, outputs), transpose_a=True)
        else:
            self.many[2](x.data_ptr(), self.rounded.data_ptr(), dw.data_ptr(),
                         *([self.db.data_ptr()] if self.with_sums else []))
        return dw, self.db


def add_column_sums(out: int, x: Tensor, rows: int, columns: int, accumulate: bool = True) -> None:
    """Add the column sums of x, seen as [rows, columns], to the float32 memory at address ``out``, or write them there.

    A product with ones, because Paddle's reduction over the first axis is slow on a CPU.
    """
    ones = paddle.ones([1, rows], "float32")
    _multiply(out, ones, x, (0, 1, rows, columns), accumulate=accumulate, exact=True)


class Matmul(PyLayer):
    """Batched a · b with either operand transposed; the leading axes are equal."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
        ctx.needs = (not a.stop_gradient, not b.stop_gradient)
        a, b = operand(a), operand(b)
        ctx.save_for_backward(a, b)
        ctx.transposed, ctx.exact = (transpose_a, transpose_b), precision.exact()
        return product(a, b, transpose_a, transpose_b)

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        a, b = ctx.saved_tensor()
        transpose_a, transpose_b = ctx.transposed
        g = contiguous(dy)
        g = to_bf16(g) if a.dtype == BFLOAT16 else g
        da = db = None
        with precision.as_forward(ctx.exact):
            if ctx.needs[0]:
                da = product(b, g, transpose_b, True) if transpose_a else product(g, b, False, not transpose_b)
            if ctx.needs[1]:
                db = product(g, a, True, transpose_a) if transpose_b else product(a, g, not transpose_a, False)
        return da, db


def matmul(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    """Batched a · b, not recorded."""
    return product(operand(a), operand(b), transpose_a, transpose_b)
