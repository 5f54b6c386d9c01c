"""Runs as people start, stop and change them, in processes of their own: two in one output, a changed resume, a stopped
run that is exported and drawn from."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SECONDS = 180
SIZES = {"layers": 2, "width": 16, "heads": 2, "codebook_size": 32, "text_length": 16, "rows": 4, "columns": 4}


@pytest.fixture
def config(tmp_path, released_model):
    """A run of a model as small as one can be, on scenes that are drawn as they are asked for."""
    vocabulary = len((released_model / "vocab.txt").read_text(encoding="utf-8").splitlines())
    values = {"name": "small", "output": str(tmp_path / "run"),
              "task": {"kind": "bidirectional", "image_tokenizer": str(released_model / "image_tokenizer"),
                       "vocabulary": str(released_model), "model": {**SIZES, "vocab_size": vocabulary}},
              "data": {"sources": [{"kind": "scenes", "count": 40, "size": 16, "captions": 1}]},
              "optim": {"lr": 1e-3, "schedule": "constant"},
              "train": {"steps": 6, "batch_size": 4, "preview_every": 0, "checkpoint_every": 2, "log_every": 1,
                        "ema_decay": 0.5, "keep_last": 10},
              "runtime": {"threads": 1}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def command(tool, *arguments):
    return [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]


def run(tool, *arguments, **options):
    """Status, standard output and last line of standard error of a tool in a process of its own."""
    done = subprocess.run(command(tool, *arguments), capture_output=True, text=True, timeout=SECONDS,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def begin(config, *arguments):
    """A run without an end, which has written its first checkpoint."""
    process = subprocess.Popen(command("train", "--config", config, "--set", "train.steps=1000000", *arguments),
                               env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    while not list((config.parent / "run" / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process


def test_an_output_in_use_is_refused_and_a_dead_process_keeps_none(config):
    process = begin(config)
    try:
        for arguments in (["--resume", "auto"], [], ["--ranks", "2", "--set", "distributed.level=dp"]):
            status, _, last = run("train", "--config", config, *arguments)
            assert status == 2 and f"is in use by another run (process {process.pid} on " in last, last
        log = (config.parent / "run" / "metrics.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line)["step"] for line in log.splitlines()[:3]] == [1, 2, 3]
    finally:
        process.kill()
        process.wait()
    newest = max(int(path.name[5:]) for path in (config.parent / "run" / "checkpoints").glob("step-*"))
    status, _, _ = run("train", "--config", config, "--resume", "auto", "--set", f"train.steps={newest + 2}")
    assert status == 0


def test_a_changed_resume_says_what_changed_and_waits_to_be_told(config):
    assert run("train", "--config", config)[0] == 0
    changed = ["--resume", "auto", "--set", "train.steps=8", "--set", "train.batch_size=8", "--set", "optim.lr=3e-2",
               "--set", "data.sources.0.count=44"]
    status, _, last = run("train", "--config", config, *changed)
    assert status == 2 and last.endswith("train.resume_changed: true")
    assert "optim.lr: 0.001 → 0.03" in last and "train.batch_size: 4 → 8" in last
    assert "data.sources.0.count: 40 → 44" in last and "steps" not in last
    assert run("train", "--config", config, *changed, "--set", "train.resume_changed=true")[0] == 0
    lines = (config.parent / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert rates == [1e-3] * 6 + [3e-2] * 2
    status, _, last = run("train", "--config", config, "--resume", "auto", "--set", "optim.schedule=cosine")
    assert status == 2 and "optim.schedule: 'constant' → 'cosine'" in last


def test_a_stopped_run_is_exported_and_drawn_from(config, tmp_path):
    process = begin(config)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=SECONDS) == 0
    output = tmp_path / "run"
    assert not (output / "model").exists()
    status, _, last = run("infer", "text2image", "红色的圆形", "--model", output)
    assert status == 2 and f"tools/export.py {output}" in last
    status, said, _ = run("export", output)
    newest = max(int(path.name[5:]) for path in (output / "checkpoints").glob("step-*"))
    assert status == 0 and f"the model of step {newest}, averaged weights" in said
    status, _, last = run("infer", "text2image", "红色的圆形", "--model", output)
    assert status == 2 and f"its model is {output / 'model'}" in last
    assert run("infer", "text2image", "红色的圆形", "--model", output / "model", "--output", tmp_path / "drawn")[0] == 0
    assert len(list((tmp_path / "drawn").glob("0*.png"))) == 1
    status, _, last = run("export", output)
    assert status == 2 and "holds a released model already" in last and "--output" in last


def test_an_export_is_what_the_run_itself_releases(config, tmp_path):
    assert run("train", "--config", config, "--set", "train.steps=4")[0] == 0
    output = tmp_path / "run"
    for step, same in ((4, True), (2, False)):
        assert run("export", output, "--step", step, "--output", tmp_path / str(step))[0] == 0
        own, other = (yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
                      for folder in (output / "model", tmp_path / str(step)))
        assert (own["fingerprint"] == other["fingerprint"]) == same
    assert run("export", output / "checkpoints" / "step-00000002", "--output", tmp_path / "two")[0] == 0
    assert (tmp_path / "two" / "model.yaml").read_bytes() == (tmp_path / "2" / "model.yaml").read_bytes()
    assert run("export", output, "--best", "--output", tmp_path / "best")[0] == 0
    status, _, last = run("export", output, "--step", "3")
    assert status == 2 and "there are 2, 4" in last
    status, _, last = run("export", tmp_path)
    assert status == 2 and "holds no checkpoint" in last


def test_an_output_that_cannot_be_one_is_refused_before_training(config, tmp_path):
    output = tmp_path / "run"
    for name in ("checkpoints", "visualdl", "previews", "model", "ranks"):
        output.mkdir(exist_ok=True)
        (output / name).write_text("a file")
        status, _, last = run("train", "--config", config)
        assert status == 2 and f"{output / name} is not a folder" in last, last
        (output / name).unlink()
    (output / "metrics.jsonl").mkdir()
    status, _, last = run("train", "--config", config)
    assert status == 2 and "metrics.jsonl is not a file" in last


@pytest.mark.parametrize("reader", ["closed", "gone", "gbk"])
def test_output_that_cannot_be_taken_costs_no_finished_run(config, tmp_path, reader):
    words = " ".join(command("train", "--config", config, "--set", "train.steps=2", "--set", "name=红色的😀"))
    line = {"closed": f"exec {words} >&- 2>&-", "gone": f"{words} 2>&1 | true; exit ${{PIPESTATUS[0]}}",
            "gbk": f"exec {words}"}[reader]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"PYTHONIOENCODING": "gbk"} if reader == "gbk" else {})
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "model" / "model.yaml").is_file()
    if reader == "gbk":
        assert "\r" not in done.stderr.decode("gbk") and "100% 2/2" in done.stderr.decode("gbk")
