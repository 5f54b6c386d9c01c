"""From sources to batches: mixing, shuffling, sharing out among ranks, prefetching, and resuming to the exact sample.

Samples have one global order, a pure function of the seed and the data. Global batch k is the next ``batch_size`` ×
``ranks`` of it, which the ranks deal out in turn; so the position is one number, the same at any number of ranks.
"""
import itertools
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from vilg.config import configclass
from vilg.data.broken import BrokenLog
from vilg.data.sample import BrokenSample, Sample, Source
from vilg.errors import DataError

B = TypeVar("B")
View = Callable[[Sample, int], Any]
Collate = Callable[[list[Any], list[int]], B]
MOST_LANES, MOST_CONSUMED = 2 ** 20, 2 ** 53
"""That a state may tell of: beyond them it was not written by a loader."""


@configclass
class LoaderConfig:
    """How batches are made, whatever from.

    ``workers`` threads prepare ``prefetch`` batches ahead; ``max_broken`` is the greatest share of samples, without
    their repeats, that may be broken before the run is stopped; 0 stops it at the first.
    """

    workers: int = 1
    prefetch: int = 4
    max_broken: float = 0.1

    def __post_init__(self):
        if self.workers < 1 or self.prefetch < 1:
            raise ValueError("workers and prefetch must be at least 1")
        if not 0 <= self.max_broken <= 1:
            raise ValueError("max_broken is a share between 0 and 1")


class Stream(Protocol):
    """Samples in an order of their own, epoch after epoch without end."""

    def __len__(self) -> int:
        """Samples an epoch."""

    def distinct(self) -> int:
        """Samples an epoch, each counted once however often it comes."""

    def problems(self) -> list[BrokenSample]:
        """What was found broken before anything was read."""

    def begin(self, seed: int, lanes: int) -> None:
        """Settle the order; ``lanes`` is how many readers the data should keep busy.
        Raises DataError when it cannot."""

    def sample(self, position: int, attempt: int) -> Sample:
        """The sample at a global position, or on further attempts the one that stands in for it; twice as many
        attempts as an epoch has samples try all of them. Raises BrokenSample."""


