"""Figures that the benchmarks of attention and decoding make of what they measured."""
import argparse
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A benchmark as a module, by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def step_seconds(decode, quick: bool) -> dict[str, dict[str, float]]:
    """Made-up times: bf16 takes half of fp32, dense three times as long as sparse (five times for one prompt)."""
    times = {}
    for name in decode.BATCHES:
        for case, (start, _) in decode.windows(name, quick).items():
            dense = 5.0 if name == "8_one_prompt" else 3.0
            times[case] = {each: (1 + start / 1024) * {"sparse": 1.0, "dense": dense, "torch": 8.0}[each.split("_")[0]]
                           * (0.25 if each == "sparse_bf16" else 0.5 if each.endswith("_bf16") else 1.0)
                           for each in decode.entrants(name, case, quick)}
    return times


def test_decoding_names_the_precision_and_the_prompts_of_every_ratio(load):
    decode = load("decode")
    full, quick = (decode.summary(step_seconds(decode, each), "fp32") for each in (False, True))
    assert full.keys() == quick.keys()
    prefix = "sparse_over_dense_tokens_per_s"
    assert {key[len(prefix):]: value for key, value in full.items() if key.startswith(prefix)} == pytest.approx(
        {"": 3.0, "_fp32": 3.0, "_bf16": 6.0, "_8_one_prompt_fp32": 5.0, "_8_one_prompt_bf16": 10.0, "_1": 3.0,
         "_60": 3.0})
    assert decode.summary(step_seconds(decode, True), "bf16")[prefix] == pytest.approx(6.0)
    assert full["late_over_early_step_time"] == pytest.approx((1 + 924 / 1024) / (1 + 100 / 1024))
    assert full["fp32_over_torch"] == pytest.approx(8.0) and full["bf16_over_torch_bf16"] == pytest.approx(16.0)
    of_8 = [key for key in full if key.endswith("tokens_per_s_8")]
    assert len(of_8) == 6 and {key: quick[key] for key in of_8} == pytest.approx({key: full[key] for key in of_8}, 0.05)
    starts = [1 + start / 1024 for start in range(0, 1024, 128)]
    assert full["sparse_tokens_per_s_8"] == pytest.approx(8 * len(starts) / sum(starts)), "a whole picture's pace"


def test_decoding_compares_what_is_held(load):
    figures = load("decode").memory_figures({"sparse": (30, 7, 7), "dense": (100, 7, 7)})
    assert figures == {"cache_memory_ratio": 0.3, "source_memory_60_over_1": 1.0}


def test_decoding_does_without_torch(load):
    decode = load("decode")
    times = {case: {name: seconds for name, seconds in step.items() if not name.startswith("torch")}
             for case, step in step_seconds(decode, True).items()}
    figures = decode.summary(times, "fp32")
    assert "sparse_over_dense_tokens_per_s" in figures and not [name for name in figures if "torch" in name]


def test_attention_keeps_roles_apart(load, monkeypatch):
    attention = load("attention")
    seconds = {"dense": 0.1, "dense_in_place": 0.1, "row": 0.02, "column": 0.01, "conv": 0.03}

    class Process:
        def __init__(self, name: str, role: str):
            self.name, self.role = name, role

        def ask(self, case: str) -> float:
            assert case == "memory"
            return {"target": 1000, "source": 2000}[self.role] * seconds[self.name]

    def alternate(entrants, case, rounds, repetitions):
        return {each.name: seconds[each.name] * int(case) * (2 if each.role == "source" and each.name == "row" else 1)
                for each in entrants}

    monkeypatch.setattr(attention.harness, "alternate", alternate)
    processes = {role: [Process(form, role) for form in attention.FORMS] for role in attention.MARKS}
    figures = attention.measure_times(processes, argparse.Namespace(quick=True))
    assert figures["row_time_ratio"] == pytest.approx(0.2) and figures["row_looked_at_time_ratio"] == pytest.approx(0.4)
    assert figures["column_looked_at_time_ratio"] == pytest.approx(0.1)
    assert figures["scaling_exponent"] == pytest.approx(1.0)
    assert not [name for name in figures if "4096" in name and "dense" in name], "a gigabyte a score matrix"
    memory = attention.measure_memory(processes)
    assert memory["conv_memory_ratio"] == pytest.approx(0.3)
    assert memory["row_looked_at_megabytes"] == pytest.approx(40) and memory["row_megabytes"] == pytest.approx(20)
