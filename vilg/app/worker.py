"""The page's jobs on the engine that the server has too: calls one after the other, drawings side by side."""
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from vilg.app.jobs import Job, Stopped
from vilg.app.serving.engine import Drawing, Engine
from vilg.errors import VilgError


class Worker:
    """Its engine's thread alone uses the models that ``load()`` gives by name. ``most``: jobs that may wait; ``rows``:
    pictures that are drawn at a time."""

    def __init__(self, most: int, load: Callable[[], dict[str, Any]] = dict, rows: int = 32):
        self.most = most
        self._engine = Engine(load, rows=rows, queue=most + 2)
        self._jobs: set[Job] = set()
        self._lock, self._here = threading.Lock(), threading.local()
        self.models = self._engine.ready()

    def submit(self, call: Callable[[], Any]) -> Job:
        """Put a call at the end of the queue. Raises VilgError when that is full."""
        job = self._new()

        def run(_: list[Any], __: Callable[[], None]) -> list[Any]:
            self._here.job = job
            try:
                return [call()]
            finally:
                self._here.job = None

        job.follow(self._engine.call(id(job), None, run))
        return job

    def draw(self, drawing: Drawing, finish: Callable[[np.ndarray], Any]) -> Job:
        """Draw beside what is drawn; the job's result is what ``finish``, on the models' thread, makes of the pictures,
        uint8 [count, H, W, 3]. Raises VilgError when the queue is full."""
        job = self._new()
        job.follow(self._engine.draw(drawing), finish)
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
        """Drop all jobs; the thread ends with the token or the call that it is at."""
        self._engine.close()

    def _new(self) -> Job:
        job = Job()
        with self._lock:
            if len(self._jobs) > self.most:
                raise VilgError("现在很忙，请过一会儿再试。Busy; try again in a while.")
            self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._jobs.discard(job))
        return job
