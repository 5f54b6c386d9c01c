"""Recomputation, put on from outside: blocks forget their activations and compute them again in backward."""
from typing import Any

import paddle
from paddle import nn
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


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not paddle.is_grad_enabled():
            return forward(*args, **kwargs)
        return recompute(forward, *args, use_reentrant=True, **kwargs)
    return run
