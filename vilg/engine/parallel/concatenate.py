"""Batches of all ranks as one, for losses that compare every sample with every other."""
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor


class Concatenate(paddle.autograd.PyLayer):
    """All-gather along the first axis. The loss behind it is the same on every rank and gradients are averaged over
    ranks, so each rank's part must get the sum of what all ranks found for it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        parts: list[Tensor] = []
        dist.all_gather(parts, tensor)
        return paddle.concat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first:first + ctx.rows]
