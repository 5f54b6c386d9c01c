"""What ranks must agree on before a run starts, seen from one of them."""
import pytest

from vilg.engine.checkpoints.resume import check_same_config, together
from vilg.errors import ConfigError, VilgError


class Ranks:
    """Stands for a job: what the other ranks say is known beforehand."""

    def __init__(self, rank, others):
        self.rank, self.others = rank, others

    def gather(self, value):
        return [*self.others[:self.rank], value, *self.others[self.rank:]]


def test_ranks_with_different_configs_are_refused():
    ours = {"train": {"steps": 5, "guards": {"max_skips": 2}}, "seed": 1}
    theirs = {"train": {"steps": 5, "guards": {"max_skips": 3}}, "seed": 1}
    check_same_config(Ranks(0, [ours]), ours)
    with pytest.raises(ConfigError, match="train.guards.max_skips: is 2 on rank 0 and 3 on rank 1"):
        check_same_config(Ranks(0, [theirs]), ours)


def test_a_failure_on_one_rank_is_everybodys():
    def refuse():
        raise ConfigError("output: cannot be written")

    assert together(Ranks(0, [None]), lambda: 3) == 3
    with pytest.raises(ConfigError, match="^output: cannot be written$"):
        together(Ranks(1, [None]), refuse)
    with pytest.raises(VilgError, match="^rank 1: output: cannot be written$"):
        together(Ranks(0, ["output: cannot be written"]), lambda: 3)
