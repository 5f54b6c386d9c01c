"""One optimizer step over the phases of a task, one after another, taken by all of them or by none."""
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import paddle
from paddle import Tensor

from vilg.engine.loss_scale import LossScale
from vilg.engine.metrics import named_by_phase
from vilg.engine.parallel.distributed import Parallel
from vilg.engine.parallel.phase_optimizer import PhaseOptimizer
from vilg.engine.safety.watchdog import EXCHANGES, WAITS
from vilg.engine.task import Batch


@dataclass
class StepResult:
    """What all ranks know after a step: figures for the log, whether any rank was asked to stop, and what was not
    finite ("" when the step was taken)."""

    figures: dict[str, float]
    stop: bool
    not_finite: str = ""


@dataclass
class _PhaseReport:
    figures: dict[str, float]
    norm: float
    stop: bool
    finite: bool


class OptimizerStep:
    """Forward, backward, exchange and update of every phase that has begun, in their order.

    A later phase sees what the earlier ones have updated, as an adversary should see the pictures of now. Where its
    gradient turns out not to be finite they are put back, so a step that is skipped leaves every phase where it was.
    ``at(doing)`` tells the watchdog; ``clip_norm`` as in :class:`vilg.engine.optim.OptimConfig`.
    """

    def __init__(self, phase_optimizers: list[PhaseOptimizer], parallel: Parallel, loss_scale: LossScale,
                 clip_norm: float):
        self.phase_optimizers, self.parallel = phase_optimizers, parallel
        self.loss_scale, self.clip_norm = loss_scale, clip_norm

    def take(self, step: int, micro: list[Batch], rate: float, stop: bool, broken: int,
             at: Callable[[str], None]) -> StepResult:
        """Step ``step`` on this rank's micro-batches at learning rate ``rate``.

        ``stop`` and ``broken`` are this rank's wish to stop and its count of broken samples, to be shared.
        """
        due = [each for each in self.phase_optimizers if step >= each.phase.start_step]
        result, undo = StepResult({}, stop), []
        for phase_optimizer in due:
            report = self._gradients(phase_optimizer, step, micro, result.stop, broken, at)
            result.stop = report.stop
            if not report.finite:
                result.not_finite = f"the loss or gradient of phase {phase_optimizer.phase.name}"
                phase_optimizer.clear()
                for put_back in undo:
                    put_back()
                break
            if phase_optimizer is not due[-1]:
                undo.append(phase_optimizer.remember())
            phase_optimizer.scale_gradients(clip_factor(report.norm, self.clip_norm) / self.loss_scale.value)
            phase_optimizer.step(rate)
            phase_optimizer.clear()
            result.figures |= named_by_phase(self.phase_optimizers, phase_optimizer,
                                             report.figures | {"grad_norm": report.norm})
        self.loss_scale.update(finite=not result.not_finite)
        return result

    def _gradients(self, phase_optimizer: PhaseOptimizer, step: int, micro: list[Batch], stop: bool,
                   broken: int, at: Callable[[str], None]) -> _PhaseReport:
        loss, named = self._accumulate(phase_optimizer, step, micro, at)
        at(WAITS)
        self.parallel.barrier()
        at(EXCHANGES)
        phase_optimizer.exchange()
        figures = self._agree(phase_optimizer, loss, named, stop, broken)
        at("computes")
        stop, norm = figures.pop("stop") > 0, figures.pop("square_norm") ** 0.5 / self.loss_scale.value
        return _PhaseReport(figures, norm, stop, isfinite(figures["loss"]) and isfinite(norm))

    def _accumulate(self, phase_optimizer: PhaseOptimizer, step: int, micro: list[Batch],
                    at: Callable[[str], None]) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward over the micro-batches; returns the mean loss and figures, detached."""
        share, total, figures = 1.0 / len(micro), paddle.zeros([]), {}
        for number, batch in enumerate(micro):
            last = number == len(micro) - 1
            at("computes")
            with self.parallel.autocast():
                out = phase_optimizer.forward(batch, step, number == 0, last)
            loss = out.loss.reshape([]).astype("float32")
            (loss * (share * self.loss_scale.value)).backward()
            phase_optimizer.after_backward(last)
            total = total + loss.detach() * share
            for key, value in out.figures.items():
                value = value.detach().reshape([]).astype("float32") * share
                figures[key] = figures[key] + value if key in figures else value
        return total, figures

    def _agree(self, phase_optimizer: PhaseOptimizer, loss: Tensor, figures: dict[str, Tensor], stop: bool,
               broken: int) -> dict[str, float]:
        """What all ranks know after a phase: mean loss and figures; sums of the squares of the gradient norm, of the
        wishes to stop, and of the broken samples met since the ranks started."""
        # The ranks of one model read the same samples: one of them counts.
        counted = stop, broken if self.parallel.topology.model_rank == 0 else 0
        means = paddle.stack([loss, *figures.values()]) / self.parallel.ranks
        counts = [paddle.to_tensor(float(count)) for count in counted]
        sums = paddle.stack([phase_optimizer.square_norm(), *counts])
        values = self.parallel.sum(paddle.concat([sums, means])).numpy().tolist()
        return dict(zip(("square_norm", "stop", "broken_samples", "loss", *figures), values))


def clip_factor(norm: float, clip_norm: float) -> float:
    """What gradients of global norm ``norm`` are multiplied with so that it is ``clip_norm`` at most (0: never)."""
    return clip_norm / norm if 0 < clip_norm < norm else 1.0
