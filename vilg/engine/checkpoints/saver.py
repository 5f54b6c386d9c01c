"""Writing checkpoints while training goes on, and throwing old ones away."""
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vilg.engine.checkpoints import checkpoint as store
from vilg.engine.checkpoints.checkpoint import StoredShard
from vilg.engine.checkpoints.tensor_shards import TensorShard
from vilg.errors import CheckpointError

log = logging.getLogger("vilg.checkpoint")
# How long rank 0 waits for the other ranks' files before it gives a checkpoint up.
PATIENCE_SECONDS = 600.0


class Saver:
    """Takes a snapshot in the caller's thread and writes it in another; one checkpoint is in flight at a time.

    Ranks need no collective for it: each writes its file and index into a directory whose name carries ``token``, which
    the ranks of one start share, and rank 0 finishes the checkpoint once every index is there. All ranks must see the
    same ``directory``.
    """

    def __init__(self, directory: Path, rank: int, ranks: int, token: str, keep_last: int, keep_best: bool):
        self.directory, self.rank, self.ranks, self.token = directory, rank, ranks, token
        self.keep_last, self.keep_best = keep_last, keep_best
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        if rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            for left in directory.glob(".step-*"):
                if token not in left.name:
                    shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, shards: list[TensorShard], header: dict[str, Any]) -> None:
        """Copy ``shards`` now and write checkpoint ``step`` in the background, after the one before has ended."""
        self.settle()
        stored = store.snapshot(shards)
        self._thread = threading.Thread(target=self._write, args=(step, stored, {"step": step, **header}), daemon=True)
        self._thread.start()

    def settle(self, seconds: float | None = None) -> None:
        """Wait for the write in flight, at most ``seconds`` when given; a failed one is warned about, because the
        checkpoints before it are whole."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            log.warning("a checkpoint could not be written (%s); training goes on with the ones before", error)

    def finish(self, alive: Callable[[], None] = lambda: None) -> None:
        """Wait for the last write, calling ``alive`` every second. Raises CheckpointError when it failed."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)
            alive()
        if self._error is not None:
            raise CheckpointError(f"{self.directory}: the last checkpoint could not be written ({self._error}); "
                                  "put that right and start again with --resume auto") from self._error

    def _write(self, step: int, stored: list[StoredShard], header: dict[str, Any]) -> None:
        unfinished = self.directory / f".step-{step:08d}.{self.token}"
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            store.write_rank_file(unfinished, self.rank, stored)
            if self.rank == 0:
                self._await_ranks(unfinished)
                store.finish(unfinished, self.directory / f"step-{step:08d}", self.ranks, header)
                self._drop_later(step)
                self._prune()
        except Exception as error:  # A thread has no caller: whatever went wrong is kept for settle() to report.
            self._error = error
            self._give_up(unfinished)

    def _await_ranks(self, unfinished: Path) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        waiting = set(range(self.ranks))
        while waiting:
            waiting = {rank for rank in waiting if not (unfinished / f"rank-{rank:05d}.json").exists()}
            failed = sorted(unfinished.glob("*.failed"))
            if failed:
                raise CheckpointError(f"{failed[0].stem} could not write its part")
            if waiting and time.monotonic() > deadline:
                raise CheckpointError(f"no file from rank {min(waiting)} after {PATIENCE_SECONDS:.0f} s")
            if waiting:
                time.sleep(0.02)

    def _give_up(self, unfinished: Path) -> None:
        if self.rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            return
        # Making room first: on a full disk even the mark that tells rank 0 would not fit.
        (unfinished / f"rank-{self.rank:05d}.safetensors").unlink(missing_ok=True)
        try:
            (unfinished / f"rank-{self.rank:05d}.failed").touch()
        except OSError:
            log.warning("rank %d could not tell rank 0 that its part of a checkpoint failed", self.rank)

    def _drop_later(self, step: int) -> None:
        """Checkpoints after the one just written are of a run that was given up by resuming from before them; left
        there, they would be the newest for ever."""
        for path in store.checkpoints_in(self.directory):
            if int(path.name[5:]) > step:
                log.warning("removing %s: the run went on from before it", path)
                _remove(path)

    def _prune(self) -> None:
        paths = store.checkpoints_in(self.directory)
        keep = set(paths[-self.keep_last:])
        if self.keep_best:
            scores = {path: score(path) for path in paths}
            keep.add(min(paths, key=lambda path: scores[path]))
        for path in paths:
            if path not in keep:
                _remove(path)


def _remove(path: Path) -> None:
    # Renamed first: a reader never finds half a checkpoint under a finished name.
    doomed = path.with_name(f".{path.name}.old")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def score(path: Path) -> float:
    """The mean loss that led to the checkpoint, infinity when unknown."""
    try:
        value = store.Checkpoint(path).header.get("score")
    except CheckpointError:
        value = None
    return value if value is not None and math.isfinite(value) else math.inf


