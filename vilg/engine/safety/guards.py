"""What keeps a run from ruining itself: non-finite steps are skipped, spikes are reported, signals end it in order."""
import contextlib
import logging
import math
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from vilg.config import configclass
from vilg.errors import VilgError
from vilg.weights.files import write_arrays

log = logging.getLogger("vilg.guard")


class TrainingStopped(VilgError):
    """Training that cannot sensibly go on; what is needed to find out why has been saved."""


@configclass
class GuardConfig:
    """When a run skips, reports or stops.

    ``max_skips``: that many steps in a row with a non-finite loss or gradient end the run. ``spike_ratio``: a loss
    above that many times the median of the last ``spike_window`` ones is reported (0: never). ``hang_seconds``: a rank
    that waits longer than this for the others in one collective ends the run, naming who is missing (0: never).
    """

    max_skips: int = 10
    spike_ratio: float = 3.0
    spike_window: int = 100
    hang_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.max_skips < 1 or self.spike_window < 2:
            raise ValueError("max_skips must be at least 1 and spike_window at least 2")
        if self.hang_seconds < 0 or (self.spike_ratio != 0 and self.spike_ratio <= 1):
            raise ValueError("hang_seconds must not be negative; spike_ratio is 0 (never) or above 1")


class Guard:
    """Counts what went wrong in a run. ``directory`` receives the batches of the steps that were skipped."""

    def __init__(self, config: GuardConfig, directory: Path, rank: int):
        self.config, self.directory, self.rank = config, directory, rank
        self.skipped, self.skipped_in_a_row, self.spikes = 0, 0, 0
        self._window: deque[float] = deque(maxlen=config.spike_window)

    def state(self) -> dict[str, int]:
        """Counters for the checkpoint."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row, "spikes": self.spikes}

    def load_state(self, state: dict[str, int]) -> None:
        """Take the counters of a checkpoint."""
        self.skipped, self.skipped_in_a_row, self.spikes = (
            int(state[name]) for name in ("skipped", "skipped_in_a_row", "spikes"))

    def skip(self, step: int, what: str, batches: list[dict[str, np.ndarray]]) -> None:
        """Count a skipped step, keep its micro-batches, and raise TrainingStopped after ``max_skips`` in a row."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        folder = self.directory / "post_mortem"
        if self.skipped_in_a_row in (1, self.config.max_skips):
            try:
                for number, batch in enumerate(batches):
                    write_arrays(folder / f"step-{step:08d}-rank-{self.rank:05d}-{number}.safetensors", batch)
            except (VilgError, OSError) as error:
                log.warning("the batches of step %d could not be kept: %s", step, error)
        log.warning("step %d: %s is not finite; skipped (%d in a row)", step, what, self.skipped_in_a_row)
        if self.skipped_in_a_row >= self.config.max_skips:
            raise TrainingStopped(f"step {step}: {what} was not finite {self.skipped_in_a_row} times in a row; batches "
                                  f"are in {folder}; resume with a lower optim.lr or from an earlier checkpoint")

    def accept(self, step: int, loss: float) -> None:
        """Take in the loss of a step that was taken; reports a spike."""
        self.skipped_in_a_row = 0
        median = float(np.median(self._window)) if len(self._window) >= self.config.spike_window // 2 else math.inf
        if self.config.spike_ratio and loss > self.config.spike_ratio * median > 0:
            self.spikes += 1
            log.warning("step %d: loss %.4g is %.1f times the recent median %.4g", step, loss, loss / median, median)
        self._window.append(loss)


class StopSignal:
    """While open, SIGTERM and the first Ctrl-C are noted instead of obeyed, so that the step in progress ends and is
    saved. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            # A supervisor makes its ranks ignore Ctrl-C, and tells them itself.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            if self.received:
                raise KeyboardInterrupt
            with contextlib.suppress(OSError):
                print("\nstopping after this step, with a checkpoint; Ctrl-C again ends at once", file=sys.stderr)
        self.received = True
