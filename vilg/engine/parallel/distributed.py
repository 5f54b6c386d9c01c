"""Parallelism, put on from outside: levels, divided layers, recompute, mixed precision. Nothing outside this folder
imports paddle.distributed."""
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients_with_group
from paddle.distributed.sharding import group_sharded_parallel

from vilg.config import configclass
from vilg.engine.optim import OptimConfig, build_optimizer
from vilg.engine.parallel.concatenate import Concatenate
from vilg.engine.parallel.half import to_half
from vilg.engine.parallel.phase_optimizer import PhaseOptimizer
from vilg.engine.parallel.recomputing import forgetting, put_on_recompute
from vilg.engine.parallel.sharded import ParameterShardedOptimizer, StateShardedOptimizer
from vilg.engine.parallel.slicing import allocate, is_late, slice_parameters
from vilg.engine.parallel.tensor_parallel import cut_parameters, put_on
from vilg.engine.parallel.topology import Topology
from vilg.engine.safety.barrier import Barrier, make_barrier_file
from vilg.engine.task import Phase
from vilg.errors import ConfigError
from vilg.machine import wheel

log = logging.getLogger("vilg.distributed")


@configclass
class DistributedConfig:
    """How a run is spread over ranks and devices.

    ``level``: none (one process), dp (replicas), os (optimizer states sharded), os_g (gradients too), p_g_os
    (parameters too). ``sharding_degree``: how many ranks share one model, 0 for all; the rest are data-parallel
    replicas of that group. ``mp_degree``: how many neighbouring ranks compute every layer together (tensor
    parallelism); it divides the ranks, and the model's heads. ``offload`` keeps optimizer states and master weights in
    host memory. ``recompute``: which blocks of every stack forget their activations and compute them again in backward:
    none, full, or every k-th. ``amp``: O1 casts operators, O2 also weights, whose masters and buffers stay float32;
    ``float32_gradients`` lets O2's gradients add up in float32 too; ``loss_scale`` is where float16's dynamic scale
    starts. ``segment_size``: with p_g_os, parameters of fewer elements stay whole on every rank. ``buffer_size``: with
    os and os_g, elements of gradients exchanged at once.
    """

    level: Literal["none", "dp", "os", "os_g", "p_g_os"] = "none"
    sharding_degree: int = 0
    mp_degree: int = 1
    offload: bool = False
    recompute: Literal["none", "full"] | int = "none"
    amp: Literal["none", "O1", "O2"] = "none"
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    float32_gradients: bool = True
    loss_scale: float = 65536.0
    segment_size: int = 2**20
    buffer_size: int = 2**23

    def __post_init__(self) -> None:
        if self.offload and self.level in ("os", "os_g"):
            raise ValueError(f"offload: at level {self.level} Paddle updates one flat buffer, without weight decay and "
                             "with nothing to resume from; use level: p_g_os, or offload: false")
        if self.offload and self.level != "p_g_os":
            raise ValueError(f"offload moves sharded states to the host; level {self.level} has none, use level: "
                             "p_g_os, or offload: false")
        if self.sharding_degree and self.level in ("none", "dp"):
            raise ValueError(f"sharding_degree: level {self.level} shards nothing; leave it 0")
        if self.sharding_degree < 0 or self.sharding_degree == 1:
            raise ValueError("sharding_degree is 0 (all ranks) or at least 2")
        if isinstance(self.recompute, int) and self.recompute < 1:
            raise ValueError("recompute is none, full or k for every k-th block")
        if self.mp_degree < 1:
            raise ValueError("mp_degree is at least 1")
        if self.mp_degree > 1 and self.level == "p_g_os":
            raise ValueError("mp_degree: level p_g_os slices the weights already; use level os_g, or mp_degree: 1")
        if self.loss_scale <= 0 or self.segment_size < 0 or self.buffer_size < 1:
            raise ValueError("loss_scale and buffer_size must be above 0, segment_size not below")

    @property
    def scales_loss(self) -> bool:
        """Whether gradients are small enough to need a loss scale: float16 has 5 exponent bits."""
        return self.amp != "none" and self.amp_dtype == "float16"

    def check_ranks(self, ranks: int) -> None:
        """Refuse what ``ranks`` processes cannot do. Raises ConfigError naming the key and the fix."""
        if ranks % self.mp_degree:
            raise ConfigError(f"distributed.mp_degree: {ranks} ranks do not split into models of {self.mp_degree}; use "
                              f"a divisor of {ranks}, or start other ranks")
        started, ranks = ranks, ranks // self.mp_degree
        told = f"{started} ranks" if ranks == started else f"{ranks} models of {self.mp_degree} ranks"
        if ranks > 1 and self.level == "none":
            raise ConfigError(f"distributed.level: is none, but {told} were started; set it to dp, os, os_g or p_g_os")
        if ranks == 1 and self.level != "none" and started > 1:
            raise ConfigError(f"distributed.level: {self.level} needs at least 2 models of {self.mp_degree} ranks, and "
                              "1 was started; use level none")
        if ranks == 1 and self.level != "none":
            raise ConfigError(f"distributed.level: {self.level} needs at least 2 ranks, and 1 was started; use level "
                              "none, or start tools/train.py with --ranks N or through paddle.distributed.launch")
        if self.sharding_degree and ranks % self.sharding_degree:
            raise ConfigError(f"distributed.sharding_degree: {told} do not split into groups of "
                              f"{self.sharding_degree}; use a divisor of {ranks}")


