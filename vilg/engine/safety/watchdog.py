"""A thread beside training that ends a process which can no longer get on, and says which rank is to blame."""
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

EXIT_HANG = 75
EXIT_ORPHAN = 76
WAITS, EXCHANGES = "waits for the other ranks", "exchanges gradients"
WAITING = (WAITS, EXCHANGES)
"""What ranks do that others hold up."""
BEAT_SECONDS = 1.0
_GLOO_SECONDS = 30.0  # after which it gives a collective up


class Watchdog:
    """While open, tells the other ranks where this one is (a small file in ``directory``) and watches them all.

    Ends the process when this rank has not moved for ``hang_seconds`` (0: never), naming the rank that is furthest
    behind, and when the launcher that started the ranks has died. Collectives cannot do this: a rank that waits in one
    never returns from it. On several nodes ``directory`` must be on a file system that all of them see.
    """

    def __init__(self, directory: Path, rank: int, ranks: int, hang_seconds: float):
        self.directory, self.rank, self.ranks, self.hang_seconds = directory, rank, ranks, hang_seconds
        self._place, self._since = (0, "starts"), time.monotonic()
        self._parent, self._done = os.getppid(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self.directory.mkdir(parents=True, exist_ok=True)
        self.at(*self._place)
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        if isinstance(error, RuntimeError) and "gloo" in str(error) and "TIMEOUT" in str(error):
            self.end_hang(_GLOO_SECONDS)
        self._done.set()
        self._thread.join()
        self._file(self.rank).unlink(missing_ok=True)

    def at(self, step: int, doing: str) -> None:
        """Note that training got to ``step`` and is ``doing`` something now."""
        self._place, self._since = (step, doing), time.monotonic()

    def _watch(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(BEAT_SECONDS):
            beat = self._forgive(beat, BEAT_SECONDS)
            self._tell()
            if self.ranks > 1 and os.getppid() != self._parent:
                self._end(EXIT_ORPHAN, f"rank {self.rank} ends: the process that started it is gone")
            beat = self._forgive(beat, 0.0)
            if self.hang_seconds and time.monotonic() - self._since > self.hang_seconds:
                self.end_hang(self.hang_seconds)

    def end_hang(self, seconds: float) -> NoReturn:
        """End the process, which has not got on for ``seconds``, and say which rank is to blame."""
        self._end(EXIT_HANG, f"no progress for {seconds:.0f} s: {self._blame()}")

    def _forgive(self, beat: float, expected: float) -> float:
        # It is now, which this returns, much later than ``expected`` seconds after ``beat``: the whole process was
        # stopped (Ctrl-Z, a debugger), which is no hang.
        now = time.monotonic()
        lost = now - beat - expected
        if lost > 5 * BEAT_SECONDS:
            self._since = min(now, self._since + lost)
        return now

    def _tell(self) -> None:
        step, doing = self._place
        temporary = self._file(self.rank).with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({"step": step, "doing": doing, "seconds": time.monotonic() - self._since,
                                             "beat": time.time(), "process": os.getpid()}), encoding="utf-8")
            os.replace(temporary, self._file(self.rank))
        except OSError:
            return  # A full disk must not end a run; the others then see this rank's last beat.

    def _blame(self) -> str:
        """Who holds the run up: a rank without a beat, else the one at the earliest step,
        else one not in the exchange."""
        places = {}
        for rank in range(self.ranks):
            try:
                places[rank] = json.loads(self._file(rank).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return f"rank {rank} is gone"
        now = time.time()
        for rank, place in places.items():
            if now - place["beat"] > 5 * BEAT_SECONDS + 5:
                return (f"rank {rank} has been frozen for {now - place['beat']:.0f} s in step {place['step']} "
                        f"({place['doing']})")
        late = min(places, key=lambda rank: (places[rank]["step"], places[rank]["doing"] in WAITING))
        place = places[late]
        return (f"rank {late} is behind, in step {place['step']} it {place['doing']} for {place['seconds']:.0f} s")

    def _end(self, status: int, reason: str) -> NoReturn:
        with contextlib.suppress(OSError):  # whoever read it may be what is gone
            print(f"\nerror: {reason}", file=sys.stderr, flush=True)
        os._exit(status)

    def _file(self, rank: int) -> Path:
        return self.directory / f"rank-{rank:05d}.json"
