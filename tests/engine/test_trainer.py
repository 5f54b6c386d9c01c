"""The training loop: determinism, exact resume, logs, guards, refusals."""
import json

import numpy as np
import pytest
from toy_task import ToyLoader, ToyTask

from vilg.engine.distributed import DistributedConfig
from vilg.engine.optim import OptimConfig
from vilg.engine.trainer import TrainConfig, Trainer


def trainer(output, steps=12, poison=range(0), width=16, fingerprints=None, **train):
    train = {"batch_size": 8, "log_every": 1, "preview_every": 0, "checkpoint_every": 5} | train
    config = TrainConfig(steps=steps, **train)
    loader = ToyLoader(config.micro_batch_size(1), poison=poison)
    return Trainer(ToyTask(width=width), loader, config, OptimConfig(lr=1e-2, warmup_steps=3), DistributedConfig(),
                   output, identity={"fingerprints": fingerprints or {}})


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def weights(run):
    return {name: value.numpy() for name, value in run.task.state().items()}


def averages(run):
    return {piece.name: piece.read() for piece in run.average.pieces()}


def test_two_runs_with_one_seed_are_identical(tmp_path):
    for name in ("a", "b"):
        trainer(tmp_path / name, steps=50).fit()
    assert len(losses(tmp_path / "a")) == 50
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_resuming_continues_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "whole", accumulate_steps=2)
    whole.fit()
    broken = trainer(tmp_path / "broken", accumulate_steps=2)
    original, broken._between_steps = broken._between_steps, lambda *_: original(*_) or stop_at(broken, 8)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    broken.saver.settle()
    resumed = trainer(tmp_path / "broken", accumulate_steps=2, resume="auto")
    assert resumed.step == 5
    resumed.fit()
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(resumed)[name])
    for name, value in averages(whole).items():
        np.testing.assert_array_equal(value, averages(resumed)[name])


def stop_at(run, step):
    if run.step == step:
        raise KeyboardInterrupt
