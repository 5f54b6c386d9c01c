"""What a run shows: a progress bar, scalars and pictures in VisualDL, JSON lines, preview PNGs."""
import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from visualdl import LogWriter

from vilg.engine.parallel.phase_optimizer import PhaseOptimizer
from vilg.engine.task import LogPicture
from vilg.progress import live, progress

log = logging.getLogger("vilg.metrics")


class MetricsLog:
    """Writes under ``directory``: ``metrics.jsonl`` (one line a logged step), ``visualdl/`` and ``previews/``.

    On resuming at ``step`` the lines after it are dropped, so the file always tells one undisturbed story. A disk that
    is full or gone costs log entries and a warning, never the run.
    """

    def __init__(self, directory: Path, step: int, steps: int, name: str):
        self.directory = directory
        self.path = directory / "metrics.jsonl"
        self._warned = False
        with self._tolerant():
            whole = self.path.with_name(f".{self.path.name}.tmp")
            whole.write_bytes(b"".join(line for at, line in self._lines() if at <= step))
            os.replace(whole, self.path)
        self._visual = LogWriter(str(directory / "visualdl"), display_name=name)
        self._live = live()
        self.bar = progress(total=steps, initial=step, desc=name, unit="step")
        self._mark, self._worked, self._tokens, self._waited = time.perf_counter(), time.process_time(), 0, 0.0

    def advance(self, tokens: int) -> None:
        """Count one finished step of ``tokens`` tokens."""
        self._tokens += tokens
        with self._tolerant():
            self.bar.update(1)

    def rates(self, waited: float) -> dict[str, float]:
        """Since the last call: throughput, cores kept busy, and the share of time spent waiting for data.

        ``waited``: seconds waited for data since the run started.
        """
        now, worked = time.perf_counter(), time.process_time()
        seconds = max(now - self._mark, 1e-9)
        rates = {"tokens_per_second": self._tokens / seconds, "busy_cores": (worked - self._worked) / seconds,
                 "data_wait_share": (waited - self._waited) / seconds}
        self._mark, self._worked, self._tokens, self._waited = now, worked, 0, waited
        return rates

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Log ``figures`` at ``step`` (steps finished); losses and throughput also go beside the progress bar."""
        with self._tolerant(), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        with self._tolerant():
            for name, value in figures.items():
                self._visual.add_scalar(tag=name, value=value, step=step)
        shown = {name: f"{value:.4g}" for name, value in figures.items() if name.startswith("loss")}
        with self._tolerant():
            self.bar.set_postfix(shown | {"tokens/s": f"{figures['tokens_per_second']:.0f}"}, refresh=self._live)

    def pictures(self, step: int, pictures: Iterable[LogPicture]) -> None:
        """Write preview pictures as PNG with their captions beside them, and show both in VisualDL."""
        folder, captions = self.directory / "previews" / f"step-{step:08d}", {}
        for item in pictures:
            captions[f"{item.name}.png"] = item.caption
            with self._tolerant():
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(item.picture)).save(folder / f"{item.name}.png")
                self._visual.add_image(tag=item.name, img=item.picture, step=step)
                if item.caption:
                    self._visual.add_text(tag=f"{item.name}_caption", text_string=item.caption, step=step)
        with self._tolerant():
            (folder / "captions.json").write_text(json.dumps(captions, ensure_ascii=False, indent=1), encoding="utf-8")

    def close(self) -> None:
        """Flush and close everything."""
        with self._tolerant():
            self.bar.close()
        with self._tolerant():
            self._visual.close()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                log.warning("the log under %s is incomplete: %s", self.directory, error.strerror)
            self._warned = True

    def _lines(self) -> list[tuple[int, bytes]]:
        """Step and text of the lines that hold figures; what a kill or a full disk cut short is left out."""
        if not self.path.is_file():
            return []
        lines = [(_step_of(line), line.rstrip() + b"\n") for line in self.path.read_bytes().splitlines()]
        bad = sum(step is None for step, _ in lines)
        if bad:
            log.warning("%s: left out %d lines that hold no figures", self.path, bad)
        return [(step, line) for step, line in lines if step is not None]


def _step_of(line: bytes) -> int | None:
    try:
        figures = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = figures.get("step") if isinstance(figures, dict) else None
    return step if type(step) is int else None


def named_by_phase(phase_optimizers: list[PhaseOptimizer], phase_optimizer: PhaseOptimizer,
                   report: dict[str, float]) -> dict[str, float]:
    """One phase's figures as the log shows them: of several phases, loss and norm carry the phase's name.

    The first phase's loss is also the run's.
    """
    if len(phase_optimizers) == 1:
        return report
    named = {f"{key}_{phase_optimizer.phase.name}": report[key] for key in ("loss", "grad_norm")}
    others = {key: value for key, value in report.items() if key not in ("loss", "grad_norm")}
    return others | named | ({"loss": report["loss"]} if phase_optimizer is phase_optimizers[0] else {})
