"""One process of a test of divided layers: trains the transformer in each case of a JSON file, and writes what came
of it.

``python divided_cases.py cases.json`` with the environment of a rank. A case: name, output, train, distributed, and
optionally ``model`` (changes of its shape) and ``half`` (level O2, emulated, parameters made late).
"""
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import cpu_sharding
import half_emulation
from parallel_cases import count_bytes

from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel, rank_of_launch, ranks_of_launch
from vilg.engine.trainer import TrainConfig, Trainer
from vilg.errors import VilgError
from vilg.evaluation.device.small_run import RandomBatches, SmallTask
from vilg.models.bidirectional import BidirectionalConfig

SHAPE = {"layers": 3, "width": 32, "heads": 4, "vocab_size": 30, "codebook_size": 20, "text_length": 5, "rows": 3,
         "columns": 4}


def run(case: dict) -> dict:
    """The losses and norms that rank 0 logged, and every tensor of the last checkpoint in ``final.npz``."""
    train = TrainConfig(**{"log_every": 1, "preview_every": 0, "checkpoint_every": 0, "ema_decay": 0.9, "batch_size": 8,
                           "accumulate_steps": 2, "guards": {"hang_seconds": 100}} | case["train"])
    distributed = DistributedConfig(**case["distributed"])
    train.check_parallel(distributed, ranks_of_launch())
    parallel, opened = Parallel(distributed), count_bytes()
    if case.get("half"):
        if not half_emulation.Cast.entered:
            half_emulation.install(moves=True)
        parallel.mixed_precision = True
    shape = BidirectionalConfig(**SHAPE | case.get("model", {}))
    data_rank, data_ranks = parallel.topology.data_rank, parallel.topology.data_ranks
    loader = RandomBatches(shape, train.micro_batch_size(data_ranks), data_rank, data_ranks)
    task = SmallTask(shape, parallel)
    optim = OptimConfig(lr=1e-2, weight_decay=0.1, clip_norm=0.5, schedule="constant")
    trainer = Trainer(task, loader, train, optim, parallel, case["output"])
    taken = parallel.gather(sum(each.bytes_verified + each.bytes_read for each in opened))
    trainer.fit()
    held = parallel.gather(sum(tensor.size for tensor in task.model.parameters()))
    if rank_of_launch():
        return {}
    logged = [json.loads(line) for line in (Path(case["output"]) / "metrics.jsonl").read_text().splitlines()]
    checkpoint = Checkpoint(sorted((Path(case["output"]) / "checkpoints").glob("step-*"))[-1])
    np.savez(Path(case["output"]) / "final.npz", **{name: checkpoint.full(name) for name in checkpoint.names})
    return {"losses": [line["loss"] for line in logged], "norms": [line["grad_norm"] for line in logged],
            "taken": sum(taken), "held": held}


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
