"""One process of a parallel test: runs the cases of a JSON file, each a short training, and writes what came of them.

``python parallel_cases.py cases.json`` with the environment of a rank. A case: name, steps, batch_size, train, optim,
distributed, output, and optionally the accident that befalls a rank.
"""
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from toy_task import ToyLoader, ToyTask

import cpu_sharding
from vilg.engine.checkpoint import Checkpoint
from vilg.engine.distributed import DistributedConfig, Parallel, rank_of_launch, ranks_of_launch
from vilg.engine.optim import OptimConfig
from vilg.engine.trainer import TrainConfig, Trainer
from vilg.errors import VilgError


def run(case: dict) -> dict:
    """Train the case and return the losses and norms that rank 0 logged."""
    train = TrainConfig(**{"log_every": 1, "preview_every": 0, "checkpoint_every": 0} | case["train"])
    rank, ranks = rank_of_launch(), ranks_of_launch()
    loader = ToyLoader(train.micro_batch_size(ranks), rank=rank, ranks=ranks)
    task = ToyTask(dropout=0.0, **case.get("task", {}))
    trainer = Trainer(task, loader, train, OptimConfig(**case["optim"]), DistributedConfig(**case["distributed"]),
                      case["output"])
    if case.get("accident", {}).get("rank") == rank:
        befall(trainer, **case["accident"])
    trainer.fit()
    if rank:
        return {}
    lines = (Path(case["output"]) / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    checkpoint = Checkpoint(sorted((Path(case["output"]) / "checkpoints").glob("step-*"))[-1])
    np.savez(Path(case["output"]) / "final.npz", **{name: checkpoint.full(name) for name in checkpoint.names})
    exported = task.exported or {}
    return {"losses": [line["loss"] for line in logged], "norms": [line["grad_norm"] for line in logged],
            "exported": sorted(exported)}


def befall(trainer: Trainer, rank: int, step: int, **accident: str) -> None:
    """Let this rank be hit by a signal after ``step``, the first time round."""
    mark, between = trainer.output.with_suffix(".accident"), trainer._between_steps

    def between_steps(*arguments) -> None:
        between(*arguments)
        if trainer.step == step and not mark.exists():
            trainer.saver.settle()
            mark.touch()
            os.kill(os.getpid(), signal.Signals[accident["signal"]])

    trainer._between_steps = between_steps


def main() -> None:
    """Run every case in turn in one process group."""
    cases = json.loads(Path(sys.argv[1]).read_text())
    if ranks_of_launch() > 1:
        Parallel(DistributedConfig(level="dp"))
        cpu_sharding.install()
    for case in cases:
        try:
            result = run(case)
        except VilgError as error:
            result = {"refused": str(error)}
        if rank_of_launch() == 0:
            Path(case["output"]).with_suffix(".json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
