"""Which ranks work together: on one model (tensor parallelism), on one set of states (sharding), or as replicas."""
from typing import Any

import paddle.distributed as dist


class Topology:
    """Rank r computes part ``model_rank`` = r % mp_degree of every layer; the ``mp_degree`` ranks of a model, which
    read the same samples, are neighbours and count as data rank r // mp_degree of ``data_ranks``.

    Of the data ranks ``sharding_degree`` (0: all) share optimizer states. Making it joins no group; :meth:`join` does.
    """

    def __init__(self, ranks: int, rank: int, mp_degree: int = 1, sharding_degree: int = 0):
        self.ranks, self.rank, self.mp_degree = ranks, rank, mp_degree
        self.model_rank, self.data_rank, self.data_ranks = rank % mp_degree, rank // mp_degree, ranks // mp_degree
        self.degree = sharding_degree or self.data_ranks
        self.groups: dict[tuple[int, ...], Any] = {tuple(range(ranks)): None}
        """Ranks → the group that they have joined, which may be None for all ranks, as Paddle has it."""

    def join(self, sharded: bool) -> None:
        """Make the groups. All ranks call this, and each makes all groups, as Paddle demands."""
        if self.ranks == 1:
            return
        self.groups = {tuple(range(self.ranks)): dist.get_group(0)}
        lines = [range(part, self.ranks, self.mp_degree) for part in range(self.mp_degree)]  # same part, data ranks
        wanted = [range(first, first + self.mp_degree) for first in range(0, self.ranks, self.mp_degree)] + lines
        if sharded:
            wanted += [line[first:first + self.degree] for line in lines for first in range(0, len(line), self.degree)]
            wanted += [line[place::self.degree] for line in lines for place in range(self.degree)]
            # Those that keep the same states, in parts or whole.
            wanted += [sorted(rank for line in lines for rank in line[place::self.degree])
                       for place in range(self.degree)]
        for ranks in map(tuple, wanted):
            if len(ranks) > 1 and ranks not in self.groups:
                self.groups[ranks] = dist.new_group(list(ranks))
                dist.barrier()  # Gloo's groups meet under keys that do not name them: one is made at a time

    @property
    def model_group(self) -> Any:
        """The ranks that compute one model with this one; None where that is this rank alone."""
        first = self.data_rank * self.mp_degree
        return self.groups.get(tuple(range(first, first + self.mp_degree)))

    @property
    def data_group(self) -> Any:
        """The ranks with this one's part of the model and other samples; None where there are none."""
        return self.groups.get(tuple(self._line()))

    @property
    def shard_group(self) -> Any:
        """The ranks that share optimizer states with this one."""
        first = self.replica * self.degree
        return self.groups.get(tuple(self._line()[first:first + self.degree]))

    @property
    def replica(self) -> int:
        """This rank's place among the replicas of a sharding group."""
        return self.data_rank // self.degree

    @property
    def replica_group(self) -> Any:
        """The ranks that hold what this one holds; None where no other does."""
        return self.groups.get(tuple(self._line()[self.data_rank % self.degree::self.degree]))

    def _line(self) -> range:
        return range(self.model_rank, self.ranks, self.mp_degree)
