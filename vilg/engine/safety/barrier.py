"""Where the ranks of one machine wait for each other, for as long as it takes.

Gloo gives a collective up after 30 s, and Paddle offers no way to change that: a rank that draws large previews, reads
from a slow disk or has been stopped for a while would end the run of all. So they meet here first, and exchange then.
"""
import mmap
import os
import tempfile
import time

import numpy as np

_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 1e-4, 0.05, 1.1
_BYTES = 8


def make_barrier_file(ranks: int) -> str:
    """A new file that ``ranks`` can meet in. It may be removed once all have made their :class:`Barrier`."""
    handle, path = tempfile.mkstemp(prefix="vilg-ranks-")
    with os.fdopen(handle, "wb") as file:
        file.write(bytes(_BYTES * ranks))  # written, not only extended: its pages exist even if the disk fills up
    return path


class Barrier:
    """One rank's view of the place at ``path``. Raises OSError where that does not exist."""

    def __init__(self, path: str, rank: int, ranks: int):
        with open(path, "r+b") as file:
            self._arrived = np.frombuffer(mmap.mmap(file.fileno(), _BYTES * ranks), dtype=np.int64)
        self._rank, self._count = rank, 0

    def wait(self) -> None:
        """Return when every rank has come here as often as this one: some microseconds when it is the last."""
        self._count += 1
        self._arrived[self._rank] = self._count
        pause = _FIRST_PAUSE
        while self._arrived.min() < self._count:
            time.sleep(pause)
            pause = min(pause * _GROWTH, _LONGEST_PAUSE)
