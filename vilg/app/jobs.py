"""The page's jobs: one after the other on one thread, and none for somebody who has gone."""
import asyncio
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from vilg.errors import VilgError

_PAUSE_SECONDS = 0.25
_NEVER_CAME_SECONDS, _LEFT_SECONDS = 10.0, 1.0
"""How long a job waits for somebody to ask for its result, and for one who has gone to come back."""
_REMEMBERED = 1000


class Stopped(VilgError):
    """A job that nobody waits for any more."""


class Job:
    """One call that waits, runs or is done; ``future`` has its result."""

    def __init__(self) -> None:
        self.future: Future = Future()
        self.asked = time.monotonic()
        self.unwanted = threading.Event()

    def stop(self) -> None:
        """Take the job out of the queue, or, once it runs, have it end at its next :meth:`Worker.check`."""
        self.unwanted.set()
        self.future.cancel()


class Worker:
    """The one thread that uses a model: Paddle keeps its device and its team of threads by thread. ``most``: jobs that
    may wait."""

    def __init__(self, most: int):
        self.most = most
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._jobs: set[Job] = set()
        self._lock, self._here = threading.Lock(), threading.local()

    def submit(self, call: Callable[[], Any]) -> Job:
        """Put a call at the end of the queue. Raises VilgError when that is full."""
        job = Job()
        with self._lock:
            if len(self._jobs) > self.most:
                raise VilgError("现在很忙，请过一会儿再试。Busy; try again in a while.")
            self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._jobs.discard(job))
        self._thread.submit(self._work, job, call)
        return job

    def run(self, call: Callable[[], Any]) -> Any:
        """The call's result, from whichever thread; within a job it is a part of that."""
        return call() if getattr(self._here, "job", None) else self.submit(call).future.result()

    def check(self, *_: Any) -> None:
        """Called while a job works: raises Stopped when nobody wants it any more."""
        job = getattr(self._here, "job", None)
        if job is not None and job.unwanted.is_set():
            raise Stopped("stopped")

    def waiting(self) -> int:
        """Jobs that wait or run."""
        return len(self._jobs)

    def close(self) -> None:
        """Drop all jobs; the thread ends with the one it is at."""
        for job in list(self._jobs):
            job.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _work(self, job: Job, call: Callable[[], Any]) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        self._here.job = job
        try:
            job.future.set_result(call())
        except BaseException as error:  # it belongs to whoever waits for the result
            job.future.set_exception(error)
        finally:
            self._here.job = None


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
    future = asyncio.wrap_future(job.future)
    try:
        while not future.done():
            await asyncio.wait([future], timeout=_PAUSE_SECONDS)
            if not future.done() and not wanted():
                raise Stopped("nobody waits for it any more")
        return future.result()
    finally:
        if not future.done():
            job.stop()
