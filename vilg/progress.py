"""Progress of long work on standard error: a bar that is redrawn on a terminal, a line now and then elsewhere."""
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

LIVE = "VILG_PROGRESS_LIVE"
"""Tells a rank that its standard error is shown on a terminal, by the supervisor that reads it."""
_SECONDS_BETWEEN_LINES = 10.0
_LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def live() -> bool:
    """Is standard error a terminal, here or behind the supervisor?"""
    return LIVE in os.environ or (sys.stderr is not None and sys.stderr.isatty())


def progress(iterable: Iterable | None = None, total: int | None = None, desc: str = "working", unit: str = "item",
             shown: bool = True, initial: int = 0) -> tqdm:
    """A tqdm over ``iterable``, or one that the caller updates up to ``total``; the only one in vilg.

    Off a terminal it writes a line every ten seconds and one at the end, so that a log file holds no redraws.
    """
    settings: dict[str, Any] = {"total": total, "desc": desc, "unit": unit, "initial": initial, "disable": not shown}
    if live():
        return tqdm(iterable, dynamic_ncols=True, smoothing=0.1, **settings)
    if total is not None or hasattr(iterable, "__len__"):
        settings["bar_format"] = _LINE
    return tqdm(iterable, file=_Lines(sys.stderr), mininterval=_SECONDS_BETWEEN_LINES,
                maxinterval=_SECONDS_BETWEEN_LINES, smoothing=0.1, **settings)


def skip(bar: tqdm, count: int) -> None:
    """Count ``count`` things that were found done: they took no work, so that neither the rate nor the time left is of
    them."""
    if not bar.disable:
        bar.n, bar.initial, bar.last_print_n = bar.n + count, bar.initial + count, bar.last_print_n + count


class _Lines:
    """A stream for tqdm: what it would draw over the last becomes a line of its own, and an empty one nothing."""

    encoding = "ascii"  # no block characters

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text and self._stream is not None:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()
