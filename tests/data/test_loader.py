import numpy as np
import pytest

from vilg.data.loader import Loader, LoaderConfig, Mixture
from vilg.data.sample import BrokenSample, Sample
from vilg.errors import DataError


class Numbers:
    """Samples whose key is their number; those of ``broken`` cannot be used."""

    def __init__(self, count, broken=(), name="n"):
        self.count, self.broken, self.name = count, set(broken), name

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise BrokenSample(f"{self.name}{index}", "broken on purpose")
        return Sample(f"{self.name}{index}", None, ["text"])


def collate(samples, seeds):
    return {"key": np.array([sample.key for sample in samples]), "seed": np.array(seeds)}


def loader(source, batch_size=4, **settings):
    config = LoaderConfig(workers=settings.pop("workers", 2), prefetch=3, max_broken=settings.pop("max_broken", 0.1))
    return Loader(Mixture([source]) if isinstance(source, Numbers) else source, config, collate, batch_size, **settings)


def take(batches, count):
    found = [next(batches) for _ in range(count)]
    batches.close()
    return np.concatenate([batch["key"] for batch in found]), np.concatenate([batch["seed"] for batch in found])


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    keys, seeds = take(loader(Numbers(12)), 6)
    assert sorted(keys[:12]) == sorted(keys[12:]) == sorted(f"n{i}" for i in range(12))
    assert list(keys[:12]) != list(keys[12:])
    assert len(set(seeds)) == 24


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_seed_gives_the_same_batches_whatever_the_threads(workers):
    keys, seeds = take(loader(Numbers(30), seed=5), 9)
    again, same_seeds = take(loader(Numbers(30), seed=5, workers=workers), 9)
    other, _ = take(loader(Numbers(30), seed=6), 9)
    np.testing.assert_array_equal(keys, again)
    np.testing.assert_array_equal(seeds, same_seeds)
    assert list(keys) != list(other)


def test_batches_larger_than_the_set():
    keys, _ = take(loader(Numbers(3), batch_size=8), 3)
    assert sorted(keys[:3]) == ["n0", "n1", "n2"]


