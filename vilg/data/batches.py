"""From sources to batches: mixing, shuffling, sharing out among ranks, prefetching, and resuming to the exact sample.

Samples have one global order, a pure function of the seed and the sources. Global batch k is the next ``batch_size`` ×
``ranks`` of it, of which every rank takes its slice; so the position is one number, which is the same at any number of ranks.
"""
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from vilg.config import configclass
from vilg.data.broken import BrokenLog
from vilg.data.sample import BrokenSample, Sample, Source
from vilg.errors import DataError

Collate = Callable[[list[Sample], list[int]], dict[str, np.ndarray]]


@configclass
class LoaderConfig:
    """How batches are made, whatever from.

    ``workers`` threads prepare ``prefetch`` batches ahead; ``max_broken`` is the greatest share of samples that may be
    broken before the run is stopped.
    """

    workers: int = 1
    prefetch: int = 4
    max_broken: float = 0.1

    def __post_init__(self):
        if self.workers < 1 or self.prefetch < 1:
            raise ValueError("workers and prefetch must be at least 1")
        if not 0 <= self.max_broken <= 1:
            raise ValueError("max_broken is a share between 0 and 1")


class Mixture:
    """Several sources as one; source ``i`` comes ``repeats[i]`` times an epoch."""

    def __init__(self, sources: Sequence[Source], repeats: Sequence[int] | None = None):
        self.sources = list(sources)
        repeats = list(repeats) if repeats is not None else [1] * len(self.sources)
        if len(repeats) != len(self.sources) or any(repeat < 1 for repeat in repeats):
            raise DataError("every data source needs a repeat of at least 1")
        self._sizes = [len(source) for source in self.sources]
        self._ends = list(itertools.accumulate(size * repeat for size, repeat in zip(self._sizes, repeats, strict=True)))
        if not self._ends or not self._ends[-1]:
            raise DataError("the data sources hold no sample at all; check data.sources")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        which = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[which - 1] if which else 0
        return self.sources[which][(index - start) % self._sizes[which]]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The epoch's order of all samples: int64 [len]."""
        return np.random.default_rng([seed, epoch]).permutation(len(self))


class Loader:
    """Batches without end: ``next(loader)`` → ``collate(samples, seeds)`` of this rank's slice of the next global batch.

    ``source`` is a :class:`Mixture` (or what has its three methods). A sample's seed is a pure function of the run's
    seed and its global position. A broken sample is counted and another takes its place, the same one on every run.
    :meth:`state_dict` describes batches that were handed out, not those that were prefetched.
    """

    def __init__(self, source: Mixture, config: LoaderConfig, collate: Collate, batch_size: int, seed: int = 0,
                 rank: int = 0, ranks: int = 1):
        if not 0 <= rank < ranks or batch_size < 1:
            raise ValueError(f"rank {rank} of {ranks} with batch size {batch_size} makes no sense")
        self.source = source
        self.config = config
        self.collate = collate
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.consumed = 0  # samples, over all ranks
        self.waited = 0.0  # seconds that the consumer spent waiting for batches
        self.broken = BrokenLog(len(source), config.max_broken)
        self._orders: dict[int, np.ndarray] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._queue: deque[Future] = deque()
        self._submitted = 0

    @property
    def epoch(self) -> float:
        """Epochs handed out so far."""
        return self.consumed / len(self.source)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        self._fill()
        started = time.perf_counter()
        batch = self._queue.popleft().result()
        self.waited += time.perf_counter() - started
        before = self.consumed // len(self.source)
        self.consumed += self.batch_size * self.ranks
        if self.consumed // len(self.source) != before:
            self.broken.report()
        self._fill()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts, and what that is only true of."""
        return {"consumed": self.consumed, "seed": self.seed, "samples": len(self.source)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, at this or another number of ranks. Raises DataError for other data."""
        for name, own in (("seed", self.seed), ("samples", len(self.source))):
            if state[name] != own:
                raise DataError(f"the run to resume had {name} = {state[name]} where the data now give {own}; "
                                "resume it with the same data and seed, or start a new run")
        self.close()
        self.consumed = int(state["consumed"])

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
            start = self._submitted + self.rank * self.batch_size
            orders = {epoch: self._order(epoch) for epoch in
                      {start // len(self.source), (start + self.batch_size - 1) // len(self.source)}}
            self._queue.append(self._pool.submit(self._batch, start, orders))
            self._submitted += self.batch_size * self.ranks

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {kept: order for kept, order in self._orders.items() if kept >= epoch - 1}
            self._orders[epoch] = self.source.order(self.seed, epoch)
        return self._orders[epoch]

    def _batch(self, start: int, orders: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
        samples, seeds = [], []
        for position in range(start, start + self.batch_size):
            epoch, offset = divmod(position, len(self.source))
            samples.append(self._sample(orders, epoch, offset))
            seeds.append(int(np.random.SeedSequence([self.seed, epoch, offset]).generate_state(1, np.uint32)[0]))
        return self.collate(samples, seeds)

    def _sample(self, orders: dict[int, np.ndarray], epoch: int, offset: int) -> Sample:
        if epoch not in orders:  # a batch longer than an epoch
            orders[epoch] = self.source.order(self.seed, epoch)
        order = orders[epoch]
        for attempt in range(len(order)):
            # The stand-in is half an epoch away, so that it does not come twice in a row.
            place = offset if attempt == 0 else (offset + len(order) // 2 + attempt) % len(order)
            try:
                return self.source[int(order[place])]
            except BrokenSample as broken:
                self.broken.add(broken)
        raise DataError(f"not one usable sample: {self.broken.summary()}")