def ranks_of_launch() -> int:
    """How many ranks the launcher started (1 without a launcher)."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def rank_of_launch() -> int:
    """This process's rank (0 without a launcher)."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


class Parallel:
    """The ranks of a run and what they do together. Making it joins the ranks and allocates nothing of the model."""

    def __init__(self, config: DistributedConfig):
        self.config, self.ranks, self.rank = config, ranks_of_launch(), rank_of_launch()
        config.check_ranks(self.ranks)
        self.on_gpu = paddle.get_device().startswith("gpu")
        self.mixed_precision = self.on_gpu and config.amp != "none"
        self._check_device()
        # Recomputation runs layers out of the order that asynchronous gathering has recorded.
        self.gathers_ahead = self.on_gpu and config.recompute == "none"
        if config.amp != "none" and not self.on_gpu and self.rank == 0:
            log.warning("distributed.amp: Paddle has no mixed precision on the CPU; arithmetic stays float32")
        if self.ranks > 1 and not dist.is_initialized():
            if not self.on_gpu and os.environ.get("PADDLE_DISTRI_BACKEND", "auto") == "auto":
                # Left to itself Paddle takes its static-graph context on a CPU, which has no process groups.
                os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
            dist.init_parallel_env()
        self._generators: Any = None
        self._barrier: Barrier | None = None
        if self.ranks > 1 and not self.on_gpu:
            self._barrier = self._make_barrier()
        self.topology = Topology(self.ranks, self.rank, config.mp_degree, config.sharding_degree)
        self.topology.join(config.level in ("os", "os_g", "p_g_os"))

    def _check_device(self) -> None:
        """Refuse a CUDA Paddle without a GPU, and half precision on a GPU that lacks it."""
        if missing := wheel.no_device(paddle):
            raise ConfigError(missing)
        able = {"bfloat16": paddle.amp.is_bfloat16_supported, "float16": paddle.amp.is_float16_supported}
        dtype = self.config.amp_dtype
        if self.mixed_precision and not able[dtype]():
            instead = "float16" if dtype == "bfloat16" and able["float16"]() else None
            raise ConfigError(f"distributed.amp_dtype: this GPU does not compute in {dtype}; set distributed."
                              + (f"amp_dtype: {instead}" if instead else "amp: none"))

    def phase_optimizer(self, phase: Phase, optim: OptimConfig, names: dict[int, str]) -> PhaseOptimizer:
        """The phase made ready for this run's level; names map a tensor's id to its name in checkpoints."""
        level, module = self.config.level, phase.module
        module.train()
        divided = self.topology.mp_degree > 1
        if divided:
            put_on(module, self.topology)
        put_on_recompute(module, self.config.recompute)
        for layer in module.sublayers(include_self=True):
            if self.ranks > 1 and hasattr(layer, "gather"):
                layer.gather = self.concatenate
            if hasattr(layer, "forgetting"):
                layer.forgetting = forgetting
        late = any(map(is_late, module.parameters()))
        if late and level != "p_g_os":
            with self._randomness():
                allocate(module, self._half, cut_parameters if divided else None)
        elif divided:
            for layer in module.sublayers(include_self=True):
                cut_parameters(layer)
        optimizer = build_optimizer(optim, phase.parameters, multi_precision=self._half is not None)
        if self._half is not None:
            optimizer = to_half(module, optimizer, None if late else self._half, self.config.float32_gradients)
        if level == "none":
            return PhaseOptimizer(phase, optimizer, names)
        if level == "dp":
            if not divided:
                self._share_from_first(module)
            parameters, group = list(phase.parameters.values()), self.topology.data_group
            return PhaseOptimizer(phase, optimizer, names,
                                  lambda: fused_allreduce_gradients_with_group(parameters, group),
                                  self.topology.data_rank, self.topology.data_ranks)
        return self._sharded_optimizer(phase, module, optimizer, names)

    def _sharded_optimizer(self, phase: Phase, module: nn.Layer, optimizer: paddle.optimizer.Optimizer,
                           names: dict[int, str]) -> PhaseOptimizer:
        config, topology = self.config, self.topology
        self._refuse_unshardable(phase)
        shapes = {name: tuple(tensor.shape) for name, tensor in phase.parameters.items()}
        if config.level == "p_g_os":
            with self._randomness():
                wrapped = slice_parameters(
                    module, optimizer, topology.shard_group, topology.replica_group, self._half, offload=config.offload,
                    segment_size=config.segment_size, sync_comm=not self.gathers_ahead)
            return ParameterShardedOptimizer(phase, wrapped, wrapped._optim, names, shapes, topology.replica,
                                             config.offload)
        wrapped, optimizer, _ = group_sharded_parallel(
            module, optimizer, config.level, group=topology.shard_group,
            dp_group=topology.replica_group, buffer_max_size=config.buffer_size)
        return StateShardedOptimizer(phase, wrapped, optimizer, names, config.level == "os", self._reduce_to,
                                     topology.replica)

    @property
    def _half(self) -> str | None:
        """What weights are made, None where they stay float32."""
        return self.config.amp_dtype if self.mixed_precision and self.config.amp == "O2" else None

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """The context in which a model to train is made. Parameters that are to be sliced, or cast to half precision,
        are not allocated here but one layer at a time in :meth:`phase_optimizer`, from the same random numbers."""
        if self.config.level != "p_g_os" and self._half is None:
            yield
            return
        self._generators = paddle.get_rng_state()
        with paddle.LazyGuard():
            yield

    @contextlib.contextmanager
    def _randomness(self) -> Iterator[None]:
        """Where parameters are made late: the random numbers of :meth:`making`, and then those of now."""
        if self._generators is None:
            yield
            return
        now = paddle.get_rng_state()
        paddle.set_rng_state(self._generators)
        yield
        self._generators = paddle.get_rng_state()  # a next phase's parameters go on from here
        paddle.set_rng_state(now)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which forward passes run."""
        if self.mixed_precision:
            return paddle.amp.auto_cast(level=self.config.amp, dtype=self.config.amp_dtype)
        return contextlib.nullcontext()

    def barrier(self) -> None:
        """Return when every rank has come here, however long that takes (:mod:`vilg.engine.safety.barrier`).

        Does nothing on GPUs, which do not use Gloo, nor where ranks are on several machines.
        """
        if self._barrier is not None:
            self._barrier.wait()

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values

    @paddle.no_grad()
    def mean_over_ranks(self, tensors: list[Tensor]) -> None:
        """Mean over ranks of floating-point tensors (running statistics, of which each rank has its own), in place."""
        self.barrier()
        for tensor in tensors:
            if self.ranks > 1 and tensor.is_floating_point():
                dist.all_reduce(tensor)
                tensor.scale_(1.0 / self.ranks)

    def concatenate(self, tensor: Tensor) -> Tensor:
        """Every rank's ``tensor`` [B, ...], one after another along the first axis; the gradient goes to one's own."""
        return Concatenate.apply(tensor)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` (plain data) on every rank."""
        if self.ranks == 1:
            return value
        self.barrier()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (plain data), by rank, on every rank."""
        if self.ranks == 1:
            return [value]
        self.barrier()
        values: list[Any] = []
        dist.all_gather_object(values, value)
        return values

    def can_send(self, ranks: list[int]) -> bool:
        """Whether :meth:`send` reaches these ranks: all, or a group that the run has."""
        return self.ranks > 1 and tuple(ranks) in self.topology.groups

    def send(self, values: np.ndarray | None, count: int, dtype: paddle.dtype, source: int,
             ranks: list[int]) -> np.ndarray:
        """Rank ``source``'s flat ``values`` on all ``ranks`` (:meth:`can_send`), of which each calls it."""
        tensor = paddle.to_tensor(values).astype(dtype) if values is not None else paddle.zeros([count], dtype)
        dist.broadcast(tensor, src=source, group=self.topology.groups[tuple(ranks)])
        return tensor.numpy()

    def _make_barrier(self) -> Barrier | None:
        path = None
        if self.rank == 0:
            with contextlib.suppress(OSError):
                path = make_barrier_file(self.ranks)
        host, path = self.broadcast((socket.gethostname(), path))
        barrier = None
        if path is not None and host == socket.gethostname():
            with contextlib.suppress(OSError):
                barrier = Barrier(path, self.rank, self.ranks)
        everywhere = all(self.gather(barrier is not None))
        if self.rank == 0 and path is not None:
            with contextlib.suppress(OSError):  # a system that keeps files that are open
                os.remove(path)
        return barrier if everywhere else None

    def _reduce_to(self, tensor: Tensor, owner: int) -> None:
        group = self.topology.shard_group
        dist.reduce(tensor, dst=group.ranks[owner], group=group)

    def _share_from_first(self, module: nn.Layer) -> None:
        with paddle.no_grad():
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def _refuse_unshardable(self, phase: Phase) -> None:
        trained = {id(tensor) for tensor in phase.parameters.values()}
        others = [name for name, tensor in phase.module.named_parameters() if id(tensor) not in trained]
        if others:
            raise ConfigError(f"distributed.level: {self.config.level} shards whole modules, and phase {phase.name} "
                              f"trains only part of its own ({others[0]} and others are not trained); use level dp")
