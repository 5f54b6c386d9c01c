"""The page's jobs, what they show on their way, and none for somebody who has gone."""
import asyncio
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from vilg.errors import VilgError

_PAUSE_SECONDS = 0.1
_NEVER_CAME_SECONDS, _LEFT_SECONDS = 10.0, 1.0
"""How long a job waits for somebody to ask for its result, and for one who has gone to come back."""
_REMEMBERED = 1000


class Stopped(VilgError):
    """A job that nobody waits for any more."""


class Job:
    """One call or drawing that waits, runs or is done; ``future`` has its result."""

    def __init__(self) -> None:
        self.future: Future = Future()
        self.asked = time.monotonic()
        self.unwanted = threading.Event()
        self._ticket: Any = None

    def follow(self, ticket: Any, finish: Callable[[Any], Any] | None = None) -> None:
        """Have the result of an engine's ticket, or what ``finish`` makes of it on the engine's thread."""
        self._ticket = ticket
        ticket.future.add_done_callback(lambda done: self._settle(done, finish))

    def stop(self) -> None:
        """Take the job out of the queue; a drawing ends with its token, a call at its next ``Worker.check``."""
        self.unwanted.set()
        self.future.cancel()
        if self._ticket is not None:
            self._ticket.cancel()

    def _settle(self, done: Future, finish: Callable[[Any], Any] | None) -> None:
        if done.cancelled():
            self.future.cancel()
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = done.result()
            self.future.set_result(result if finish is None else finish(result))
        except BaseException as error:  # it belongs to whoever waits for the result
            self.future.set_exception(error)


class Latest:
    """What a job shows on its way, from another thread; only the last of it is kept."""

    def __init__(self) -> None:
        self._shown: list[Any] = []

    def put(self, *shown: Any) -> None:
        """Show something in place of what was there."""
        self._shown = [shown]

    def take(self) -> tuple[Any, ...] | None:
        """What was put since the last time; None when nothing was."""
        shown, self._shown = self._shown, []
        return shown[0] if shown else None


class Listeners:
    """Who has a connection open for the results of a session."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._left: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def listen(self, session: str | None) -> Iterator[None]:
        """While a connection for the session's results is open."""
        if session is None:
            yield
            return
        self._open[session] += 1
        try:
            yield
        finally:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session]
                self._left[session] = time.monotonic()
                self._left.move_to_end(session)
                while len(self._left) > _REMEMBERED:
                    self._left.popitem(last=False)

    def wait_for(self, session: str, job: Job) -> bool:
        """Is there somebody who may still want the job's result?"""
        if self._open[session]:
            return True
        left = self._left.get(session, 0.0)
        patience = _LEFT_SECONDS if left > job.asked else _NEVER_CAME_SECONDS
        return time.monotonic() - max(left, job.asked) < patience


async def result_of(job: Job, wanted: Callable[[], bool]) -> Any:
    """The job's result. It is stopped when this is cancelled, and when ``wanted()`` is no longer true, which raises
    Stopped."""
    async for _ in shown_by(job, wanted, Latest()):
        pass
    return job.future.result()


async def shown_by(job: Job, wanted: Callable[[], bool], latest: Latest) -> AsyncIterator[tuple[Any, ...]]:
    """What a job puts into ``latest``, until it is done; it is stopped as by :func:`result_of`."""
    future = asyncio.wrap_future(job.future)
    try:
        while not future.done():
            await asyncio.wait([future], timeout=_PAUSE_SECONDS)
            if not future.done() and not wanted():
                raise Stopped("nobody waits for it any more")
            shown = latest.take()
            if shown is not None and not future.done():
                yield shown
        if future.cancelled():
            raise Stopped("stopped")
    finally:
        if not future.done():
            job.stop()
        elif not future.cancelled():
            future.exception()  # the caller asks the job itself
