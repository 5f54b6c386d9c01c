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
from vilg.engine import checkpoint as store
from vilg.engine.average import WeightAverage
from vilg.engine.checkpoint import Checkpoint
from vilg.engine.distributed import DistributedConfig, Parallel
from vilg.engine.guards import Guard, GuardConfig, StopSignal
from vilg.engine.metrics import MetricsLog
from vilg.engine.optim import OptimConfig, learning_rate
from vilg.engine.pieces import Piece, whole
from vilg.engine.saver import Saver
from vilg.engine.task import Task
from vilg.engine.worker import Worker
from vilg.errors import CheckpointError, ConfigError

log = logging.getLogger("vilg.train")


@configclass
class TrainConfig:
    """How long a run trains, on how much at a time, and what it leaves behind.

    ``batch_size`` counts samples an optimizer step, over all ranks and all ``accumulate_steps`` micro-batches. The
    ``*_every`` are in steps, 0 turns the thing off. ``ema_decay`` 0 ships the last weights instead of their average.
    ``resume``: none (refuses a directory that already holds checkpoints), auto (the newest that verifies), or a path.
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

    def micro_batch_size(self, ranks: int) -> int:
        """Samples a rank and micro-batch. Raises ConfigError when batch_size does not divide."""
        parts = ranks * self.accumulate_steps
        if self.batch_size % parts:
            raise ConfigError(f"train.batch_size: {self.batch_size} does not divide over {ranks} ranks × "
                              f"{self.accumulate_steps} accumulate_steps; use a multiple of {parts}")
        return self.batch_size // parts


@dataclass
class TrainSummary:
    """How a run ended: steps finished, the last loss, whether a signal stopped it, and what was skipped."""

    step: int
    loss: float
    stopped: bool
    skipped: int


class Trainer:
    """Runs ``task`` on the batches of ``loader`` (dicts of arrays: this rank's micro-batches, without end).

    ``output`` receives ``checkpoints/``, ``metrics.jsonl``, ``visualdl/``, ``previews/`` and, at the end, the released
    folder ``model/``. ``identity`` (config, fingerprints of tokenizer and vocabulary) is recorded in checkpoints;
    entries under ``identity["fingerprints"]`` must equal the checkpoint's to resume from it.
    """

    def __init__(self, task: Task, loader: Any, train: TrainConfig, optim: OptimConfig, distributed: DistributedConfig,
                 output: str | Path, seed: int = 0, name: str = "train", identity: dict[str, Any] | None = None):
        self.task, self.loader, self.train, self.optim = task, loader, train, optim
        self.output, self.seed, self.name, self.identity = Path(output), seed, name, identity or {}
        self.parallel = Parallel(distributed)
        train.micro_batch_size(self.parallel.ranks)
        _make_directory(self.output)
        self.directory = self.output / "checkpoints"
        chosen = self._choose_checkpoint()
        names = {id(tensor): f"model/{key}" for key, tensor in task.state().items()}
        self.workers = [self.parallel.worker(phase, optim, names) for phase in task.phases]
        self.step, self.loss, self._losses = 0, float("nan"), []
        self.guard = Guard(train.guards, self.output, self.parallel.rank)
        self.average = WeightAverage(self._parameters(), train.ema_decay) if train.ema_decay else None
        if chosen is not None:
            self._restore(chosen)
        token = self.parallel.broadcast(uuid.uuid4().hex[:8])
        self.saver = Saver(self.directory, self.parallel.rank, self.parallel.ranks, token, train.keep_last,
                           train.keep_best)

    def fit(self) -> TrainSummary:
        """Train to the last step (or to SIGTERM), save, export. Raises TrainingStopped, CheckpointError."""
        start, batches, stopped, last = self.step, iter(self.loader), False, []
        metrics = MetricsLog(self.output, start, self.train.steps, self.name) if self.parallel.rank == 0 else None
        try:
            with StopSignal() as signal:
                while self.step < self.train.steps and not stopped:
                    last = [next(batches) for _ in range(self.train.accumulate_steps)]
                    stopped = self._step(last, metrics, signal.received)
                    self._after_step(metrics, last)
            if self.step > start and not self._due(self.train.checkpoint_every):
                self._save()
            self.saver.finish()
        finally:
            if metrics is not None:
                metrics.close()
        if not stopped and self.train.export:
            self.export(self.output / "model")
        return TrainSummary(self.step, self.loss, stopped, self.guard.skipped)

    def export(self, directory: str | Path) -> None:
        """Write the released folder, with averaged weights where an average is kept. Rank 0 writes."""
        if self.parallel.rank == 0:
            prefix = len("model/")
            average = self.average.values() if self.average is not None else {}
            self.task.export(str(directory), {name[prefix:]: value for name, value in average.items()} or None)

    def _step(self, arrays: list[dict[str, np.ndarray]], metrics: MetricsLog | None, stop: bool) -> bool:
        """One optimizer step. Returns whether any rank was asked to stop."""
        self._seed_step()
        micro = [self.task.prepare({key: paddle.to_tensor(value) for key, value in batch.items()}) for batch in arrays]
        rate, figures = learning_rate(self.optim, self.step, self.train.steps), {}
        bad, stopping = "", stop
        for worker in self.workers:
            if self.step < worker.phase.start_step:
                continue
            loss, named = self._descend(worker, micro)
            worker.exchange()
            report = self._agree(worker, loss, named, stopping)
            stopping, norm = report.pop("stop") > 0, report.pop("square_norm") ** 0.5
            figures |= report if len(self.workers) == 1 else _prefixed(worker.phase.name, report, self.workers)
            figures[_of_phase("grad_norm", worker, self.workers)] = norm
            bad = "" if isfinite(report["loss"]) and isfinite(norm) else f"the loss or gradient of {worker.phase.name}"
            if not bad:
                worker.scale_gradients(min(1.0, self.optim.clip_norm / (norm + 1e-6)) if self.optim.clip_norm else 1.0)
                worker.step(rate)
            worker.clear()
            if bad:
                break
        self._finish_step(bad, figures | {"lr": rate}, arrays, micro, metrics)
        return stopping

    def _descend(self, worker: Worker, micro: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward over the micro-batches; returns the mean loss and figures, detached."""
        share, total, figures = 1.0 / len(micro), None, {}
        for batch in micro:
            with self.parallel.precision():
                out = worker.module(batch, self.step)
            loss = out.loss * share if share != 1.0 else out.loss
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
            for key, value in out.figures.items():
                value = value.detach().astype("float32") * share
                figures[key] = figures[key] + value if key in figures else value
        return total, figures

    def _agree(self, worker: Worker, loss: Tensor, figures: dict[str, Tensor], stop: bool) -> dict[str, float]:
        """What all ranks know after a phase: mean loss and figures, the square of the gradient norm, the stop wish."""
        ranks = self.parallel.ranks
        means = paddle.stack([value.astype("float32").reshape([]) for value in (loss, *figures.values())]) / ranks
        sums = paddle.stack([worker.square_norm(), paddle.to_tensor(float(stop))])
        values = self.parallel.sum(paddle.concat([sums, means])).numpy().tolist()
        return dict(zip(("square_norm", "stop", "loss", *figures), values))

    def _finish_step(self, bad: str, figures: dict[str, float], arrays: list[dict[str, np.ndarray]],
                     micro: list[dict[str, Tensor]], metrics: MetricsLog | None) -> None:
        self.step += 1
        if bad:
            self.guard.skip(self.step, bad, arrays)
        else:
            self.loss = figures["loss"]
            self._losses.append(self.loss)
            self.guard.accept(self.step, self.loss)
            if self.average is not None:
                self.average.update(self.step - 1)
        figures |= self.task.after_step(self.step)
        if metrics is not None:
            metrics.advance(self.parallel.ranks * sum(self.task.tokens(batch) for batch in micro))
            if self._due(self.train.log_every) or self.step == self.train.steps:
                metrics.scalars(self.step, figures | self._run_figures(metrics))
        self._previewed = micro[0]

    def _run_figures(self, metrics: MetricsLog) -> dict[str, float]:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"tokens_per_second": metrics.tokens_a_second(), "peak_memory_mb": memory,
                "skipped": float(self.guard.skipped), "spikes": float(self.guard.spikes)}

    def _after_step(self, metrics: MetricsLog | None, last: list[dict[str, np.ndarray]]) -> None:
        if self._due(self.train.preview_every) and metrics is not None:
            metrics.pictures(self.step, self.task.preview(self._previewed))
        if self._due(self.train.checkpoint_every):
            self._save()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _seed_step(self) -> None:
        """Randomness is a pure function of run seed, step and rank, so there is no generator state to save."""
        sequence = np.random.SeedSequence([self.seed, self.step, self.parallel.rank])
        paddle.seed(int(sequence.generate_state(1)[0]))

    def _parameters(self) -> list[Piece]:
        return [piece for worker in self.workers for piece in worker.pieces()]

    def _pieces(self) -> list[Piece]:
        """Everything a checkpoint holds: model, optimizers, average."""
        parameters = self._parameters()
        held = {piece.name for piece in parameters}
        pieces = list({piece.name: piece for piece in parameters}.values())
        pieces += [whole(f"model/{name}", tensor, self.parallel.rank == 0)
                   for name, tensor in self.task.state().items() if f"model/{name}" not in held]
        for worker in self.workers:
            pieces += worker.optimizer_pieces()
        if self.average is not None:
            pieces += [piece.renamed(f"average/{piece.name}", piece.tensor) for piece in self.average.pieces()]
        return pieces

    def _save(self) -> None:
        score = float(np.mean(self._losses)) if self._losses else None
        self._losses = []
        header = {"ranks": self.parallel.ranks, "loader": self.loader.state_dict(), "guard": self.guard.state(),
                  "seed": self.seed, "loss": self.loss, "score": score, "identity": self.identity}
        self.saver.save(self.step, self._pieces(), header)

    def _choose_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from. Raises CheckpointError when there is none that can be used, or one in the way."""
        resume, found = self.train.resume, store.checkpoints_in(self.directory)
        if resume == "none":
            if found:
                raise CheckpointError(f"{self.output}: already holds a run ({found[-1].name}); continue it with --resume "
                                      "auto, or choose another output")
            return None
        if resume == "auto":
            checkpoint = store.newest_sound(self.directory)
            if checkpoint is None and found:
                raise CheckpointError(f"{self.directory}: none of its {len(found)} checkpoints verifies; delete the "
                                      "directory to start over")
        else:
            checkpoint = Checkpoint(resume)
            checkpoint.verify()
        if checkpoint is not None:
            self._check_identity(checkpoint)
        return checkpoint

    def _check_identity(self, checkpoint: Checkpoint) -> None:
        theirs = checkpoint.header["identity"].get("fingerprints", {})
        for name, value in self.identity.get("fingerprints", {}).items():
            if theirs.get(name, value) != value:
                raise CheckpointError(f"{checkpoint.path}: was made with another {name.replace('_', ' ')} "
                                      f"({theirs[name]}, now {value}); use that one, or a new output directory")

    def _restore(self, checkpoint: Checkpoint) -> None:
        checkpoint.restore(self._pieces())
        self.step, self.loss = checkpoint.step, checkpoint.header["loss"]
        self.guard.load_state(checkpoint.header["guard"])
        self.loader.load_state_dict(checkpoint.header["loader"])
        log.info("resumed from %s", checkpoint.path)


def _of_phase(name: str, worker: Worker, workers: list[Worker]) -> str:
    return name if len(workers) == 1 else f"{name}_{worker.phase.name}"


def _prefixed(phase: str, report: dict[str, float], workers: list[Worker]) -> dict[str, float]:
    """Figures of one of several phases: its loss gets the phase's name; the first phase's loss is also the run's."""
    named = {f"loss_{phase}" if key == "loss" else key: value for key, value in report.items()}
    return named | ({"loss": report["loss"]} if phase == workers[0].phase.name else {})


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written ({error.strerror}); choose another directory") from None
