"""The benchmarks' own clockwork: turns, limits, and what is not timed."""
import argparse
import importlib
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def harness():
    sys.path.insert(0, str(FOLDER))  # the processes of the contestants look there as well
    try:
        yield importlib.import_module("harness")
    finally:
        sys.path.remove(str(FOLDER))


def sleeper(threads: int, seed: int, seconds: float) -> dict:
    calls = []

    def step() -> None:
        calls.append(seconds)
        time.sleep(seconds)

    def broken() -> None:
        raise ValueError("no such step")

    return {"step": lambda: step, "calls": lambda: len(calls), "broken": lambda: broken}


@pytest.fixture
def contestant(harness):
    options = argparse.Namespace(threads=1, seed=0, clock="wall")
    one = harness.Contestant("one", sleeper, options, 0.02).wait()
    yield one
    one.close()


def test_repetitions_end_at_the_limit_and_one_always_counts(contestant):
    assert len(contestant.time("step", 3, uncounted=2)) == 3
    assert contestant.ask("calls") == 5
    assert len(contestant.time("step", 1000, uncounted=1, limit=0.1)) in range(2, 7)
    assert len(contestant.time("step", 1000, uncounted=0, limit=0.0)) == 1
    assert len(contestant.time("step", 1000, uncounted=1, limit=0.0, least=3)) == 3
    assert contestant.time("step", 0, uncounted=1) == []


def test_turns_are_told_apart_by_name(harness, contestant):
    turns = [(name, contestant, "step") for name in "aba"]
    times = harness.take_turns(turns, 2, 1, uncounted=0)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 4, "b": 2}
    assert all(value >= 0.02 for value in harness.medians(times).values())
    assert harness.alternate([contestant], "nothing of that name", 1, 1) == {}


def test_all_can_be_asked_at_once(harness, contestant):
    contestant.time("step", 1, uncounted=0)
    assert harness.ask_all([contestant, contestant], "calls") == [1, 1]


def test_a_failure_is_told_with_its_cause(harness, contestant):
    with pytest.raises(RuntimeError, match="no such step"):
        contestant.time("broken", 1)
