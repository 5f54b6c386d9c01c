"""Contrastive training on two real ranks is that on one: the negatives of both count, with their gradient."""
import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vilg import config, release
from vilg.run.build import RunConfig

ROOT = Path(__file__).parents[2]


def train(folder, values, ranks, level, **task):
    """Losses, gradient norms and temperatures of a run of tools/train.py, and the model it exports."""
    values = copy.deepcopy(values) | {"output": str(folder / "run")}
    values["task"] |= task
    values["train"] |= {"steps": 6, "batch_size": 8}
    values["optim"] |= {"lr": 1e-3}
    values["distributed"] = {"level": level}
    folder.mkdir()
    (folder / "run.yaml").write_text(config.to_yaml(config.from_dict(RunConfig, values)), encoding="utf-8")
    command = [sys.executable, "tools/train.py", "--config", str(folder / "run.yaml"), "--ranks", str(ranks)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    model = release.read(folder / "run" / "model", "dual_encoder").model
    return ([[line[name] for name in ("loss", "image_image_loss", "grad_norm", "temperature")] for line in lines],
            {name: value.numpy() for name, value in model.state_dict().items()})


@pytest.fixture(scope="module")
def alone(contrastive_values, tmp_path_factory):
    return train(tmp_path_factory.mktemp("one") / "rank", contrastive_values, 1, "none")


@pytest.mark.parametrize("level, task", [("dp", {}), ("dp", {"chunk": 3})])
def test_two_ranks_train_as_one(alone, contrastive_values, tmp_path, level, task):
    figures, weights = train(tmp_path / "ranks", contrastive_values, 2, level, **task)
    np.testing.assert_allclose(figures, alone[0], rtol=2e-4)
    for name, value in alone[1].items():
        np.testing.assert_allclose(weights[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