def test_resume_counts_what_was_handed_out_not_what_was_prefetched():
    run = loader(Numbers(30), seed=1)
    for _ in range(5):
        next(run)
    state = run.state_dict()
    assert state["consumed"] == 20
    expected = [next(run) for _ in range(6)]
    run.close()
    resumed = loader(Numbers(30), seed=1)
    resumed.load_state_dict(state)
    for batch in expected:
        found = next(resumed)
        np.testing.assert_array_equal(batch["key"], found["key"])
        np.testing.assert_array_equal(batch["seed"], found["seed"])
    resumed.close()


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 4), (3, 1)])
def test_ranks_share_one_order_and_another_number_of_ranks_goes_on_in_it(before, after):
    whole, seeds = take(loader(Numbers(50), batch_size=12, seed=2), 4)
    runs = [loader(Numbers(50), batch_size=12 // before, seed=2, rank=rank, ranks=before) for rank in range(before)]
    first = [next(run) for run in runs for _ in range(2)]
    assert sorted(np.concatenate([batch["seed"] for batch in first])) == sorted(seeds[:24])
    state = runs[0].state_dict()
    for run in runs:
        run.close()
    rest = []
    for rank in range(after):
        run = loader(Numbers(50), batch_size=12 // after, seed=2, rank=rank, ranks=after)
        run.load_state_dict(state)
        rest += [next(run), next(run)]
        run.close()
    assert sorted(np.concatenate([batch["key"] for batch in rest])) == sorted(whole[24:])
    assert sorted(np.concatenate([batch["seed"] for batch in rest])) == sorted(seeds[24:])


def test_resume_with_other_data_or_seed_is_refused():
    run = loader(Numbers(30), seed=1)
    with pytest.raises(DataError, match="samples = 30 where the data now give 31"):
        loader(Numbers(31), seed=1).load_state_dict(run.state_dict())
    with pytest.raises(DataError, match="seed = 1 where the data now give 2"):
        loader(Numbers(30), seed=2).load_state_dict(run.state_dict())


def test_mixture_repeats_its_sources():
    mixed = Mixture([Numbers(10, name="a"), Numbers(3, name="b")], [1, 4])
    keys, _ = take(loader(mixed, batch_size=22), 1)
    counts = {key: list(keys).count(key) for key in keys}
    assert counts == {f"a{i}": 1 for i in range(10)} | {f"b{i}": 4 for i in range(3)}
    with pytest.raises(DataError, match="no sample at all"):
        Mixture([Numbers(0)])
    with pytest.raises(DataError, match="repeat"):
        Mixture([Numbers(3)], [0])


def test_broken_samples_are_skipped_named_once_and_never_change_the_rest(caplog):
    whole, seeds = take(loader(Numbers(40)), 30)
    keys, same_seeds = take(loader(Numbers(40, broken=(3, 17))), 30)
    damaged = np.isin(whole, ["n3", "n17"])
    np.testing.assert_array_equal(keys[~damaged], whole[~damaged])
    np.testing.assert_array_equal(seeds, same_seeds)
    assert not set(keys) & {"n3", "n17"}
    assert caplog.text.count("n3 (broken on purpose)") == caplog.text.count("n17 (") == 1
    again, _ = take(loader(Numbers(40, broken=(3, 17)), workers=1), 30)
    np.testing.assert_array_equal(keys, again)


def test_the_first_broken_samples_are_reported_at_once_and_many_in_few_lines(caplog):
    run = loader(Numbers(2000, broken=range(0, 2000, 2)), max_broken=1)
    while not len(run.broken):
        next(run)
    assert caplog.text.count("samples skipped") >= 1
    for _ in range(200):
        next(run)
    run.close()
    assert len(run.broken) > 200 and caplog.text.count("samples skipped") < 30


def test_too_many_broken_samples_end_the_run_with_their_names():
    run = loader(Numbers(40, broken=range(0, 40, 4)), max_broken=0.1)
    told = r" of 40 samples are broken, more than .* 0.1 .*max_broken.*n\d+ \(broken"
    with pytest.raises(DataError, match="[5-8]" + told):  # two workers read ahead
        take(run, 30)
    run.close()
    with pytest.raises(DataError, match="not one usable sample"):
        take(loader(Numbers(3, broken=range(3)), max_broken=1), 1)


def test_repeats_and_equal_names_do_not_hide_broken_samples():
    often = Mixture([Numbers(40, broken=range(8))], [8])
    with pytest.raises(DataError, match="5 of 40 samples are broken"):
        take(loader(often, workers=1), 80)
    for sources in ([Numbers(40, broken=range(6))] * 2, [Numbers(40, broken=range(6)), Numbers(40, broken=range(6))]):
        with pytest.raises(DataError, match="9 of 80 samples are broken"):
            take(loader(Mixture(sources), workers=1), 40)


def test_a_limit_of_nothing_ends_the_run_at_the_first_broken_sample():
    with pytest.raises(DataError, match="1 of 40 samples are broken"):
        take(loader(Numbers(40, broken=[7]), max_broken=0), 10)
    keys, _ = take(loader(Numbers(5, broken=[3]), max_broken=0.1), 10)  # any other limit puts up with one
    assert len(set(keys)) == 4


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_single_usable_sample_is_found(count):
    for usable in range(count):
        keys, _ = take(loader(Numbers(count, broken=set(range(count)) - {usable}), max_broken=1), 4)
        assert set(keys) == {f"n{usable}"}


@pytest.mark.parametrize("settings", [{"workers": 0}, {"prefetch": 0}, {"max_broken": 1.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        LoaderConfig(**settings)


def test_the_task_sees_whole_samples_one_by_one_with_their_seeds():
    seen = []

    def view(sample, seed):
        seen.append((sample.key, seed))
        if sample.key == "n2":
            raise BrokenSample(sample.key, "nothing to see")
        return sample.key.upper()

    run = Loader(Mixture([Numbers(12)]), LoaderConfig(prefetch=1), lambda views, seeds: list(zip(views, seeds)), 4,
                 view=view)
    batches = [next(run) for _ in range(3)]
    run.close()
    given = [pair for batch in batches for pair in batch]
    assert {(key.upper(), seed) for key, seed in seen} >= set(given) and len({seed for _, seed in given}) == 12
    assert "N2" not in dict(given) and run.broken.reasons == {"n2": "nothing to see"}
    plain, _ = take(loader(Numbers(12)), 3)
    assert [key.lower() for key, _ in given] == [key if key != "n2" else given[place][0].lower()
                                                 for place, key in enumerate(plain)]