class Mixture:
    """Several sources as one stream, every epoch shuffled anew; source ``i`` comes ``repeats[i]`` times an epoch."""

    def __init__(self, sources: Sequence[Source], repeats: Sequence[int] | None = None):
        self.sources = list(sources)
        repeats = list(repeats) if repeats is not None else [1] * len(self.sources)
        if len(repeats) != len(self.sources) or any(repeat < 1 for repeat in repeats):
            raise DataError("every data source needs a repeat of at least 1")
        self._sizes = [len(source) for source in self.sources]
        self._ends = list(itertools.accumulate(map(operator.mul, self._sizes, repeats)))
        if not self._ends or not self._ends[-1]:
            raise DataError("the data sources hold no sample at all; check data.sources")
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._seed = 0

    def __len__(self) -> int:
        return self._ends[-1]

    def distinct(self) -> int:
        """Samples of all sources, without repeats."""
        return sum(self._sizes)

    def problems(self) -> list[BrokenSample]:
        """None: sources tell what is broken as they are read."""
        return []

    def begin(self, seed: int, lanes: int) -> None:
        """Shuffle by ``seed``; samples are read in any order, so lanes make no difference."""
        self._seed = seed
        self._orders.clear()

    def sample(self, position: int, attempt: int) -> Sample:
        """See :meth:`Stream.sample`. A stand-in is half an epoch away, so that it does not come twice in a row."""
        epoch, offset = divmod(position, len(self))
        with self._lock:
            if epoch not in self._orders:
                self._orders = {kept: order for kept, order in self._orders.items() if kept == epoch - 1}
                self._orders[epoch] = np.random.default_rng([self._seed, epoch]).permutation(len(self))
            order = self._orders[epoch]
        if attempt:
            offset = (offset + len(self) // 2 + attempt) % len(self)
        index = int(order[offset])
        which = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[which - 1] if which else 0
        number = (index - start) % self._sizes[which]
        try:
            return self.sources[which][number]
        except BrokenSample as broken:
            broken.place = which, number
            raise


class Loader(Generic[B]):
    """Batches without end: ``next(loader)`` → ``collate(views, seeds)`` of this rank's share of the next global batch.
    ``view(sample, seed)`` takes of each whole sample, as it is read, what the batch needs (None: all of it); a batch of
    large images would take gigabytes. A BrokenSample that it raises counts like one of the data.

    A sample's seed is a pure function of the run's seed and its global position. A broken sample is counted and another
    takes its place, the same one on every run. :meth:`state_dict` describes batches that were handed out, not those
    that were prefetched. Raises DataError when the data are too few shards for the ranks.
    """

    def __init__(self, stream: Stream, config: LoaderConfig, collate: Collate[B], batch_size: int, seed: int = 0,
                 rank: int = 0, ranks: int = 1, view: View | None = None):
        if not 0 <= rank < ranks or batch_size < 1:
            raise ValueError(f"rank {rank} of {ranks} with batch size {batch_size} makes no sense")
        self.stream = stream
        self.config = config
        self.collate = collate
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.view = view
        self.lanes = ranks * config.workers
        self.consumed = 0  # samples, over all ranks
        self.waited = 0.0  # seconds that the consumer spent waiting for batches
        stream.begin(seed, self.lanes)
        self.broken = BrokenLog(stream.distinct(), config.max_broken)
        for problem in stream.problems():
            self.broken.add(problem)
        self._pool: ThreadPoolExecutor | None = None
        self._queue: deque[Future] = deque()
        self._submitted = 0

    @property
    def epoch(self) -> float:
        """Epochs handed out so far."""
        return self.consumed / len(self.stream)

    def __iter__(self) -> Iterator[B]:
        return self

    def __next__(self) -> B:
        self._fill()
        started = time.perf_counter()
        batch = self._queue.popleft().result()
        self.waited += time.perf_counter() - started
        before = self.consumed // len(self.stream)
        self.consumed += self.batch_size * self.ranks
        if self.broken.due or self.consumed // len(self.stream) != before:
            self.broken.report()
        self._fill()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts, and what that is only true of."""
        return {"consumed": self.consumed, "seed": self.seed, "samples": len(self.stream), "lanes": self.lanes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, at this or another number of ranks. Raises DataError for other data, and
        KeyError, TypeError or ValueError for what is no such state."""
        for name, own in (("seed", self.seed), ("samples", len(self.stream))):
            if state[name] != own:
                raise DataError(f"the run to resume had {name} = {state[name]} where the data now give {own}; "
                                "resume it with the same data and seed, or start a new run")
        lanes, consumed = int(state["lanes"]), int(state["consumed"])
        if not (1 <= lanes <= MOST_LANES and 0 <= consumed <= MOST_CONSUMED):
            raise ValueError(f"no place in the data: consumed = {consumed}, lanes = {lanes}")
        self.close()
        self.lanes = lanes
        self.stream.begin(self.seed, self.lanes)
        self.consumed = consumed

    def close(self) -> None:
        """Stop the threads and report the broken samples that have not been reported. The loader can be used again."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._queue.clear()
        self.broken.report()

    def _fill(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="vilg-data")
            self._submitted = self.consumed
        while len(self._queue) < self.config.prefetch:
            self._queue.append(self._pool.submit(self._batch, self._submitted + self.rank))
            self._submitted += self.batch_size * self.ranks

    def _batch(self, start: int) -> B:
        positions = range(start, start + self.batch_size * self.ranks, self.ranks)
        seeds = [int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0]) for position in positions]
        return self.collate([self._view(*place) for place in zip(positions, seeds)], seeds)

    def _view(self, position: int, seed: int) -> Any:
        for attempt in range(2 * len(self.stream)):
            try:
                sample = self.stream.sample(position, attempt)
                seen = sample if self.view is None else self.view(sample, seed)
                self.broken.any_good = True
                return seen
            except BrokenSample as broken:
                self.broken.add(broken)
        raise DataError(f"not one usable sample: {self.broken.summary()}")
