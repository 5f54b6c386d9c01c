"""Counting what cannot be used: every sample once, by its reason, and a limit; and sets that are wrong as a whole."""
import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from itertools import islice

from vilg.data.sample import BrokenSample
from vilg.errors import DataError

logger = logging.getLogger(__name__)
NAMES_SHOWN = 20
FIRST = 200  # samples that are looked at before a set is called wrong as a whole


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
        self.any_good = False
        self._kinds: dict[Hashable, str] = {}
        self._reported = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, broken: BrokenSample) -> None:
        """Note a broken sample. Raises DataError when there are more than the limit allows."""
        with self._lock:
            self.reasons.setdefault(broken.name, broken.reason)
            self._kinds[broken.place] = broken.kind
            count = len(self._kinds)
        if count > (max(1, self.limit * self.total) if self.limit else 0):
            which = f"{count} of {self.total} samples" if self.any_good else f"all of the first {count} samples"
            raise DataError(f"{which} are broken, more than the share of {self.limit:g} that max_broken allows: "
                            f"{self.counts()}: {self.summary()}; repair them or raise the limit")

    def counts(self) -> str:
        """How many broken samples there are of each kind, the commonest first."""
        with self._lock:
            return counted(Counter(self._kinds.values()))

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
        """Log what has been added since the last report, so that every name is shown once, and all by reason."""
        start, self._reported = self._reported, len(self.reasons)
        if self._reported > start:
            logger.warning("%d of %d samples skipped: %s; so far %s", self._reported - start, self.total,
                           self.summary(start), self.counts())


def counted(counts: Counter[str], shown: int = 8) -> str:
    """``3 × no caption, 1 × the image is missing``: the commonest things first."""
    more = f" and {len(counts) - shown} more kinds" if len(counts) > shown else ""
    return ", ".join(f"{count} × {what}" for what, count in counts.most_common(shown)) + more


def refuse_wholly_wrong(place: str, numbers: Iterable[int], probe: Callable[[int], object],
                        wanted: Callable[[], str]) -> None:
    """Look at samples of a set by ``probe(number)``, in the order of ``numbers``, until one can be used.

    Raises DataError when none of the first 200 can, with their reasons by number and what ``wanted()`` says was found
    and is wanted: then it is not the samples but the set that is at fault, or how it was named.
    """
    problems: list[BrokenSample] = []
    for number in islice(numbers, FIRST):
        try:
            probe(number)
            return
        except BrokenSample as broken:
            problems.append(broken)
    if problems:
        kinds = counted(Counter(broken.kind for broken in problems))
        raise DataError(f"{place}: all of the first {len(problems)} samples are broken: {kinds}, the first: "
                        f"{problems[0]}; {wanted()}")
