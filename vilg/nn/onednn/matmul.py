"""Matrix products: batched and 2-D, float32 tensors with float32 or bf16 arithmetic."""
import math

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.nn.onednn import precision
from vilg.nn.onednn.autograd import contiguous, refuse_double_backward
from vilg.nn.onednn.library import (
    BF16, BIAS, DST, F32, NOTHING, SRC, WEIGHTS, Cache, Descriptor, Primitive, operation, plain, reorder,
)

_products, _casts = Cache(), Cache()


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
    y = paddle.empty(x.shape, "bfloat16")
    size = x.size
    _casts.get((size,), _build_cast)(x.data_ptr(), y.data_ptr())
    return y


def operand(x: Tensor) -> Tensor:
    """``x`` as the products take it in the present precision: itself, or cast to bf16."""
    return to_bf16(contiguous(x)) if precision.casts() else contiguous(x)


def product(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False,
            bias: Tensor | None = None) -> Tensor:
    """a [..., m, k] · b [..., k, n] (+ bias [n]) → float32 [..., m, n]; operands from :func:`operand`."""
    rows = a.shape[-1] if transpose_a else a.shape[-2]
    out = paddle.empty([*a.shape[:-2], rows, b.shape[-2] if transpose_b else b.shape[-1]], "float32")
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
    dtype = BF16 if a.dtype == paddle.bfloat16 else F32
    key = (math.prod(lead) if lead else 0, m, k, n, transpose_a, transpose_b, bias is not None, dtype,
           0 if exact else precision.fpmath(), accumulate)
    run = _products.get(key, _build_product)
    if bias is None:
        run(a.data_ptr(), b.data_ptr(), out)
    else:
        run(a.data_ptr(), b.data_ptr(), out, bias.data_ptr())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] · weight [in, out] + bias [out], not recorded."""
    width = weight.shape[0]
    y = product(operand(x).reshape([-1, width]), operand(weight), bias=bias)
    return y if x.ndim == 2 else y.reshape([*x.shape[:-1], weight.shape[1]])


class Linear(PyLayer):
    """x [..., in] · weight [in, out] + bias [out]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = operand(x).reshape([-1, weight.shape[0]])
        matrix = operand(weight)
        ctx.save_for_backward(rows, matrix)
        ctx.shape = x.shape
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient, bias is not None and not bias.stop_gradient)
        ctx.has_bias = bias is not None
        y = product(rows, matrix, bias=bias)
        return y.reshape([*x.shape[:-1], weight.shape[1]])

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        rows, matrix = ctx.saved_tensor()
        exact = contiguous(dy).reshape([-1, matrix.shape[1]])
        gradient = operand(exact) if matrix.dtype == paddle.bfloat16 else exact
        dx = product(gradient, matrix, transpose_b=True).reshape(ctx.shape) if ctx.needs[0] else None
        dw = product(rows, gradient, transpose_a=True) if ctx.needs[1] else None
        db = column_sums(exact) if ctx.needs[2] else None
        return (dx, dw, db) if ctx.has_bias else (dx, dw)


def column_sums(x: Tensor) -> Tensor:
    """x [rows, n] → [n]; a product with ones, because Paddle's reduction over the first axis is slow on a CPU."""
    sums = paddle.empty([x.shape[1]], "float32")
    add_column_sums(sums.data_ptr(), x, False)
    return sums


def add_column_sums(out: int, x: Tensor, accumulate: bool = True) -> None:
    """Add the column sums of x [rows, n] to the float32 memory at address ``out`` (or write them there)."""
    product_into(out, paddle.ones([1, x.shape[0]], "float32"), x, accumulate=accumulate, exact=True)


class Matmul(PyLayer):
    """Batched a · b with either operand transposed; the leading axes are equal."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
        ctx.needs = (not a.stop_gradient, not b.stop_gradient)
        a, b = operand(a), operand(b)
        ctx.save_for_backward(a, b)
        ctx.transposed = (transpose_a, transpose_b)
        return product(a, b, transpose_a, transpose_b)

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        a, b = ctx.saved_tensor()
        transpose_a, transpose_b = ctx.transposed
        g = contiguous(dy)
        g = operand(g) if a.dtype == paddle.bfloat16 else g
        da = db = None
        if ctx.needs[0]:
            da = product(b, g, transpose_b, True) if transpose_a else product(g, b, False, not transpose_b)
        if ctx.needs[1]:
            db = product(g, a, True, transpose_a) if transpose_b else product(a, g, not transpose_a, False)
        return da, db


def matmul(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    """Batched a · b, not recorded."""
    return product(operand(a), operand(b), transpose_a, transpose_b)
