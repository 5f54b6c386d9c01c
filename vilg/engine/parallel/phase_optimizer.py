"""One phase's optimizer at work: gradients in, one step out. The plain case; the sharded ones derive from it."""
from collections.abc import Callable
from math import prod

import paddle
from paddle import Tensor

from vilg.engine.checkpoints.tensor_shards import Piece, whole
from vilg.engine.task import Batch, Phase, StepOutput


class Worker:
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
            if parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
        self._reduce()

    def square_norm(self) -> Tensor:
        """Σ g² over the gradients of the owned pieces, a float32 scalar; summed over ranks it is the global one."""
        return sum_of_squares([tensor.grad for piece, tensor in zip(self.pieces(), self.phase.parameters.values())
                               if piece.owned])

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

    def pieces(self) -> list[Piece]:
        """The parameters as this rank holds them, under their names in the task's state."""
        return [whole(self.names[name], tensor, number % self._ranks == self._rank)
                for number, (name, tensor) in enumerate(self.phase.parameters.items())]

    def optimizer_pieces(self) -> list[Piece]:
        """Every accumulator of the optimizer; creates those that do not exist before the first step."""
        self._create_accumulators()
        pieces = []
        for name, slot in self._slots().items():
            pieces += [self._accumulator(name, slot, kind, tensors[slot.key])
                       for kind, tensors in self._inner._accumulators.items() if slot.key in tensors]
            if slot.key in self._inner._master_weights:
                pieces.append(self._accumulator(name, slot, "master", self._inner._master_weights[slot.key]))
        return pieces

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.phase.parameters.values() if parameter.grad is not None]

    def _create_accumulators(self) -> None:
        block = paddle.static.default_main_program().global_block()
        with paddle.no_grad():
            self._inner._create_accumulators(block, [slot.parameter for slot in self._slots().values()])

    def _slots(self) -> dict[str, "Slot"]:
        """State name → where the optimizer keeps that parameter's accumulators."""
        return {piece.name: Slot(tensor.name, tensor, piece)
                for piece, tensor in zip(self.pieces(), self.phase.parameters.values())}

    def _accumulator(self, name: str, slot: "Slot", kind: str, tensor: Tensor) -> Piece:
        full = f"optimizer/{self.phase.name}/{name}/{kind}"
        if prod(tensor.shape) == 1 and prod(slot.piece.shape) != 1:
            # A counter that every slice of the parameter has a copy of; the first slice's is kept.
            return Piece(full, lambda: tensor, (1,), 0, 1, slot.piece.owned and slot.piece.start == 0)
        return slot.piece.renamed(full, lambda: tensor)


def sum_of_squares(gradients: list[Tensor | None]) -> Tensor:
    """Σ g² of all that are there, a float32 scalar."""
    parts = [gradient.astype("float32").square().sum() for gradient in gradients if gradient is not None]
    return paddle.add_n(parts) if parts else paddle.zeros([])


class Slot:
    """Where an optimizer keeps what belongs to one parameter: under ``key``, for ``parameter``, covering ``piece``."""

    def __init__(self, key: str, parameter: Tensor, piece: Piece):
        self.key, self.parameter, self.piece = key, parameter, piece
