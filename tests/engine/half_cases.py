"""One process of a half-precision test: trains the cases of a JSON file under emulated O2 and writes what came of them.

``python half_cases.py cases.json`` with the environment of a rank. A case: name, train, distributed, output, and
optionally ``ahead`` (gather parameters asynchronously), ``decay`` (weight decay), ``aside`` (a layer that no data
reaches) and ``sour`` (steps at which the second of two phases is not finite).
"""
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import cpu_sharding
import half_emulation
from toy_task import ToyLoader, ToyTask, two_phases

from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel, rank_of_launch, ranks_of_launch
from vilg.engine.task import Phase
from vilg.engine.trainer import TrainConfig, Trainer



class AsideTask(ToyTask):
    """A task with a layer that no batch reaches: its gradients are left over when buckets are exchanged."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.model.aside = nn.Linear(5, 7)
        self.phases = [Phase("model", self.model, dict(self.model.named_parameters()))]


def run(case: dict, install: bool) -> dict:
    """Train the case; rank 0's losses, and every tensor of the last checkpoint in ``final.npz``."""
    train = TrainConfig(**{"log_every": 1, "preview_every": 0, "batch_size": 8, "ema_decay": 0.9, "keep_last": 9,
                           "guards": {"hang_seconds": 60}} | case["train"])
    rank, ranks = rank_of_launch(), ranks_of_launch()
    parallel = Parallel(DistributedConfig(**case["distributed"]))
    if install:
        if ranks > 1:
            cpu_sharding.install()
        half_emulation.install()
    parallel.mixed_precision, parallel.gathers_ahead = True, case.get("ahead", False)
    loader = ToyLoader(train.micro_batch_size(ranks), rank=rank, ranks=ranks)
    paddle.seed(0)
    with parallel.making() if case.get("late") else contextlib.nullcontext():
        made = None if "sour" in case or case.get("aside") else ToyTask(dropout=0.0)
    task = AsideTask() if case.get("aside") else made
    task = two_phases(case["sour"], dropout=0.0) if "sour" in case else task
    entered = half_emulation.Cast.entered
    optim = OptimConfig(lr=1e-2, weight_decay=case.get("decay", 1.0), schedule="constant")
    assert case.get("late", False) is not task.model.enter.weight._is_initialized()
    trainer = Trainer(task, loader, train, optim, parallel, case["output"])
    trainer.fit()
    assert half_emulation.Cast.entered > entered, "forward passes ran outside auto_cast"
    if rank:
        return {}
    checkpoint = Checkpoint(sorted((Path(case["output"]) / "checkpoints").glob("step-*"))[-1])
    np.savez(Path(case["output"]) / "final.npz", **{name: checkpoint.full(name) for name in checkpoint.names})
    lines = (Path(case["output"]) / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    return {"losses": [line["loss"] for line in logged], "norms": [line.get("grad_norm") for line in logged],
            "dtypes": sorted({str(value.dtype) for value in task.model.parameters()}),
            "buffers": sorted({str(value.dtype) for value in task.model.buffers()})}


def main() -> None:
    """Run every case in turn in one process group."""
    cases = json.loads(Path(sys.argv[1]).read_text())
    for number, case in enumerate(cases):
        result = run(case, install=number == 0)
        if rank_of_launch() == 0:
            Path(case["output"]).with_suffix(".json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
