"""Cross-entropy over a large vocabulary, in chunks of rows small enough for the cache.

Besides the logits themselves (when a gradient will need them) nothing of their size is ever held: the forward keeps one
chunk of log-probabilities, the backward one chunk of the logits' gradient.
"""
from collections.abc import Callable

import numpy as np
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn import precision
from vilg.kernels.onednn.autograd import BFLOAT16, contiguous, memory, new, refuse_double_backward
from vilg.kernels.onednn.library import (
    DST, FORWARD_INFERENCE, NO_ATTRIBUTES, SRC, SRC_1, Cache, Primitive, operation, plain,
)
from vilg.kernels.onednn.matmul import (
    add_column_sums, linear_product, map_operand, operand, product, product_into, to_bf16,
)

IGNORED = -100
"""The label of a row that has no loss, as in Paddle."""
_SOFTMAX, _LOG_SOFTMAX = 0x30000, 0x30001
_CHUNK = 1 << 21
_FLOAT = 4
_rowwise = Cache()


def _build_rowwise(rows: int, columns: int) -> tuple[Primitive, Primitive, Primitive]:
    """Log-softmax, softmax, and the product of each row with its own factor."""
    md, spread, column = plain([rows, columns]), plain([1, rows, columns]), plain([1, rows, 1])

    def row_softmax(algorithm: int) -> Primitive:
        descriptor = operation("softmax_forward", FORWARD_INFERENCE, algorithm, md, md, 1, NO_ATTRIBUTES)
        return Primitive(descriptor, [(SRC, md), (DST, md)])

    scale = operation("binary", precision.BINARY_MUL, spread, column, spread, NO_ATTRIBUTES)
    return (row_softmax(_LOG_SOFTMAX), row_softmax(_SOFTMAX),
            Primitive(scale, [(SRC, spread), (SRC_1, column), (DST, spread)]))


def _chunks(rows: int, columns: int):
    size = max(64, _CHUNK // columns)
    return [(start, min(size, rows - start)) for start in range(0, rows, size)]


def checked_labels(labels: Tensor, columns: int) -> np.ndarray:
    """The labels, flat; raises ValueError for one that is neither a class nor :data:`IGNORED`."""
    flat = labels.numpy().reshape(-1)
    wrong = flat[((flat < 0) | (flat >= columns)) & (flat != IGNORED)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is not one of the {columns} classes")
    return flat


def _pick_losses(out: np.ndarray, logits: int, labels: np.ndarray, columns: int) -> None:
    """out [rows] = −log softmax(logits [rows, columns] at an address) at ``labels``; ``logits`` may be overwritten."""
    rows = len(labels)
    scratch = np.empty((rows, columns), "float32")
    _rowwise.get((rows, columns), _build_rowwise)[0](logits, scratch.ctypes.data)
    kept = labels != IGNORED
    out[:] = 0.0
    out[kept] = -scratch[kept, labels[kept]]


def _losses(logits: Tensor, labels: np.ndarray, columns: int) -> Tensor:
    losses = new([len(labels)])
    view, address = memory(losses), logits.data_ptr()
    for start, rows in _chunks(len(labels), columns):
        _pick_losses(view[start:start + rows], address + start * columns * _FLOAT, labels[start:start + rows], columns)
    return losses


def _logit_gradient(logits: int, labels: np.ndarray, factors: np.ndarray, out: np.ndarray) -> None:
    """out [rows, columns] = factors · (softmax(logits) − onehot(labels)); ignored rows become zero."""
    rows, columns = out.shape
    kept = labels != IGNORED
    factors = np.ascontiguousarray(np.where(kept, factors, np.float32(0.0)))
    _, row_softmax, scale = _rowwise.get((rows, columns), _build_rowwise)
    row_softmax(logits, out.ctypes.data)
    scale(out.ctypes.data, factors.ctypes.data, out.ctypes.data)
    out[np.flatnonzero(kept), labels[kept]] -= factors[kept]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits [..., V]) at labels [...] → [...], not recorded."""
    columns = logits.shape[-1]
    return _losses(contiguous(logits), checked_labels(labels, columns), columns).reshape(labels.shape)


class CrossEntropy(PyLayer):
    """−log softmax(logits [..., V]) at labels [...] → [...]."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
        logits = contiguous(logits)
        ctx.save_for_backward(logits)
        ctx.labels = checked_labels(labels, logits.shape[-1])
        return _losses(logits, ctx.labels, logits.shape[-1]).reshape(labels.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        refuse_double_backward()
        logits, = ctx.saved_tensor()
        columns = logits.shape[-1]
        dx = new(logits.shape)
        out, factors = memory(dx).reshape(-1, columns), gradient.numpy().reshape(-1)
        for start, rows in _chunks(len(factors), columns):
            part = slice(start, start + rows)
            _logit_gradient(logits.data_ptr() + start * columns * _FLOAT, ctx.labels[part], factors[part], out[part])
        return dx, None


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Cross-entropy of x [T, D] · weight [D, V] + bias [V] at labels [T] → [T], not recorded; logits chunk by chunk."""
    columns = weight.shape[1]
    flat, matrix = checked_labels(labels, columns), operand(weight)
    losses = new([len(flat)])
    view = memory(losses)
    for start, rows in _chunks(len(flat), columns):
        logits = product(operand(x[start:start + rows]), matrix, bias=bias)
        _pick_losses(view[start:start + rows], logits.data_ptr(), flat[start:start + rows], columns)
    return losses


class LinearCrossEntropy(PyLayer):
    """Cross-entropy of x [T, D] · weight [D, V] + bias [V] at labels [T] → [T]; the bias's gradient by ``add_sums``."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
                add_sums: Callable = add_column_sums) -> Tensor:
        ctx.needs = (not x.stop_gradient, not weight.stop_gradient, bias is not None and not bias.stop_gradient)
        ctx.has_bias, ctx.add_sums = bias is not None, add_sums
        columns = weight.shape[1]
        ctx.labels = checked_labels(labels, columns)
        x, weight = map_operand(x, x.shape[0]), map_operand(weight, x.shape[0])
        logits = linear_product(x, weight, bias)
        ctx.save_for_backward(x, weight, logits)
        return _losses(logits, ctx.labels, columns)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        refuse_double_backward()
        x, weight, logits = ctx.saved_tensor()
        (total, width), columns = x.shape, weight.shape[1]
        factors = gradient.numpy()
        needs_x, needs_weight, needs_bias = ctx.needs
        dx = new([total, width]) if needs_x else None
        dw = new([width, columns]) if needs_weight else None
        db = new([columns]) if needs_bias else None
        for start, rows in _chunks(total, columns):
            part, more = slice(start, start + rows), start > 0
            exact = new([rows, columns])
            _logit_gradient(logits.data_ptr() + start * columns * _FLOAT, ctx.labels[part], factors[part],
                            memory(exact).reshape(rows, columns))
            rounded = to_bf16(exact) if x.dtype == BFLOAT16 else exact
            if dx is not None:
                product_into(dx.data_ptr() + start * width * _FLOAT, rounded, weight, transpose_b=True)
            if dw is not None:
                product_into(dw.data_ptr(), x[part], rounded, transpose_a=True, accumulate=more)
            if db is not None:
                ctx.add_sums(db.data_ptr(), exact, rows, columns, more)
        return (dx, dw, db, None) if ctx.has_bias else (dx, dw, None)
