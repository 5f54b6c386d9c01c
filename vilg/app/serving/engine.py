"""The one thread that uses Paddle, and what it draws and writes for many askers at once.

Pictures are drawn row by row of requests that came together (:class:`~vilg.generation.batching.DrawingBatch`); between
two tokens the thread writes and embeds what waits, so that a question does not wait for a picture.
"""
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle

from vilg.app.jobs import Stopped
from vilg.app.pipeline import Pipeline
from vilg.errors import VilgError
from vilg.generation.batching import DrawingBatch, Row
from vilg.generation.sampling import SamplingConfig

log = logging.getLogger("vilg.serving")
CONTINUOUS_TOKENS = 256
"""From this many tokens on a picture takes so long that a newcomer does not wait for the others to be done."""
MOST_TOGETHER = 64
"""Texts or images of several requests in one call of a model."""


class Busy(VilgError):
    """The queue is full."""


class Ticket:
    """What an asker holds: ``future`` has the result; ``cancel()`` ends the work within a token."""

    def __init__(self, wake: Callable[[], None]):
        self.future: Future = Future()
        self.gone = False
        self._wake = wake

    def cancel(self) -> None:
        """Nobody wants the result any more."""
        self.gone = True
        self.future.cancel()
        self._wake()


@dataclass(eq=False)
class Drawing:
    """A request for ``count`` pictures of a text, ``ids`` int64 [m] of ``length`` real tokens.

    ``keep``: what is kept of a given picture, (uint8 [H, W, 3], booleans [n]). ``on_row(codes int64 [drawn])`` is
    called on the engine's thread, for the first picture, whenever a row of its grid is drawn.
    """

    pipeline: Pipeline
    ids: np.ndarray
    length: int
    count: int
    seed: int
    sampling: SamplingConfig
    keep: tuple[np.ndarray, np.ndarray] | None = None
    on_row: Callable[[np.ndarray], object] | None = None
    ticket: Ticket = field(init=False)
    rows: list[Row] = field(init=False, default_factory=list)
    left: int = field(init=False, default=0)


@dataclass(eq=False)
class _Call:
    key: Hashable
    item: Any
    run: Callable[[list[Any], Callable[[], None]], list[Any]]
    ticket: Ticket


