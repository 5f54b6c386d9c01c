"""The only training loop: phases of a task, stepped, logged, guarded and saved."""
import logging
import resource
import uuid
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from vilg.config import configclass
from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.engine.checkpoints.files import make_directory
from vilg.engine.checkpoints.output import claim, release
from vilg.engine.checkpoints.resume import choose_checkpoint, together
from vilg.engine.checkpoints.saver import Saver
from vilg.engine.checkpoints.tensor_shards import Piece, whole
from vilg.engine.ema import WeightAverage
from vilg.engine.loss_scale import LossScale
from vilg.engine.metrics import MetricsLog, named_by_phase
from vilg.engine.optim import OptimConfig, learning_rate
from vilg.engine.parallel.distributed import DistributedConfig, Parallel, ranks_of_launch
from vilg.engine.parallel.phase_optimizer import Worker
from vilg.engine.safety.guards import Guard, GuardConfig, StopSignal
from vilg.engine.safety.watchdog import EXCHANGES, WAITS, Watchdog
from vilg.engine.task import Batch, Batches, Task
from vilg.errors import CheckpointError, ConfigError, DataError
from vilg.nn import functional

log = logging.getLogger("vilg.train")
MODEL = "model/"
_LAST_WRITE_SECONDS = 60.0


@configclass
class TrainConfig:
    """How long a run trains, on how much at a time, and what it leaves behind.

    ``batch_size`` counts samples an optimizer step, over all ranks and all ``accumulate_steps`` micro-batches. The
    ``*_every`` are in steps, 0 turns the thing off. ``ema_decay`` 0 ships the last weights instead of their average.
    ``resume``: none (refuses a directory that already holds checkpoints), auto (the newest that verifies), or a path.
    ``resume_changed`` lets a run go on with other data, batch size, rate or schedule than it began with.
    ``keep_best`` also keeps the checkpoint whose steps had the lowest mean loss.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulate_steps: int = 1
    log_every: int = 10
    preview_every: int = 500
    checkpoint_every: int = 500
    keep_last: int = 3
    keep_best: bool = False
    ema_decay: float = 0.999
    resume: str = "none"
    resume_changed: bool = False
    export: bool = True
    guards: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate_steps", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.preview_every < 0 or self.checkpoint_every < 0:
            raise ValueError("preview_every and checkpoint_every must not be negative (0 turns them off)")
        if not 0 <= self.ema_decay < 1:
            raise ValueError("ema_decay lies in [0, 1)")

    def check_parallel(self, distributed: DistributedConfig, ranks: int) -> None:
        """Refuse what this run cannot do at a parallel level and number of ranks. Raises ConfigError."""
        distributed.check_ranks(ranks)
        self.micro_batch_size(ranks)
        if distributed.level == "p_g_os" and self.preview_every:
            raise ConfigError(f"train.preview_every: is {self.preview_every}, but with distributed.level p_g_os no "
                              "rank holds the whole model to draw with; set it to 0 and draw from an exported model")

    def micro_batch_size(self, ranks: int) -> int:
        """Samples a rank and micro-batch. Raises ConfigError when batch_size does not divide."""
        parts = ranks * self.accumulate_steps
        if self.batch_size % parts:
            raise ConfigError(f"train.batch_size: {self.batch_size} does not divide over {ranks} ranks × "
                              f"{self.accumulate_steps} accumulate_steps; use a multiple of {parts}")
        return self.batch_size // parts


@dataclass
class TrainSummary:
    """How a run ended: steps finished, the last loss, whether a signal stopped it, and how many steps were skipped."""

    step: int
    loss: float
    stopped: bool
    skipped: int


class Trainer:
    """Runs ``task`` on the batches of ``loader`` (this rank's micro-batches, without end).

    ``output`` receives ``checkpoints/``, ``metrics.jsonl``, ``visualdl/``, ``previews/`` and, at the end, the released
    folder ``model/``. ``identity`` (config, fingerprints of tokenizer and vocabulary) is recorded in checkpoints;
    entries under ``identity["fingerprints"]`` must equal the checkpoint's to resume from it.
    Raises ConfigError and CheckpointError before training when the run cannot start like this.
    """

    def __init__(self, task: Task, loader: Batches, train: TrainConfig, optim: OptimConfig,
                 distributed: DistributedConfig, output: str | Path, seed: int = 0, name: str = "train",
                 identity: dict[str, Any] | None = None):
        self.task, self.loader, self.train, self.optim = task, loader, train, optim
        self.output, self.seed, self.name, self.identity = Path(output), seed, name, identity or {}
        train.check_parallel(distributed, ranks_of_launch())
        self.parallel = Parallel(distributed)
        self.guard = Guard(train.guards, self.output, self.parallel.rank)
        self.scale = LossScale(distributed.scales_loss, distributed.loss_scale)
        self.step, self.loss, self._losses, self._batch = 0, float("nan"), [], None
        chosen = together(self.parallel, self._prepare)
        here = (self.output / "checkpoints").resolve()
        self._resumed_here = chosen is not None and chosen.path.resolve().parent == here
        if chosen is not None:
            # Sharding cuts up what it finds, so weights come before it, and what it creates is filled after it.
            together(self.parallel, lambda: self._restore_model(chosen))
        names = {id(tensor): MODEL + key for key, tensor in task.state().items()}
        self.workers = [self.parallel.worker(phase, optim, names) for phase in task.phases]
        owned = [piece for worker in self.workers for piece in worker.pieces() if piece.owned]
        self.average = WeightAverage(owned, train.ema_decay) if train.ema_decay else None
        if chosen is not None:
            together(self.parallel, lambda: self._restore(chosen))
        token = self.parallel.broadcast(uuid.uuid4().hex[:8])
        self.saver = Saver(self.output / "checkpoints", self.parallel.rank, self.parallel.ranks, token, train.keep_last,
                           train.keep_best)

    def fit(self) -> TrainSummary:
        """Train to the last step (or to SIGTERM), save, export. Raises TrainingStopped, CheckpointError."""
        try:
            return self._fit()
        finally:
            release(self.output)

    def _fit(self) -> TrainSummary:
        functional.start_training()
        start, batches, stopped = self.step, iter(self.loader), False
        first = self.parallel.rank == 0
        metrics = MetricsLog(self.output, start, self.train.steps, self.name) if first else None
        try:
            with StopSignal() as signal, self._watchdog() as watchdog:
                while self.step < self.train.steps and not stopped:
                    watchdog.at(self.step, "waits for data")
                    micro = [next(batches) for _ in range(self.train.accumulate_steps)]
                    watchdog.at(self.step, WAITS)
                    self.parallel.meet()
                    watchdog.at(self.step, "computes")
                    stopped = self._step(micro, metrics, signal.received, watchdog)
                    self._between_steps(metrics, watchdog)
                if not self._saved(start):
                    self._save()
                self.saver.finish(lambda: watchdog.at(self.step, "writes the last checkpoint"))
        finally:
            self.loader.close()
            # Whatever ended training, the checkpoint being written is worth having; a dead rank's part never comes.
            self.saver.settle(None if self.parallel.ranks == 1 else _LAST_WRITE_SECONDS)
            if metrics is not None:
                metrics.close()
        if not stopped and self.train.export and first:
            self.export(self.output / "model")
        return TrainSummary(self.step, self.loss, stopped, self.guard.skipped)

    def export(self, directory: str | Path) -> None:
        """Write the released folder on rank 0: averaged weights where an average is kept, else the last ones.

        Of several ranks none need hold all of them, so there the newest checkpoint is read.
        """
        if self.parallel.ranks > 1:
            checkpoint = Checkpoint(self.saver.directory / f"step-{self.step:08d}")
            kind = f"average/{MODEL}" if self.average is not None else MODEL
            weights = {name.removeprefix(kind): checkpoint.full(name) for name in checkpoint.names
                       if name.startswith(kind)}
        else:
            weights = {piece.name.removeprefix(MODEL): piece.read().reshape(piece.shape)
                       for piece in (self.average.pieces() if self.average is not None else [])}
        self.task.export(str(directory), weights or None)

    def _step(self, arrays: list[Batch], metrics: MetricsLog | None, stop: bool,
              watchdog: Watchdog) -> bool:
        """One optimizer step on the micro-batches ``arrays``. Returns whether any rank was asked to stop."""
        self._seed_step()
        micro = [self.task.prepare(batch.map(paddle.to_tensor)) for batch in arrays]
        rate, figures, bad = learning_rate(self.optim, self.step, self.train.steps), {}, ""
        for worker in self.workers:
            if self.step < worker.phase.start_step:
                continue
            loss, named = self._descend(worker, micro, watchdog)
            watchdog.at(self.step, WAITS)
            self.parallel.meet()
            watchdog.at(self.step, EXCHANGES)
            worker.exchange()
            report = self._agree(worker, loss, named, stop)
            watchdog.at(self.step, "computes")
            stop, norm = report.pop("stop") > 0, report.pop("square_norm") ** 0.5 / self.scale.value
            if not (isfinite(report["loss"]) and isfinite(norm)):
                bad = f"the loss or gradient of phase {worker.phase.name}"
                worker.clear()
                break
            self._descend_by(worker, norm, rate)
            figures |= named_by_phase(self.workers, worker, report | {"grad_norm": norm})
        self.scale.update(finite=not bad)
        figures["lr"] = rate
        self._end_step(bad, figures, arrays)
        if metrics is not None:
            self._report(metrics, figures, self.parallel.ranks * sum(map(self.task.tokens, micro)))
        self._batch = micro[0]
        return stop

    def _descend(self, worker: Worker, micro: list[Batch], watchdog: Watchdog
                 ) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward over the micro-batches; returns the mean loss and figures, detached."""
        share, total, figures = 1.0 / len(micro), paddle.zeros([]), {}
        for number, batch in enumerate(micro):
            last = number == len(micro) - 1
            watchdog.at(self.step, "computes")
            with self.parallel.precision():
                out = worker.forward(batch, self.step, number == 0, last)
            loss = out.loss.reshape([]).astype("float32")
            (loss * (share * self.scale.value)).backward()
            worker.after_backward(last)
            total = total + loss.detach() * share
            for key, value in out.figures.items():
                value = value.detach().reshape([]).astype("float32") * share
                figures[key] = figures[key] + value if key in figures else value
        return total, figures

    def _agree(self, worker: Worker, loss: Tensor, figures: dict[str, Tensor], stop: bool) -> dict[str, float]:
        """What all ranks know after a phase: mean loss and figures; sums of the squares of the gradient norm, of the
        wishes to stop, and of the broken samples met since the ranks started."""
        means = paddle.stack([loss, *figures.values()]) / self.parallel.ranks
        counts = [paddle.to_tensor(float(count)) for count in (stop, len(self.loader.broken))]
        sums = paddle.stack([worker.square_norm(), *counts])
        values = self.parallel.sum(paddle.concat([sums, means])).numpy().tolist()
        return dict(zip(("square_norm", "stop", "broken_samples", "loss", *figures), values))

    def _descend_by(self, worker: Worker, norm: float, rate: float) -> None:
        clip = self.optim.clip_norm
        worker.scale_gradients((clip / norm if 0 < clip < norm else 1.0) / self.scale.value)
        worker.step(rate)
        worker.clear()

    def _end_step(self, bad: str, figures: dict[str, float], arrays: list[Batch]) -> None:
        self.step += 1
        if bad:
            self.guard.skip(self.step, bad, [batch.parts() for batch in arrays])
            return
        self.loss = figures["loss"]
        self._losses.append(self.loss)
        self.guard.accept(self.step, self.loss)
        if self.average is not None:
            self.average.update(self.step - 1)
        figures |= self.task.after_step(self.step)

    def _report(self, metrics: MetricsLog, figures: dict[str, float], tokens: int) -> None:
        metrics.advance(tokens)
        if self._due(self.train.log_every) or self.step == self.train.steps:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            scale = {"scale_of_loss": self.scale.value} if self.scale.on else {}
            metrics.scalars(self.step, figures | scale | metrics.rates(self.loader.waited) | {
                "epoch": self.loader.epoch, "peak_memory_mb": memory, "skipped": self.guard.skipped,
                "spikes": self.guard.spikes})

    def _between_steps(self, metrics: MetricsLog | None, watchdog: Watchdog) -> None:
        if self._due(self.train.preview_every) and metrics is not None:
            watchdog.at(self.step, "draws previews")
            metrics.pictures(self.step, self.task.preview(self._batch))
        if self._due(self.train.checkpoint_every):
            watchdog.at(self.step, "copies a checkpoint")
            self._save()

    def _saved(self, start: int) -> bool:
        """Is this step's checkpoint in the output, after a run that began at ``start``?"""
        return self._due(self.train.checkpoint_every) if self.step > start else self._resumed_here

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _seed_step(self) -> None:
        """Randomness is a pure function of run seed, step and rank, so there is no generator state to save."""
        sequence = np.random.SeedSequence([self.seed, self.step, self.parallel.rank])
        paddle.seed(int(sequence.generate_state(1)[0]))

    def _watchdog(self) -> Watchdog:
        # One process waits for nobody: what looks like a hang is a long step.
        hang_seconds = self.train.guards.hang_seconds if self.parallel.ranks > 1 else 0.0
        return Watchdog(self.output / "ranks", self.parallel.rank, self.parallel.ranks, hang_seconds)

    def _prepare(self) -> Checkpoint | None:
        if self.parallel.rank == 0:  # for all ranks
            claim(self.output)
        make_directory(self.output)
        return choose_checkpoint(self.train.resume, self.output / "checkpoints", self.identity,
                                 self.train.resume_changed)

    def _state_pieces(self) -> list[Piece]:
        first = self.parallel.rank == 0
        return [whole(MODEL + name, tensor, first) for name, tensor in self.task.state().items()]

    def _engine_pieces(self) -> list[Piece]:
        pieces = [piece for worker in self.workers for piece in worker.optimizer_pieces()]
        return pieces + (self.average.pieces("average/") if self.average is not None else [])

    def _restore_model(self, checkpoint: Checkpoint) -> None:
        pieces = self._state_pieces()
        own = {piece.name for piece in pieces}
        others = sorted(name for name in checkpoint.names if name.startswith(MODEL) and name not in own)
        if others:
            raise CheckpointError(f"{checkpoint.path}: made by a larger model: has {', '.join(others[:3])}, which this "
                                  "one lacks; use the config it was made with, or a new output directory")
        checkpoint.restore(pieces)

    def _restore(self, checkpoint: Checkpoint) -> None:
        header = checkpoint.header
        checkpoint.restore(self._engine_pieces())
        try:
            self.step, self.loss = checkpoint.step, float(header["loss"])
            self.guard.load_state(header["guard"])
            self.scale.load_state(header["scale"])
            self.loader.load_state_dict(header["loader"])
        except DataError as error:
            if not self.train.resume_changed:
                raise DataError(f"{error}, or begin the changed data anew by train.resume_changed: true") from None
            log.warning("%s; they are begun anew", error)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError(f"{checkpoint.path}: its manifest tells no place in the data, guard or loss scale to "
                                  "go on from; use another checkpoint") from None
        if self.parallel.rank == 0:
            log.info("resumed from %s", checkpoint.path)

    def _save(self) -> None:
        parameters = {piece.name: piece for worker in self.workers for piece in worker.pieces()}
        buffers = [piece for piece in self._state_pieces() if piece.name not in parameters]
        self.parallel.average([piece.tensor() for piece in buffers])
        header = {"ranks": self.parallel.ranks, "loader": self.loader.state_dict(), "guard": self.guard.state(),
                  "scale": self.scale.state(), "seed": self.seed, "loss": self.loss,
                  "score": float(np.mean(self._losses)) if self._losses else None, "identity": self.identity}
        self._losses = []
        self.saver.save(self.step, [*parameters.values(), *buffers, *self._engine_pieces()], header)
