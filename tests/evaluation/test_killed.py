"""Drawing for MS-COCO that is killed at any picture goes on to the same pictures and the same figures."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_formats
import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNT = 12


def start(folder, *arguments):
    command = [sys.executable, str(ROOT / "tools/evaluate.py"), "coco", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_formats_coco_killed_and_resumed(released_model, tmp_path):
    prompts = made_formats.coco(tmp_path / "coco", COUNT)
    weights = made_formats.inception_weights(tmp_path / "inception.safetensors")
    # 64 drawings a caption fill a batch of their own, so that pictures are written one at a time.
    shared = ["--data", "coco", "--captions", prompts, "--model", released_model, "--weights", weights, "--protocol",
              "tf", "--kid-subset", 5, "--best-of", 64]
    broken = start(tmp_path, *shared, "--output", "broken", "--json", "broken.json")
    pictures, until = tmp_path / "broken/pictures", time.monotonic() + 300
    while len(list(pictures.glob("*.png"))) < 2 and broken.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in pictures.glob("*.png")}
    assert 2 <= len(before) < COUNT and not (tmp_path / "broken.json").exists()
    for name in ("broken", "whole"):
        assert start(tmp_path, *shared, "--output", name, "--json", f"{name}.json").wait() == 0
    drawn = {path.name: path.read_bytes() for path in sorted(pictures.iterdir())}
    assert len(drawn) == COUNT and drawn == {path.name: path.read_bytes() for path in
                                             (tmp_path / "whole/pictures").iterdir()}
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())  # kept, and not drawn again
    resumed, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("broken", "whole"))
    for score in ("fid", "kid", "inception_score", "precision", "recall"):
        assert resumed[score] == pytest.approx(whole[score], rel=1e-9), score
        assert resumed[f"signature.{score}"] == whole[f"signature.{score}"]
