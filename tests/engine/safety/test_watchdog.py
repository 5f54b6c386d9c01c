"""A run that hangs is ended; one that was stopped and continued from outside is not."""
import json
import os
import signal
import subprocess
import sys
import time

from vilg.engine.safety.watchdog import EXIT_HANG

HANGS = """
import sys, time
from pathlib import Path
from vilg.engine.safety.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), 0, 1, float(sys.argv[2])) as watchdog:
    watchdog.at(3, "computes")
    print("started", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start(directory, hang_seconds: float, sleeps: float) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HANGS, str(directory), str(hang_seconds), str(sleeps)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    return process


def test_a_rank_without_progress_is_ended_and_named(tmp_path):
    process = start(tmp_path, 2.0, 60.0)
    _, message = process.communicate(timeout=60)
    assert process.returncode == EXIT_HANG
    assert "rank 0 is behind, in step 3 it computes" in message


def test_time_spent_stopped_from_outside_is_no_hang(tmp_path):
    """Stopped for longer than a hang takes, it goes on beating, and its time in the step does not hold the stop."""
    process = start(tmp_path, 12.0, 600.0)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(13.0)
        os.kill(process.pid, signal.SIGCONT)
        continued, place = time.time(), {"beat": 0.0}
        while process.poll() is None and place["beat"] < continued:
            time.sleep(0.1)
            place = json.loads((tmp_path / "rank-00000.json").read_text())
        assert process.poll() is None, process.stderr.read()
        assert place["seconds"] < 12.0
    finally:
        process.kill()
        process.communicate()


def test_a_collective_that_gloo_gave_up_names_the_rank_behind(tmp_path):
    place = {"step": 2, "doing": "draws previews", "seconds": 31, "beat": time.time()}
    (tmp_path / "rank-00001.json").write_text(json.dumps(place))
    code = """
import os, sys
from pathlib import Path
from vilg.engine.safety.watchdog import EXCHANGES, Watchdog
with Watchdog(Path(sys.argv[1]), 0, 2, 600.0) as watchdog:
    watchdog.at(2, EXCHANGES)
    watchdog._tell()
    raise RuntimeError("[/paddle/third_party/gloo/gloo/transport/tcp/pair.cc:584] TIMEOUT self_rank = 0 pair_rank = 1")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_HANG
    assert done.stderr.strip() == "error: no progress for 30 s: rank 1 is behind, in step 2 it draws previews for 31 s"
