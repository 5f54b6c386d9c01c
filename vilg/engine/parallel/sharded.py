"""Optimizers at work under Paddle's group sharding: who holds which shard, and when gradients travel.

Paddle's wrappers join scaling, exchange and the optimizer's step in one call. Here they are taken apart, because the
trainer looks at the global gradient norm in between, to clip and to skip a step that is not finite.
"""
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import prod

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_utils import device_guard

from vilg.engine.checkpoints.tensor_shards import TensorShard, whole
from vilg.engine.parallel.half import HALF, drop_gradient, fill_gradient, gradient_of
from vilg.engine.parallel.phase_optimizer import Slot, PhaseOptimizer, sum_of_squares
from vilg.engine.task import Batch, Phase, StepOutput


class StateShardedOptimizer(PhaseOptimizer):
    """Levels os and os_g: every rank holds all parameters, and the optimizer states of those it owns.

    ``defer`` (os) keeps whole gradients on each rank and exchanges them after the last micro-batch; without it (os_g)
    each micro-batch's gradients are reduced at once to their owner, and only the owner keeps them. ``reduce(tensor,
    owner)`` sums over the sharding group. ``replica`` counts this rank's place among data-parallel replicas of the
    group.
    """

    def __init__(self, phase: Phase, module: nn.Layer, optimizer: paddle.optimizer.Optimizer, names: dict[int, str],
                 defer: bool, reduce: Callable[[Tensor, int], None], replica: int):
        super().__init__(phase, optimizer, names)
        self.module, self._inner, self._defer, self._reduce_to = module, optimizer._optim, defer, reduce
        self._replica = replica

    def forward(self, batch: Batch, step: int, first: bool, last: bool) -> StepOutput:
        # The wrapper's own forward empties the buffers of gradients that other ranks own: not between deferred ones.
        module = self.module._layer if self._defer and not first else self.module
        out = module(batch, step)
        if self._defer and last:
            self.module._clear_counters()
        elif self._defer:
            self.module._grad_reduced = [False] * len(self.module._grad_reduced)
        return out

    @paddle.no_grad()
    def after_backward(self, last: bool) -> None:
        """Reduce what the hooks left: a bucket waits for every parameter in it, also those this batch did not reach."""
        if self._defer and not last:
            return
        for storages in self.module._grad_storages.values():
            for owner, storage in sorted(storages.items()):
                if storage._params and not storage.all_checked_in:
                    self._reduce_to(storage.buffer, owner)
                    if owner != self.module._rank:
                        for parameter in storage._params:
                            drop_gradient(parameter)
                        storage.buffer._clear_data()
        for index, parameter in enumerate(self.module._trainable_params):
            if not self.module._has_grad_storage[index] and self.module._grad_reduced[index]:
                owner = self.module._trainable_param2rank[parameter.name]
                fill_gradient(parameter)
                self._reduce_to(gradient_of(parameter), owner)
                if owner != self.module._rank:
                    drop_gradient(parameter)

    def exchange(self) -> None:
        self.module._grad_scale()
        self.module._dp_allreduce()

    def step(self, rate: float) -> None:
        self.optimizer.set_lr(rate)
        self.optimizer._step()

    def clear(self) -> None:
        self.optimizer.clear_grad()

    def tensor_shards(self) -> list[TensorShard]:
        # Replicas of a sharding group hold the same gradients: one of them counts.
        return [whole(self.names[name], tensor, self._mine(tensor) and self._replica == 0)
                for name, tensor in self.phase.parameters.items()]

    def _gradients(self) -> list[Tensor]:
        mine = [gradient_of(tensor) for tensor in self.phase.parameters.values() if self._mine(tensor)]
        return [gradient for gradient in mine if gradient is not None]

    def _slots(self) -> dict[str, Slot]:
        return {shard.name: Slot(tensor.name, tensor, shard, tensor.dtype in HALF)
                for shard, tensor in zip(self.tensor_shards(), self.phase.parameters.values()) if self._mine(tensor)}

    def _mine(self, parameter: Tensor) -> bool:
        return self.optimizer.param2rank[parameter.name] == self.module._rank