class Engine:
    """Runs until :meth:`close`. ``load()`` gives the models on the engine's thread; ``rows``: pictures that are drawn
    at a time; ``wait``: seconds that the first of them waits for company; ``queue``: requests that may wait before
    :class:`Busy` is raised."""

    def __init__(self, load: Callable[[], dict[str, Any]], rows: int = 32, wait: float = 0.005, queue: int = 64):
        self.rows, self.wait, self.queue = rows, wait, queue
        self.models: dict[str, Any] = {}
        self.drawn = self.steps = self.row_steps = 0
        self._drawings: deque[Drawing] = deque()
        self._calls: deque[_Call] = deque()
        self._batches: dict[int, DrawingBatch] = {}
        self._owners: dict[Row, Drawing] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._started: Future = Future()
        self._thread = threading.Thread(target=self._main, args=(load,), name="vilg-engine", daemon=True)
        self._thread.start()

    def ready(self, seconds: float | None = None) -> dict[str, Any]:
        """The models by name, once they are loaded; raises what loading them raised."""
        return self._started.result(seconds)

    @property
    def is_ready(self) -> bool:
        """Are the models loaded, and is the thread at work?"""
        return bool(self.models) and self._thread.is_alive() and not self._closing

    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._drawings) + len(self._calls)

    def busy_rows(self) -> int:
        """Pictures that are being drawn."""
        return len(self._owners)

    def draw(self, drawing: Drawing) -> Ticket:
        """Queue a drawing; the ticket's result is its pictures, uint8 [count, H, W, 3]. Raises Busy."""
        if drawing.count > self.rows:
            raise VilgError(f"{drawing.count} pictures are more than the {self.rows} that are drawn at a time")
        drawing.ticket = Ticket(self._nudge)
        self._put(self._drawings, drawing)
        return drawing.ticket

    def call(self, key: Hashable, item: Any, run: Callable[[list[Any], Callable[[], None]], list[Any]]) -> Ticket:
        """Queue ``run(items, check)``, which gives a result an item; what waits under one ``key`` runs together.
        ``check()`` raises when nobody wants any of them any more. Raises Busy."""
        ticket = Ticket(self._nudge)
        self._put(self._calls, _Call(key, item, run, ticket))
        return ticket

    def close(self) -> None:
        """Refuse what comes, drop what waits, and end with the token that is drawn."""
        with self._wake:
            self._closing = True
            for one in (*self._drawings, *self._calls, *self._owners.values()):
                one.ticket.gone = True
                one.ticket.future.cancel()
            self._wake.notify_all()
        self._thread.join(30)

    def _put(self, queue: deque, one: Any) -> None:
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise Busy("the server is ending")
            if self.waiting() >= self.queue:
                raise Busy(f"{self.queue} requests wait already; try again in a while")
            queue.append(one)
            self._wake.notify_all()

    def _nudge(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _main(self, load: Callable[[], dict[str, Any]]) -> None:
        try:
            self.models = load()
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(self.models)
        while True:
            with self._wake:
                while not (self._closing or self._drawings or self._calls or self._owners):
                    self._wake.wait()
                if self._closing:
                    return
            try:
                self._run_calls()
                self._drop_the_gone()
                self._admit()
                for batch in self._batches.values():
                    self._step(batch)
            except BaseException as error:  # such as no memory: those concerned are told, the others go on
                log.exception("drawing failed")
                self._fail_all(error)

    def _drop_the_gone(self) -> None:
        with self._wake:
            for queue in (self._drawings, self._calls):
                for one in [one for one in queue if one.ticket.gone]:
                    queue.remove(one)
        gone = {drawing for drawing in self._owners.values() if drawing.ticket.gone}
        for drawing in gone:
            self._batches[id(drawing.pipeline)].cancel(drawing.rows)
            for row in drawing.rows:
                self._owners.pop(row, None)

    def _run_calls(self) -> None:
        """Everything that waits to be written or embedded, those of a key together."""
        with self._wake:
            calls, self._calls = list(self._calls), deque()
        together: dict[Hashable, list[_Call]] = {}
        for call in calls:
            together.setdefault(call.key, []).append(call)
        for group in together.values():
            for start in range(0, len(group), MOST_TOGETHER):
                self._run_group(group[start:start + MOST_TOGETHER])

    def _run_group(self, group: list[_Call]) -> None:
        def check(*_: Any) -> None:
            if all(call.ticket.gone for call in group):
                raise Stopped("nobody waits for it any more")

        try:
            check()
            with paddle.no_grad():
                results = group[0].run([call.item for call in group], check)
        except Stopped:
            return
        except BaseException as error:
            if len(group) == 1:
                _settle(group[0].ticket, error=error)
            else:  # one of them must not spoil the others
                for call in group:
                    self._run_group([call])
            return
        for call, result in zip(group, results):
            _settle(call.ticket, result)

    def _admit(self) -> None:
        """Let drawings in, in the order of their coming, as far as there is room."""
        if self._drawings and not self._owners:
            self._await_company()
        while True:
            with self._wake:
                first = self._drawings[0] if self._drawings else None
            if first is None:
                return
            batch = self._batch_of(first.pipeline)
            begun = any(row.drawn for row, owner in self._owners.items() if owner.pipeline is first.pipeline)
            quick = first.pipeline.model.layout.image < CONTINUOUS_TOKENS
            if batch.live + first.count > self.rows or (begun and quick):
                return
            with self._wake:
                if not self._drawings or self._drawings[0] is not first:
                    continue
                self._drawings.popleft()
            try:
                self._begin(batch, first)
            except BaseException as error:
                batch.cancel(first.rows)
                _settle(first.ticket, error=error)

    def _await_company(self) -> None:
        """The first of a batch waits a moment, unless as many are there as can be drawn."""
        until = time.monotonic() + self.wait
        with self._wake:
            while (left := until - time.monotonic()) > 0:
                if sum(one.count for one in self._drawings) >= self.rows or self._calls or self._closing:
                    return
                self._wake.wait(left)

    def _batch_of(self, pipeline: Pipeline) -> DrawingBatch:
        return self._batches.setdefault(id(pipeline), DrawingBatch(pipeline.model, self.rows))

    def _begin(self, batch: DrawingBatch, drawing: Drawing) -> None:
        known, mask = None, None
        if drawing.keep is not None:
            known, mask = drawing.pipeline.encode([drawing.keep[0]]).numpy()[0], drawing.keep[1]
        drawing.rows = batch.add(drawing.ids, drawing.length, drawing.seed, range(drawing.count), drawing.sampling,
                                 known, mask)
        drawing.left = drawing.count
        self._owners |= {row: drawing for row in drawing.rows}

    def _step(self, batch: DrawingBatch) -> None:
        if not batch.live:
            return
        self.steps += 1
        self.row_steps += batch.live
        for row in batch.step():
            drawing = self._owners.get(row)
            if drawing is None:
                continue
            if not row.done:
                if drawing.on_row is not None and row is drawing.rows[0] and not drawing.ticket.gone:
                    drawing.on_row(row.codes[:row.drawn].copy())
                continue
            del self._owners[row]
            drawing.left -= 1
            self.drawn += 1
            if not drawing.left:
                codes = paddle.to_tensor(np.stack([one.codes for one in drawing.rows]))
                _settle(drawing.ticket, np.stack(drawing.pipeline.decode(codes)))

    def _fail_all(self, error: BaseException) -> None:
        for drawing in set(self._owners.values()):
            _settle(drawing.ticket, error=error)
        self._owners.clear()
        self._batches.clear()


def _settle(ticket: Ticket, result: Any = None, error: BaseException | None = None) -> None:
    if not ticket.future.set_running_or_notify_cancel():
        return
    if error is not None:
        ticket.future.set_exception(error)
    else:
        ticket.future.set_result(result)
