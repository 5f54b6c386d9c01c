"""The optimizer and its schedule: AdamW, warm-up, then cosine or constant; decay on matrices that are no tables."""
import math
from typing import Literal

import paddle
from paddle import Tensor

from vilg.config import configclass
from vilg.nn.layers import is_table


@configclass
class OptimConfig:
    """AdamW and its schedule.

    The rate rises linearly to ``lr`` over ``warmup_steps``, then follows ``schedule`` down to ``final_lr`` at the last
    step. ``weight_decay`` is for what is multiplied with (:func:`decays`): it leaves vectors, such as biases and norms,
    and tables, such as embeddings and codebooks, alone. ``clip_norm`` bounds the global norm of gradients; 0: never.
    """

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError("lr must be above 0")
        if not 0 <= self.final_lr <= self.lr:
            raise ValueError("final_lr lies between 0 and lr")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError("beta1 and beta2 lie in [0, 1)")
        if self.epsilon <= 0 or self.weight_decay < 0 or self.warmup_steps < 0 or self.clip_norm < 0:
            raise ValueError("epsilon must be above 0; weight_decay, warmup_steps and clip_norm must not be negative")


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of step ``step`` (from 0) in a run of ``steps``: a pure function, so resuming needs no state."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def decays(parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices and kernels that their layer did not mark as tables."""
    return parameter.ndim > 1 and not is_table(parameter)


def build_optimizer(config: OptimConfig, parameters: dict[str, Tensor],
                    multi_precision: bool) -> paddle.optimizer.AdamW:
    """AdamW over ``parameters`` (name → tensor); ``multi_precision`` keeps float32 masters of half-precision weights.
    """
    decaying = {tensor.name for tensor in parameters.values() if decays(tensor)}
    return paddle.optimizer.AdamW(
        learning_rate=config.lr, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon,
        parameters=list(parameters.values()), weight_decay=config.weight_decay, multi_precision=multi_precision,
        # A sharded slice of parameter p is called slice@p.
        apply_decay_param_fun=lambda name: name.removeprefix("slice@") in decaying)