class ParameterShardedOptimizer(PhaseOptimizer):
    """Level p_g_os: parameters, gradients and states live in flat slices, one a rank; small parameters stay whole.

    ``shapes`` are the parameters' shapes before slicing. With ``offload`` the optimizer works on the host, on float32
    masters that Paddle puts in the place of half-precision slices for the time of its step.
    """

    def __init__(self, phase: Phase, module: nn.Layer, optimizer: paddle.optimizer.Optimizer, names: dict[int, str],
                 shapes: dict[str, tuple[int, ...]], replica: int, offload: bool):
        super().__init__(phase, optimizer, names)
        self.module, self._shapes, self._replica, self._offload = module, shapes, replica, offload
        # Told now: while an offloaded optimizer is at work, masters stand in the parameters' places.
        self._half = {name for name, tensor in phase.parameters.items() if tensor.dtype in HALF}
        # The wrapper's step would move gradients into slices itself; exchange() has done so by then.
        optimizer.update_scaler = True

    def exchange(self) -> None:
        for parameter in self.phase.parameters.values():
            if _sliced(parameter) and parameter.bw_storage is None:
                with self._on_host():
                    parameter.bw_storage = paddle.zeros(parameter.fw_storage.shape, self._gradient_dtype(parameter))
        self.optimizer.update_slice()

    def square_norm(self) -> Tensor:
        return sum_of_squares([gradient_of(_holder(tensor)) for name, tensor in self.phase.parameters.items()
                               if self._shard(name, tensor).owned])

    def clear(self) -> None:
        self.optimizer.clear_grad()

    def tensor_shards(self) -> list[TensorShard]:
        return [self._shard(name, tensor) for name, tensor in self.phase.parameters.items()]

    def _shard(self, name: str, parameter: Tensor) -> TensorShard:
        shape, rank = self._shapes[name], self.module._rank
        if not _sliced(parameter):
            return TensorShard(self.names[name], lambda: parameter, shape, 0, prod(shape),
                               self._replica == 0 and rank == 0)
        start, stop = (min(edge, prod(shape)) for edge in self.module._param2buffer[parameter.name][rank])
        return TensorShard(self.names[name], lambda: parameter.fw_storage, shape, start, stop, self._replica == 0)

    def _gradients(self) -> list[Tensor]:
        gradients = [gradient_of(_holder(tensor)) for tensor in self.phase.parameters.values()]
        return [gradient for gradient in gradients if gradient is not None]

    def _gradient_dtype(self, parameter: Tensor) -> paddle.dtype:
        return paddle.float32 if self._offload or hasattr(parameter, "main_grad") else parameter.dtype

    def _on_host(self) -> AbstractContextManager:
        return device_guard() if self._offload else nullcontext()

    def _create_accumulators(self, parameters: list[Tensor]) -> None:
        with self._on_host():
            super()._create_accumulators(parameters)

    def _master(self, slot: Slot) -> Tensor | None:
        return slot.parameter if self._offload and slot.half else super()._master(slot)

    def _slots(self) -> dict[str, Slot]:
        slots = {}
        for name, tensor in self.phase.parameters.items():
            holder, half = _holder(tensor), name in self._half
            moved = _as(holder.name, tensor.master_weight) if self._offload and half else holder
            slots[self.names[name]] = Slot(holder.name, moved, self._shard(name, tensor), half)
        return slots


def _as(name: str, tensor: Tensor) -> Tensor:
    """The same storage under another name."""
    alias = tensor.detach()
    alias.name = name
    return alias


def _sliced(parameter: Tensor) -> bool:
    return hasattr(parameter, "fw_storage")


def _holder(parameter: Tensor) -> Tensor:
    """The tensor that the optimizer moves for ``parameter``: its slice, or itself."""
    return parameter.fw_storage if _sliced(parameter) else parameter
