"""Recomputation, put on from outside: blocks forget their activations and compute them again in backward."""
from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

BLOCKS = "blocks"


def put_on_recompute(module: nn.Layer, which: str | int) -> int:
    """Make every k-th block of each stack in ``module`` forget its activations (1 for "full"). Returns how many do."""
    if which == "none":
        return 0
    every, count = 1 if which == "full" else int(which), 0
    for name, layer in module.named_sublayers():
        if name.rsplit(".", 1)[-1] != BLOCKS or not isinstance(layer, nn.LayerList):
            continue
        for number, block in enumerate(layer):
            if number % every == 0 and not hasattr(block, "recomputed"):
                block.forward = _recomputed(block.forward)
                block.recomputed = True
                count += 1
    return count


def forgetting(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """``function(inputs)``, whose activations are computed again in backward, with the same random numbers; for a part
    of a step that a layer cuts up by itself. ``inputs`` need no gradient, as pixels and ids do not."""
    # Paddle only recomputes what hangs on an input with a gradient.
    anchor = paddle.zeros([1])
    anchor.stop_gradient = False
    return recompute(lambda part, zero: function(part) + zero, inputs, anchor, use_reentrant=True)


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not paddle.is_grad_enabled():
            return forward(*args, **kwargs)
        return recompute(forward, *args, use_reentrant=True, **kwargs)
    return run
