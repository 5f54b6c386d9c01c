"""What the ranks of one model exchange, with gradients: values copied to all, summed, joined; and the cross-entropy of
logits of which each rank has some classes (Megatron-LM, arXiv:1909.08053, section 3)."""
from typing import Any

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.nn.memory_savers import NO_LOSS, chunks


class Copy(PyLayer):
    """A value that all ranks have goes into what each computes in part; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient


class Sum(PyLayer):
    """The sum of what the ranks computed, on every rank; the gradient, which all have, goes to each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


class Join(PyLayer):
    """The ranks' parts [..., v] one after another along the last axis: [..., ranks · v], on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        parts: list[Tensor] = []
        dist.all_gather(parts, x.contiguous(), group=group)
        ctx.size, ctx.first = x.shape[-1], group.get_group_rank(dist.get_rank()) * x.shape[-1]
        return paddle.concat(parts, axis=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[..., ctx.first:ctx.first + ctx.size].clone()


class _VocabularyCrossEntropy(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, first: int,
                group: Any) -> Tensor:
        ctx.first, ctx.has_bias = first, bias is not None
        losses, sums = [], []
        with paddle.amp.auto_cast(enable=False):
            for rows, wanted in chunks(x, labels, weight.shape[1]):
                logits = _logits(rows, weight, bias)  # [t, v]
                top = logits.max(-1)
                dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
                column, here = _own(wanted, first, weight.shape[1])
                chosen = paddle.take_along_axis(logits, column.unsqueeze(1), 1).squeeze(1) * here
                both = paddle.stack([paddle.exp(logits - top.unsqueeze(1)).sum(-1), chosen])  # [2, t]
                dist.all_reduce(both, group=group)
                sums.append(top + paddle.log(both[0]))
                losses.append(paddle.where(wanted == NO_LOSS, paddle.zeros_like(top), sums[-1] - both[1]))
        ctx.save_for_backward(x, weight, bias, labels, paddle.concat(sums))
        return paddle.concat(losses)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, labels, sums = ctx.saved_tensor()
        dx, done = [], 0
        dweight, dbias = paddle.zeros(weight.shape, "float32"), paddle.zeros(weight.shape[1:], "float32")
        for rows, wanted in chunks(x, labels, weight.shape[1]):
            part = slice(done, done + rows.shape[0])
            column, here = _own(wanted, ctx.first, weight.shape[1])
            right = F.one_hot(column, weight.shape[1]) * here.unsqueeze(1)
            counts = paddle.where(wanted == NO_LOSS, paddle.zeros_like(dy[part]), dy[part]).unsqueeze(1)
            change = (paddle.exp(_logits(rows, weight, bias) - sums[part].unsqueeze(1)) - right) * counts  # [t, v]
            dbias.add_(change.sum(0))
            change = change.astype(weight.dtype)
            dx.append(paddle.matmul(change, weight, transpose_y=True).astype(x.dtype))
            dweight.add_(paddle.matmul(rows.astype(weight.dtype), change, transpose_x=True).astype("float32"))
            done = part.stop
        gradients = paddle.concat(dx), dweight.astype(weight.dtype)
        return (*gradients, dbias.astype(bias.dtype), None) if ctx.has_bias else (*gradients, None)


def vocabulary_loss(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, first: int, group: Any) -> Tensor:
    """NLL [T], float32, of labels [T] (-100: none) under x [T, D], of whose logits this rank computes the classes from
    ``first`` on: weight [D, v], bias [v]. Logits are there a chunk at a time, and computed again for the gradient,
    which is this rank's part for x."""
    return _VocabularyCrossEntropy.apply(x, weight, bias, labels, first, group)


def vocabulary_margin(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, first: int, classes: int,
                      group: Any) -> Tensor:
    """How far the label's logit lies above the mean of all ``classes``, [T]; 0 where there is no label."""
    column, here = _own(labels, first, weight.shape[1])
    with paddle.amp.auto_cast(enable=False):
        weight = weight.astype("float32")
        direction = paddle.gather(weight, column, axis=1).transpose([1, 0]) * here.unsqueeze(1)  # [T, D]
        above = (x.astype("float32") * (direction - weight.sum(1) / classes)).sum(-1)
        if bias is not None:
            bias = bias.astype("float32")
            above = above + paddle.gather(bias, column) * here - bias.sum() / classes
        above = Sum.apply(above, group)
        return paddle.where(labels >= 0, above, paddle.zeros_like(above))


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(rows.astype(weight.dtype), weight, bias).astype("float32")


def _own(labels: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The column [T] of each label among this rank's ``count`` classes, and 1.0 where it is one of them, else 0.0."""
    here = paddle.logical_and(labels >= first, labels < first + count)
    return paddle.clip(labels - first, min=0, max=count - 1), here.astype("float32")
