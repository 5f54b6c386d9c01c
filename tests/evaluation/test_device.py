"""The device checks' runner: what passes, fails and is left out; and the operators' checks that a CPU decides."""
import pytest

from vilg.evaluation.device import checks, kernels, runs
from vilg.evaluation.device.checks import Check, Skipped, demand, figures, run_checks


def refuse() -> str:
    raise Skipped("not on a Tuesday")


def broken() -> str:
    demand(1 + 1 == 3, "two is not three")
    return ""


def test_a_failure_does_not_keep_the_next_from_running(monkeypatch):
    listed = [Check("good", 0, lambda: "fine"), Check("bad", 0, broken), Check("later", 0, refuse),
              Check("far", 2, lambda: "fine"), Check("slow", 0, lambda: "fine", big=True)]
    monkeypatch.setattr(checks, "gpus_here", lambda: 1)
    results = list(run_checks(listed))
    assert [result.status for result in results] == ["PASS", "FAIL", "SKIP", "SKIP", "SKIP"]
    assert "two is not three at checks.py" in results[1].note and results[3].note == "needs 2 GPUs, 1 here"
    found = figures(results)
    assert (found["pass"], found["fail"], found["skip"]) == (1, 1, 3) and found["results"][0]["name"] == "good"
    assert [result.status for result in run_checks(listed, only="slow", big=True)] == ["PASS"]


def test_names_are_unique_and_every_sharded_level_is_tried():
    names = [check.name for check in (*kernels.checks(), *runs.checks())]
    assert len(names) == len(set(names)) > 60
    for word in ("os amp O2", "os_g amp O2", "p_g_os amp O2 bfloat16 offload", "two groups of four", "FlashMask"):
        assert any(word in name for name in names), word


def test_operators_that_a_cpu_decides_pass():
    results = list(run_checks(kernels.checks()))
    assert {result.status for result in results if result.note and "GPU" not in result.note} == {"PASS"}
    assert sum(result.status == "PASS" for result in results) >= 4


@pytest.mark.parametrize("spoiled", ["attention", "gelu"])
def test_a_wrong_operator_fails(monkeypatch, spoiled):
    if spoiled == "attention":
        plain = kernels.block_sparse_attention
        monkeypatch.setattr(kernels, "block_sparse_attention", lambda *inputs, **more: 1.01 * plain(*inputs, **more))
    else:
        plain = kernels.memory_savers.LinearAfterGelu.apply
        monkeypatch.setattr(kernels.memory_savers.LinearAfterGelu, "apply", lambda x, w, b: 1.01 * plain(x, w, b))
    failed = [result.name for result in run_checks(kernels.checks()) if result.status == "FAIL"]
    assert failed and all(name.startswith("attention" if spoiled == "attention" else "operators") for name in failed)
