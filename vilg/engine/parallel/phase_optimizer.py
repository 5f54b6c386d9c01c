"""One phase's optimizer at work: gradients in, one step out. The plain case; the sharded ones derive from it."""
from collections.abc import Callable
from math import prod

import paddle
from paddle import Tensor

from vilg.engine.checkpoints.tensor_shards import TensorShard, whole
from vilg.engine.task import Phase, StepOutput


class PhaseOptimizer:
    """Owns a phase's gradients and optimizer on this rank.

    The trainer calls, in this order: :meth:`forward`, ``loss.backward()`` and :meth:`after_backward` for each
    micro-batch, :meth:`exchange`, :meth:`square_norm`, :meth:`scale_gradients`, :meth:`step` (unless the step is
    skipped) and :meth:`clear`.
    ``reduce_gradients`` turns each rank's gradients into the mean over ranks, in place; None on one rank. Of ``ranks``
    replicas each looks after every ``ranks``-th parameter: counts it in norms, averages it, writes it to checkpoints.
    """

    def __init__(self, phase: Phase, optimizer: paddle.optimizer.Optimizer, names: dict[int, str],
                 reduce_gradients: Callable[[], None] | None = None, rank: int = 0, ranks: int = 1):
        self.phase, self.module, self.optimizer = phase, phase.module, optimizer
        self._inner = optimizer
        self._reduce, self._rank, self._ranks = reduce_gradients, rank, ranks
        self.names = {name: names.get(id(tensor), f"{phase.name}.{name}") for name, tensor in phase.parameters.items()}

    def forward(self, batch: dict[str, Tensor], step: int, first: bool, last: bool) -> StepOutput:
        """The phase's loss on one micro-batch, which may be the step's ``first`` and its ``last``."""
        return self.module(batch, step)

    def after_backward(self, last: bool) -> None:
        """Called when the micro-batch's gradients are there; nothing travels here unless the level demands it."""

    def exchange(self) -> None:
        """Make the gradients those of the global batch; the only exchange of the step."""
        if self._reduce is None:
            return
        for parameter in self.phase.parameters.values():
            # A parameter that one rank's data did not reach must still take part in the exchange, or the others hang.
            if parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
        self._reduce()

    def square_norm(self) -> Tensor:
        """Σ g² over the gradients of the owned shards, a float32 scalar; summed over ranks it is the global one."""
        parameters = self.phase.parameters.values()
        return sum_of_squares([tensor.grad for shard, tensor in zip(self.tensor_shards(), parameters) if shard.owned])

    @paddle.no_grad()
    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient in place (clipping and loss scale in one pass)."""
        if factor != 1.0:
            for gradient in self._gradients():
                gradient.scale_(factor)

    def step(self, rate: float) -> None:
        """Move the parameters at learning rate ``rate``."""
        self.optimizer.set_lr(rate)
        self.optimizer.step()

    def clear(self) -> None:
        """Drop the gradients."""
        self.optimizer.clear_grad(set_to_zero=False)

    def tensor_shards(self) -> list[TensorShard]:
        """The parameters as this rank holds them, under their names in the task's state."""
        return [whole(self.names[name], tensor, number % self._ranks == self._rank)
                for number, (name, tensor) in enumerate(self.phase.parameters.items())]

    def optimizer_shards(self) -> list[TensorShard]:
        """Every accumulator of the optimizer; creates those that do not exist before the first step."""
        self._create_accumulators()
        shards = []
        for name, slot in self._slots().items():
            shards += [self._accumulator(name, slot, kind, tensors[slot.key])
                       for kind, tensors in self._inner._accumulators.items() if slot.key in tensors]
            if slot.key in self._inner._master_weights:
                shards.append(self._accumulator(name, slot, "master", self._inner._master_weights[slot.key]))
        return shards

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.phase.parameters.values() if parameter.grad is not None]

    def _create_accumulators(self) -> None:
        block = paddle.static.default_main_program().global_block()
        with paddle.no_grad():
            self._inner._create_accumulators(block, [slot.parameter for slot in self._slots().values()])

    def _slots(self) -> dict[str, "Slot"]:
        """State name → where the optimizer keeps that parameter's accumulators."""
        return {shard.name: Slot(tensor.name, tensor, shard)
                for shard, tensor in zip(self.tensor_shards(), self.phase.parameters.values())}

    def _accumulator(self, name: str, slot: "Slot", kind: str, tensor: Tensor) -> TensorShard:
        full = f"optimizer/{self.phase.name}/{name}/{kind}"
        if prod(tensor.shape) == 1 and prod(slot.shard.shape) != 1:
            # A counter that every slice of the parameter has a copy of; the first slice's is kept.
            return TensorShard(full, lambda: tensor, (1,), 0, 1, slot.shard.owned and slot.shard.start == 0)
        return slot.shard.renamed(full, lambda: tensor)


def sum_of_squares(gradients: list[Tensor | None]) -> Tensor:
    """Σ g² of all that are there, a float32 scalar."""
    parts = [gradient.astype("float32").square().sum() for gradient in gradients if gradient is not None]
    return paddle.add_n(parts) if parts else paddle.zeros([])


class Slot:
    """Where an optimizer keeps what belongs to one parameter: under ``key``, for ``parameter``, covering ``shard``."""

    def __init__(self, key: str, parameter: Tensor, shard: TensorShard):
        self.key, self.parameter, self.shard = key, parameter, shard
