"""What an accelerator computes twice in order to keep less: a map after a GELU, and the loss behind a large vocabulary.

Plain Paddle operators, for half-precision operands of one type (AMP level O2). Kept is what cannot be had again: of
:class:`LinearAfterGelu` the input of GELU, of :class:`LinearCrossEntropy` no logits at all.
"""
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, _C_ops
from paddle.autograd import PyLayer

# Elements of logits that are there at once, in float32.
CHUNK = 2**26
NO_LOSS = -100


class LinearAfterGelu(PyLayer):
    """GELU(x) [..., in] · weight [in, out] + bias [out], whose gradient computes GELU again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensor()
        flat, rows = dy.reshape([-1, dy.shape[-1]]), F.gelu(x).reshape([-1, x.shape[-1]])  # [T, out], [T, in]
        # The kernel itself: a paddle.grad within another, or a formula of five tensors as large as x, would not do.
        dx = _C_ops.gelu_grad(x, paddle.matmul(dy, weight, transpose_y=True), False)
        gradients = dx, paddle.matmul(rows, flat, transpose_x=True)
        return (*gradients, _column_sums(flat)) if ctx.has_bias else gradients


class LinearCrossEntropy(PyLayer):
    """NLL [T], float32, of labels [T] (-100: none) under x [T, D] · weight [D, V] + bias [V], a :data:`CHUNK` at a
    time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        ctx.has_bias = bias is not None
        losses, sums = [], []
        with paddle.amp.auto_cast(enable=False):
            for rows, wanted in chunks(x, labels, weight.shape[1]):
                logits = F.linear(rows, weight, bias).astype("float32")  # [t, V]
                sums.append(paddle.logsumexp(logits, axis=-1))
                chosen = paddle.take_along_axis(logits, paddle.clip(wanted, min=0).unsqueeze(1), 1).squeeze(1)
                losses.append(paddle.where(wanted == NO_LOSS, paddle.zeros_like(chosen), sums[-1] - chosen))
        ctx.save_for_backward(x, weight, bias, labels, paddle.concat(sums))
        return paddle.concat(losses)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, labels, sums = ctx.saved_tensor()
        dx, first = [], 0
        dweight, dbias = paddle.zeros(weight.shape, "float32"), paddle.zeros(weight.shape[1:], "float32")
        for rows, wanted in chunks(x, labels, weight.shape[1]):
            last = first + rows.shape[0]
            logits = F.linear(rows, weight, bias).astype("float32")
            counts = paddle.where(wanted == NO_LOSS, paddle.zeros_like(dy[first:last]), dy[first:last]).unsqueeze(1)
            right = F.one_hot(paddle.clip(wanted, min=0), weight.shape[1])
            change = (paddle.exp(logits - sums[first:last].unsqueeze(1)) - right) * counts  # [t, V]
            dbias.add_(change.sum(0))
            change = change.astype(x.dtype)
            dx.append(paddle.matmul(change, weight, transpose_y=True))
            dweight.add_(paddle.matmul(rows, change, transpose_x=True).astype("float32"))
            first = last
        gradients = paddle.concat(dx), dweight.astype(weight.dtype)
        return (*gradients, dbias.astype(bias.dtype), None) if ctx.has_bias else (*gradients, None)


def chunks(x: Tensor, labels: Tensor, classes: int) -> list[tuple[Tensor, Tensor]]:
    """Rows of x [T, D] with their labels, as many at a time as have :data:`CHUNK` logits."""
    size = max(CHUNK // classes, 1)
    return [(x[first:first + size], labels[first:first + size]) for first in range(0, x.shape[0], size)]


def _column_sums(rows: Tensor) -> Tensor:
    return rows.astype("float32").sum(0).astype(rows.dtype)
