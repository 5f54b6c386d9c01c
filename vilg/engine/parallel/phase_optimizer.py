"""One phase's optimizer at work: gradients in, one step out. The plain case; the sharded ones derive from it."""
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import paddle
from paddle import Tensor

from vilg.engine.checkpoints.tensor_shards import TensorShard, whole
from vilg.engine.parallel.half import HALF, fill_gradient, gradient_of
from vilg.engine.task import Batch, Phase, StepOutput
from vilg.errors import CheckpointError

ACCUMULATORS = {"moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc"}
"""What AdamW keeps for every parameter."""


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

    def forward(self, batch: Batch, step: int, first: bool, last: bool) -> StepOutput:
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
            fill_gradient(parameter)
        self._reduce()

    def square_norm(self) -> Tensor:
        """Σ g² over the gradients of the owned shards, a float32 scalar; summed over ranks it is the global one."""
        parameters = self.phase.parameters.values()
        return sum_of_squares([gradient_of(tensor) for shard, tensor in zip(self.tensor_shards(), parameters)
                               if shard.owned])

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

    @paddle.no_grad()
    def remember(self) -> Callable[[], None]:
        """What puts parameters and optimizer states back to what they are now."""
        kept = [(shard, shard.tensor().clone()) for shard in [*self.tensor_shards(), *self.optimizer_shards()]]

        @paddle.no_grad()
        def put_back() -> None:
            for shard, value in kept:
                shard.tensor().set_value(value.astype(shard.tensor().dtype))

        return put_back

    def clear(self) -> None:
        """Drop the gradients."""
        self.optimizer.clear_grad(set_to_zero=False)

    def tensor_shards(self) -> list[TensorShard]:
        """The parameters as this rank holds them, under their names in the task's state."""
        return [whole(self.names[name], tensor, number % self._ranks == self._rank)
                for number, (name, tensor) in enumerate(self.phase.parameters.items())]

    def optimizer_shards(self) -> list[TensorShard]:
        """Every accumulator of the optimizer, and the float32 masters of half-precision parameters; creates those that
        do not exist before the first step. Raises CheckpointError where the optimizer lacks one."""
        slots = self._slots()
        self._create_accumulators([slot.parameter for slot in slots.values()])
        return [self._accumulator(name, slot, kind, tensor)
                for name, slot in slots.items() for kind, tensor in self._state(name, slot).items()]

    def _state(self, name: str, slot: "Slot") -> dict[str, Tensor]:
        """What the optimizer keeps for one parameter, by kind."""
        master = self._master(slot)
        # What belongs to a half-precision parameter is kept under the name of its master.
        keys = [slot.key] if master is None else [master.name, slot.key]
        state = {kind: tensors[key] for kind, tensors in self._inner._accumulators.items()
                 for key in keys if key in tensors}
        missing = sorted(ACCUMULATORS - state.keys()) or ["master"] * (slot.half and master is None)
        if missing:
            raise CheckpointError(f"the optimizer of phase {self.phase.name} holds no {missing[0]} of {name}, so a "
                                  "checkpoint could not be resumed from; train with distributed.amp: none")
        return state if master is None else state | {"master": master}

    def _master(self, slot: "Slot") -> Tensor | None:
        return self._inner._master_weights.get(slot.key)

    def _gradients(self) -> list[Tensor]:
        gradients = [gradient_of(parameter) for parameter in self.phase.parameters.values()]
        return [gradient for gradient in gradients if gradient is not None]

    def _create_accumulators(self, parameters: list[Tensor]) -> None:
        block = paddle.static.default_main_program().global_block()
        with paddle.no_grad():
            self._inner._create_accumulators(block, parameters)

    def _slots(self) -> dict[str, "Slot"]:
        """State name → where the optimizer keeps that parameter's accumulators."""
        return {shard.name: Slot(tensor.name, tensor, shard, tensor.dtype in HALF)
                for shard, tensor in zip(self.tensor_shards(), self.phase.parameters.values())}

    def _accumulator(self, name: str, slot: "Slot", kind: str, tensor: Tensor) -> TensorShard:
        full = f"optimizer/{self.phase.name}/{name}/{kind}"
        if prod(tensor.shape) == 1 and prod(slot.shard.shape) != 1:
            # A counter that every slice of the parameter has a copy of; the first slice's is kept.
            return TensorShard(full, lambda: tensor, (1,), 0, 1, slot.shard.written and slot.shard.start == 0)
        return slot.shard.renamed(full, lambda: tensor)


def sum_of_squares(gradients: list[Tensor | None]) -> Tensor:
    """Σ g² of all that are there, a float32 scalar."""
    parts = [gradient.astype("float32").square().sum() for gradient in gradients if gradient is not None]
    return paddle.add_n(parts) if parts else paddle.zeros([])


@dataclass(frozen=True)
class Slot:
    """Where an optimizer keeps what belongs to one parameter: under ``key``, for ``parameter`` (what it moves),
    covering ``shard``; ``half`` says that the model computes with it in half precision."""

    key: str
    parameter: Tensor
    shard: TensorShard
    half: bool
