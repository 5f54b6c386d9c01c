"""The tool as users start it: what it prints, how it ends, and several workers of one server."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "一个红色的圆形"


def start_tool(*arguments):
    return subprocess.Popen([sys.executable, "tools/serve.py", *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


def get(port, path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body and json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def wait_ready(process, port):
    until = time.monotonic() + 180
    while True:
        try:
            return get(port, "/readyz")
        except (OSError, urllib.error.URLError):
            assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
            time.sleep(0.2)


def ended(process, number=signal.SIGTERM):
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


def test_sigterm_ends_when_what_is_drawn_is_done(free_port):
    process = start_tool("ernie_vilg_tiny", "--port", free_port)
    wait_ready(process, free_port)
    answers = []
    waiting = [threading.Thread(target=lambda: answers.append(
        get(free_port, "/v1/images/generations", {"prompt": PROMPT, "n": 8}))) for _ in range(2)]
    for one in waiting:
        one.start()
    time.sleep(0.3)
    status, output = ended(process)
    for one in waiting:
        one.join(60)
    assert [len(json.loads(answer)["data"]) for answer in answers] == [8, 8]
    assert status == 0 and "Traceback" not in output and "Error" not in output
    assert PROMPT not in output and '"path": "/v1/images/generations", "status": 200' in output


def test_workers_share_an_address_and_one_that_dies_comes_back(released_model, free_port):
    process = start_tool(released_model, "--port", free_port, "--workers", 2)
    wait_ready(process, free_port)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    pids = [int(pid) for pid in children.stdout.split()]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)
    time.sleep(1)
    wait_ready(process, free_port)
    for _ in range(8):
        assert json.loads(get(free_port, "/v1/images/generations", {"prompt": PROMPT}))["data"]
    counted = 'vilg_requests_total{path="/v1/images/generations",status="200"}'
    figures = get(free_port, "/metrics").decode().splitlines()
    assert [float(line.rpartition(" ")[2]) for line in figures if line.startswith(counted)] == [8.0]  # of all workers
    status, output = ended(process)
    # Paddle heads what it says of a worker that is ended while it loads with "C++ Traceback".
    assert status == 0 and "Traceback" not in output.replace("C++ Traceback", "")


@pytest.mark.parametrize("arguments,words", [
    (["nobody"], "no such model"), (["image_tokenizer"], "no such model"), (["scene_features"], "cannot be served"),
    (["ernie_vilg_tiny", "ernie_vilg_tiny"], "two models are called"),
    (["ernie_vilg_tiny", "--host", "0.0.0.0"], "--no-key"), (["ernie_vilg_tiny", "--port", "0"], "--port"),
    (["ernie_vilg_tiny", "--max-rows", "0"], "--max-rows is at least 1"),
    (["ernie_vilg_tiny", "--queue", "0"], "--queue"),
    (["ernie_vilg_tiny", "--workers", "0"], "--workers"), (["ernie_vilg_tiny", "--timeout", "0"], "--timeout"),
    (["ernie_vilg_tiny", "--wait-ms", "nan"], "--wait-ms"), (["ernie_vilg_tiny", "--index", "/nowhere"], "/nowhere"),
    (["ernie_vilg_tiny", "--api-key-file", "/nowhere"], "--api-key-file")])
def test_what_cannot_be_served_is_one_sentence(arguments, words, free_port):
    process = start_tool(*arguments, *([] if "--port" in arguments else ["--port", free_port]))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: ") and words in output.splitlines()[-1]
