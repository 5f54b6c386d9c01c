"""How far long work has come: a bar on a terminal, and plain lines with a rate and the time left elsewhere."""
import logging
import time

from vilg.progress import live, progress

log = logging.getLogger("vilg.evaluation")
SECONDS = 30
"""Between two lines."""


class Progress:
    """Counts ``total`` things called ``unit``; what was found done already counts, but not for the rate."""

    def __init__(self, total: int, what: str, unit: str):
        self.total, self.what, self.unit = total, what, unit
        self.done = self.worked = 0
        self.began = self.said = time.monotonic()
        self.bar = progress(total=total, desc=what, unit=unit, shown=live())

    def update(self, count: int, found: bool = False) -> None:
        """``count`` more are done; ``found`` ones took no work."""
        self.done += count
        self.bar.update(count)
        if found:
            return
        self.worked += count
        now = time.monotonic()
        if self.bar.disable and (now - self.said >= SECONDS or self.done == self.total):
            self.said = now
            log.info("%s", self.line(now - self.began))

    def line(self, seconds: float) -> str:
        """``features: 1500 of 30000 images, 12.3 images a second, 38 min left``, for ``seconds`` of work so far."""
        rate = self.worked / max(seconds, 1e-9)
        left = (self.total - self.done) / rate if rate else float("nan")
        return (f"{self.what}: {self.done} of {self.total} {self.unit}s, {rate:.3g} {self.unit}s a second, "
                f"{left / 60:.0f} min left")
