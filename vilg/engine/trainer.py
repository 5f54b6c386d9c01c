"""The only training loop: the steps of a task, logged, guarded and saved."""
import logging
import resource
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from vilg.config import configclass
from vilg.engine.checkpoints.changes import check_changes
from vilg.engine.checkpoints.checkpoint import EMA, MODEL, Checkpoint
from vilg.engine.checkpoints.files import make_directory
from vilg.engine.checkpoints.output import claim, release
from vilg.engine.checkpoints.resume import choose_checkpoint, restore, together
from vilg.engine.checkpoints.saver import Saver
from vilg.engine.checkpoints.tensor_shards import TensorShard, whole
from vilg.engine.ema import WeightEMA
from vilg.engine.loss_scale import LossScale
from vilg.engine.metrics import MetricsLog
from vilg.engine.optim import OptimConfig, learning_rate
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.engine.safety.guards import Guard, GuardConfig, StopSignal
from vilg.engine.safety.watchdog import WAITS, Watchdog
from vilg.engine.step import OptimizerStep
from vilg.engine.task import Batch, Batches, Task
from vilg.errors import CheckpointError, ConfigError, DataError
from vilg.nn import functional

log = logging.getLogger("vilg.train")
_LAST_WRITE_SECONDS = 60.0


@configclass
class TrainConfig:
    """How long a run trains, on how much at a time, and what it leaves behind.

    ``batch_size`` counts samples an optimizer step, over all ranks and all ``accumulate_steps`` micro-batches. The
    ``*_every`` are in steps, 0 turns the thing off. ``ema_decay`` 0 ships the last weights, not their moving average.
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
        self.micro_batch_size(ranks // distributed.mp_degree)
        if distributed.mp_degree > 1 and self.preview_every:
            raise ConfigError(f"train.preview_every: is {self.preview_every}, but with distributed.mp_degree "
                              f"{distributed.mp_degree} no rank holds the whole model to draw with; set it to 0 and "
                              "draw from an exported model")
        if distributed.level == "p_g_os" and self.preview_every:
            raise ConfigError(f"train.preview_every: is {self.preview_every}, but with distributed.level p_g_os no "
                              "rank holds the whole model to draw with; set it to 0 and draw from an exported model")

    def micro_batch_size(self, ranks: int) -> int:
        """Samples a rank and micro-batch, of ``ranks`` that read different ones. Raises ConfigError when batch_size
        does not divide."""
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
    ``parallel`` is the ranks of the run, joined once (:class:`vilg.engine.parallel.distributed.Parallel`). Raises
    ConfigError and CheckpointError before training when the run cannot start like this.
    """

    def __init__(self, task: Task, loader: Batches, train: TrainConfig, optim: OptimConfig,
                 parallel: Parallel, output: str | Path, seed: int = 0, name: str = "train",
                 identity: dict[str, Any] | None = None):
        self.task, self.loader, self.train, self.optim = task, loader, train, optim
        self.output, self.seed, self.name, self.identity = Path(output), seed, name, identity or {}
        train.check_parallel(parallel.config, parallel.ranks)
        self.parallel = parallel
        self.guard = Guard(train.guards, self.output, parallel.rank)
        self.loss_scale = LossScale(parallel.config.scales_loss, parallel.config.loss_scale)
        self.step, self.loss, self._losses, self._batch = 0, float("nan"), [], None
        together(self.parallel, lambda: claim(self.output) if parallel.rank == 0 else make_directory(self.output))
        chosen = choose_checkpoint(self.parallel, train.resume, self.output / "checkpoints", self.identity)
        here = (self.output / "checkpoints").resolve()
        self._resumed_here = chosen is not None and chosen.path.resolve().parent == here
        if chosen is not None:
            together(self.parallel, lambda: self._check_model(chosen))
            check_changes(chosen, self.identity, train.resume_changed)
        names = {id(tensor): MODEL + key for key, tensor in task.state().items()}
        self.phase_optimizers = [self.parallel.phase_optimizer(phase, optim, names) for phase in task.phases]
        self._optimizer_step = OptimizerStep(self.phase_optimizers, parallel, self.loss_scale, optim.clip_norm)
        owned = [shard for each in self.phase_optimizers for shard in each.tensor_shards() if shard.owned]
        self.ema = WeightEMA(owned, train.ema_decay) if train.ema_decay else None
        if chosen is not None:
            # As this rank holds it now: what is sliced is read as slices.
            restore(self.parallel, chosen, self._model_shards() + self._engine_shards())
            together(self.parallel, lambda: self._go_on_from(chosen))
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
                    self.parallel.barrier()
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
        """Write the released folder on rank 0: the EMA's weights where one is kept, else the last ones.

        Of several ranks none need hold all of them, so there the newest checkpoint is read.
        """
        if self.parallel.ranks > 1:
            checkpoint = Checkpoint(self.saver.directory / f"step-{self.step:08d}")
            kind = f"{EMA}{MODEL}" if self.ema is not None else MODEL
            weights = {name.removeprefix(kind): checkpoint.full(name) for name in checkpoint.names
                       if name.startswith(kind)}
        else:
            weights = {shard.name.removeprefix(MODEL): shard.read().reshape(shard.shape)
                       for shard in (self.ema.tensor_shards() if self.ema is not None else [])}
        self.task.export(str(directory), weights or None)

    def _step(self, arrays: list[Batch], metrics: MetricsLog | None, stop: bool,
              watchdog: Watchdog) -> bool:
        """One optimizer step on the micro-batches ``arrays``. Returns whether any rank was asked to stop."""
        self._seed_step()
        micro = [self.task.prepare(batch.map(paddle.to_tensor)) for batch in arrays]
        rate, begun = learning_rate(self.optim, self.step, self.train.steps), self.step
        result = self._optimizer_step.take(begun, micro, rate, stop, len(self.loader.broken),
                                           lambda doing: watchdog.at(begun, doing))
        figures = result.figures | {"lr": rate}
        self._end_step(result.not_finite, figures, arrays)
        if metrics is not None:
            self._report(metrics, figures, self.parallel.topology.data_ranks * sum(map(self.task.tokens, micro)))
        self._batch = micro[0]
        return result.stop

    def _end_step(self, not_finite: str, figures: dict[str, float], arrays: list[Batch]) -> None:
        self.step += 1
        if not_finite:
            self.guard.skip(self.step, not_finite, [batch.parts() for batch in arrays])
            return
        self.loss = figures["loss"]
        self._losses.append(self.loss)
        self.guard.accept(self.step, self.loss)
        if self.ema is not None:
            self.ema.update(self.step - 1)
        figures |= self.task.after_step(self.step)

    def _report(self, metrics: MetricsLog, figures: dict[str, float], tokens: int) -> None:
        metrics.advance(tokens)
        if self._due(self.train.log_every) or self.step == self.train.steps:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            scale = {"scale_of_loss": self.loss_scale.value} if self.loss_scale.on else {}
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
        """Randomness is a pure function of run seed, step and rank, so there is no generator state to save. The ranks
        of one model share it, since they drop the same parts of what they all have."""
        sequence = np.random.SeedSequence([self.seed, self.step, self.parallel.topology.data_rank])
        paddle.seed(int(sequence.generate_state(1)[0]))

    def _watchdog(self) -> Watchdog:
        # One process waits for nobody: what looks like a hang is a long step.
        hang_seconds = self.train.guards.hang_seconds if self.parallel.ranks > 1 else 0.0
        return Watchdog(self.output / "ranks", self.parallel.rank, self.parallel.ranks, hang_seconds)

    def _state_shards(self) -> list[TensorShard]:
        first = self.parallel.rank == 0
        return [whole(MODEL + name, tensor, first) for name, tensor in self.task.state().items()]

    def _model_shards(self) -> list[TensorShard]:
        """The model as this rank holds it: parameters as its optimizers have them, and buffers."""
        parameters = {shard.name: shard for each in self.phase_optimizers for shard in each.tensor_shards()}
        return [*parameters.values(), *(shard for shard in self._state_shards() if shard.name not in parameters)]

    def _engine_shards(self) -> list[TensorShard]:
        shards = [shard for each in self.phase_optimizers for shard in each.optimizer_shards()]
        return shards + (self.ema.tensor_shards(EMA) if self.ema is not None else [])

    def _check_model(self, checkpoint: Checkpoint) -> None:
        shards = self._state_shards()
        own = {shard.name for shard in shards}
        others = sorted(name for name in checkpoint.names if name.startswith(MODEL) and name not in own)
        if others:
            raise CheckpointError(f"{checkpoint.path}: made by a larger model: has {', '.join(others[:3])}, which this "
                                  "one lacks; use the config it was made with, or a new output directory")
        checkpoint.check(shards)

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        header = checkpoint.header
        try:
            self.step, self.loss = checkpoint.step, float(header["loss"])
            self.guard.load_state(header["guard"])
            self.loss_scale.load_state(header["scale"])
            self.loader.load_state_dict(header["loader"])
        except DataError as error:
            if not self.train.resume_changed:
                raise DataError(f"{error}, or begin the changed data anew by train.resume_changed: true") from None
            log.warning("%s; they are begun anew", error)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError(f"{checkpoint.path}: its manifest tells no place in the data, guard or loss scale to "
                                  "go on from; use another checkpoint") from None
        if self.parallel.rank == 0:
            log.info("resumed from %s (of it this rank verified %.3f GB and read %.3f GB)", checkpoint.path,
                     checkpoint.bytes_verified / 1e9, checkpoint.bytes_read / 1e9)

    def _save(self) -> None:
        model = self._model_shards()
        parameters = {shard.name for each in self.phase_optimizers for shard in each.tensor_shards()}
        self.parallel.mean_over_ranks([shard.tensor() for shard in model if shard.name not in parameters])
        header = {"ranks": self.parallel.ranks, "loader": self.loader.state_dict(), "guard": self.guard.state(),
                  "scale": self.loss_scale.state(), "seed": self.seed, "loss": self.loss,
                  "score": float(np.mean(self._losses)) if self._losses else None, "identity": self.identity}
        self._losses = []
        self.saver.save(self.step, [*model, *self._engine_shards()], header)
