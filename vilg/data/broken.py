"""Counting what cannot be used: every sample once, and a limit."""
import logging
import threading
from collections.abc import Hashable

from vilg.data.sample import BrokenSample
from vilg.errors import DataError

logger = logging.getLogger(__name__)
NAMES_SHOWN = 20


class BrokenLog:
    """Names and reasons of samples that were skipped. ``limit`` is the greatest share of ``total`` that may be broken;
    one sample is put up with at any limit above 0, however small the set.

    A sample that several repeats or stand-ins ask for counts once, as it does in ``total``. May be used from several
    threads.
    """

    def __init__(self, total: int, limit: float):
        self.total = total
        self.limit = limit
        self.reasons: dict[str, str] = {}
        self._places: set[Hashable] = set()
        self._reported = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, broken: BrokenSample) -> None:
        """Note a broken sample. Raises DataError when there are more than the limit allows."""
        with self._lock:
            self.reasons.setdefault(broken.name, broken.reason)
            self._places.add(broken.place)
            count = len(self._places)
        if count > (max(1, self.limit * self.total) if self.limit else 0):
            raise DataError(f"{count} of {self.total} samples are broken, more than the share of {self.limit:g} that "
                            f"max_broken allows: {self.summary()}; repair them or raise the limit")

    def summary(self, start: int = 0) -> str:
        """The names and reasons from number ``start`` on, the first twenty of them, as one line."""
        with self._lock:
            listed = [f"{name} ({reason})" for name, reason in self.reasons.items()][start:]
        more = f" and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
        return ", ".join(listed[:NAMES_SHOWN]) + more

    @property
    def due(self) -> bool:
        """Whether to report now: the first few at once, later whenever their number has doubled."""
        count = len(self.reasons)
        return count > self._reported and (count <= NAMES_SHOWN or count >= 2 * self._reported)

    def report(self) -> None:
        """Log what has been added since the last report, so that every name is shown once."""
        start, self._reported = self._reported, len(self.reasons)
        if self._reported > start:
            logger.warning("%d of %d samples skipped: %s", self._reported - start, self.total, self.summary(start))
