"""Ranks that die, hang or are stopped: the job ends or comes back, says why, and loses nothing."""
import contextlib
import importlib.util
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vilg.engine.safety.supervisor import EXIT_REFUSED, Supervisor
from vilg.run import build

SUPERVISE = """
import sys
from pathlib import Path
from vilg.engine.safety.supervisor import Supervisor
sys.exit(Supervisor([sys.executable, *sys.argv[1:3]], 2, 0, list, Path(sys.argv[3])).run())
"""
PROGRAM = Path(__file__).with_name("parallel_cases.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def python_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def case(folder, name, steps=14, every=3, resume="auto", hang=60, **extra):
    """A 2-rank training for parallel_cases.py; ``accident`` is what befalls a rank at a step, once."""
    one = {"name": name, "output": str(folder / name),
           "train": {"steps": steps, "batch_size": 8, "resume": resume, "checkpoint_every": every,
                     "guards": {"hang_seconds": hang}},
           "optim": {"lr": 1e-2}, "distributed": {"level": "dp"}, **extra}
    listing = folder / f"{name}.list"
    listing.write_text(json.dumps([one]))
    return listing


def supervise(listing, restarts=0):
    return Supervisor([sys.executable, str(PROGRAM), str(listing)], 2, restarts, list, listing.with_suffix(".logs"))


def start(listing, **options):
    """A supervisor in a process of its own."""
    command = [sys.executable, "-c", SUPERVISE, str(PROGRAM), str(listing), str(listing.with_suffix(".logs"))]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)


def result(listing):
    with np.load(listing.with_suffix("") / "final.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_a_killed_rank_is_named_and_a_restart_loses_nothing(tmp_path, capfd):
    calm = case(tmp_path, "calm")
    assert supervise(calm).run() == 0
    hurt = case(tmp_path, "hurt", accident={"rank": 1, "step": 8, "signal": "SIGKILL"})
    start = time.monotonic()
    assert supervise(hurt).run() == 128 + signal.SIGKILL
    assert capfd.readouterr().err.strip().splitlines()[-1] == "error: rank 1 was killed by SIGKILL"
    (tmp_path / "hurt.accident").unlink()
    assert supervise(hurt, restarts=2).run() == 0
    assert time.monotonic() - start < 120
    first, second = result(calm), result(hurt)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_a_frozen_rank_is_named(tmp_path, capfd):
    hang = case(tmp_path, "hang", hang=4, accident={"rank": 1, "step": 5, "signal": "SIGSTOP"})
    assert supervise(hang).run() == 75
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "rank 0 ended with status 75: no progress for 4 s: rank 1" in last


def test_a_rank_that_goes_on_after_longer_than_gloo_waits_costs_nothing(tmp_path):
    calm, held = case(tmp_path, "calm"), case(tmp_path, "held", accident={"rank": 1, "step": 5, "signal": "SIGSTOP"})
    assert supervise(calm).run() == 0
    job = start(held)
    deadline = time.monotonic() + 120
    while not (tmp_path / "held.accident").is_file():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.1)
    time.sleep(35)  # gloo gives up after 30
    os.kill(json.loads((tmp_path / "held" / "ranks" / "rank-00001.json").read_text())["process"], signal.SIGCONT)
    assert job.wait(timeout=60) == 0
    first, second = result(calm), result(held)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_wrong_starts_are_refused_with_one_sentence(tmp_path, capfd):
    listing = case(tmp_path, "wrong", resume=str(tmp_path / "nowhere"))
    supervisor = supervise(listing, restarts=3)
    assert supervisor.run() == 0
    assert "not a checkpoint" in json.loads((tmp_path / "wrong.json").read_text())["refused"]
    command = [sys.executable, "-c", "import sys; print('error: optim.lr: is wrong', file=sys.stderr); sys.exit(2)"]
    assert Supervisor(command, 2, 3, list, tmp_path / "logs").run() == EXIT_REFUSED
    assert capfd.readouterr().err.strip().splitlines()[-1] == "error: optim.lr: is wrong"


BAR = """
import os, sys
print("on a terminal:", os.environ.get("VILG_PROGRESS_LIVE"), file=sys.stderr)
for bar in ("1/3 slow", "2/3", "3/3\\n"):
    sys.stderr.write("\\r" + bar)
print("done", file=sys.stderr)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_progress_bar_is_redrawn_on_a_terminal_and_written_line_by_line_elsewhere(tmp_path, terminal):
    reader, writer = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", SUPERVISE, "-c", BAR, str(tmp_path)]
    subprocess.run(command, stderr=writer, timeout=120, check=True)
    os.close(writer)
    shown = b""
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while piece := os.read(reader, 4096):
            shown += piece
    os.close(reader)
    logged = (tmp_path / "rank-00000.log").read_text().splitlines()
    if terminal:
        assert shown.decode().replace("\r\n", "\n") == "\ron a terminal: 1\n\r1/3 slow\r2/3     \r3/3\n\rdone\n"
        assert logged == ["on a terminal: 1", "3/3", "done"]
    else:
        assert shown.decode().splitlines() == logged == ["on a terminal: None", "1/3 slow", "2/3", "3/3", "done"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_end_saves_and_ends_well(tmp_path, number):
    listing = case(tmp_path, "stopped", steps=100_000, every=0)
    process = start(listing, start_new_session=True)
    log, deadline = tmp_path / "stopped" / "metrics.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 5):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # Ctrl-C: to the supervisor and to its ranks
    assert process.wait(timeout=60) == 0
    assert list((tmp_path / "stopped" / "checkpoints").glob("step-*"))


def test_ranks_end_when_their_launcher_is_gone(tmp_path):
    listing = case(tmp_path, "orphans", steps=100_000, every=0)
    process = start(listing)
    places, deadline = tmp_path / "orphans" / "ranks", time.monotonic() + 120
    while len(list(places.glob("rank-*.json"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    numbers = [json.loads(path.read_text())["process"] for path in places.glob("rank-*.json")]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{number}") for number in numbers):
        assert time.monotonic() < deadline, "a rank outlived its launcher"
        time.sleep(0.1)


def test_a_restart_goes_on_from_what_this_job_wrote_and_else_from_where_the_user_said(tmp_path):
    spec = importlib.util.spec_from_file_location("train_tool", ROOT / "tools" / "train.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    config = ["--config", str(ROOT / "configs" / "vilg" / "tiny.yaml")]

    def again(resume):
        return tool._again(build.load_run(config[1], [f"output={tmp_path}", f"train.resume={resume}"]))

    old = tmp_path / "checkpoints" / "step-00000040"
    old.mkdir(parents=True)
    from_path, automatic = again("elsewhere/step-00000010"), again("auto")
    assert from_path() == [] and automatic() == ["--resume", "auto"]
    (old.parent / "step-00000020").mkdir()
    assert from_path() == ["--resume", "auto"]
