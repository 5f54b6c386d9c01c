"""A list of checks of what only a device can show, run one after the other: PASS, FAIL or SKIP, a note, seconds.

Most of what training does on a GPU has never met one here; these checks are what to run first on a machine that has.
"""
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle


class Skipped(Exception):
    """Raised by a check that cannot be decided here; the message says why."""


@dataclass(frozen=True)
class Check:
    """``run()`` returns a note, or raises: :class:`Skipped`, or anything else for a failure. ``gpus``: how many it
    needs (0: a CPU decides it too). ``big``: it measures time, and runs when asked for."""

    name: str
    gpus: int
    run: Callable[[], str]
    big: bool = False


@dataclass(frozen=True)
class Result:
    """How a check ended: ``status`` is PASS, FAIL or SKIP."""

    status: str
    name: str
    note: str
    seconds: float


def gpus_here() -> int:
    """How many GPUs this Paddle sees."""
    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


def run_checks(checks: Iterable[Check], only: str = "", big: bool = False) -> Iterator[Result]:
    """Run the checks whose name holds ``only``; whatever one does, the next is run."""
    here = gpus_here()
    for check in checks:
        if only not in check.name:
            continue
        start = time.monotonic()
        if check.gpus > here:
            status, note = "SKIP", f"needs {check.gpus} GPU{'s' * (check.gpus > 1)}, {here or 'none'} here"
        elif check.big and not big:
            status, note = "SKIP", "measures time: ask for it with --big"
        else:
            status, note = _outcome(check)
        yield Result(status, check.name, note, time.monotonic() - start)


def _outcome(check: Check) -> tuple[str, str]:
    try:
        return "PASS", check.run()
    except Skipped as reason:
        return "SKIP", str(reason)
    except Exception as error:  # a kernel may raise anything
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        said = " ".join(line for line in str(error).strip().splitlines()[-2:] if line.strip())
        return "FAIL", f"{type(error).__name__}: {said[:300]} at {' < '.join(reversed(places[-3:]))}"


def figures(results: list[Result]) -> dict[str, Any]:
    """Counts, and every result, as plain data."""
    counts = {status.lower(): sum(result.status == status for result in results) for status in ("PASS", "FAIL", "SKIP")}
    return counts | {"results": [asdict(result) for result in results]}


def demand(condition: bool, otherwise: str) -> None:
    """Fail the check with a sentence unless ``condition`` holds."""
    if not condition:
        raise AssertionError(otherwise)


def worst_error(pairs: Iterable[tuple[paddle.Tensor, paddle.Tensor]]) -> float:
    """The largest difference within each pair, relative to the second's largest element; infinite for what is not
    finite."""
    worst = 0.0
    for one, other in pairs:
        found, wanted = (tensor.astype("float32").numpy().astype("float64") for tensor in (one, other))
        error = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst
