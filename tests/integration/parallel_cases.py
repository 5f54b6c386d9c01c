"""One process of a parallel test: runs the cases of a JSON file, each a short training, and writes what came of them.

``python parallel_cases.py cases.json`` with the environment of a rank. A case: name, steps, batch_size, train, optim,
distributed, output, and optionally the accident that befalls a rank.
"""
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import paddle

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from toy_task import ToyLoader, ToyTask

import cpu_sharding
from vilg.config import from_dict
from vilg.engine.checkpoints import resume
from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel, rank_of_launch, ranks_of_launch
from vilg.engine.task import Batch, Phase
from vilg.engine.trainer import TrainConfig, Trainer
from vilg.errors import VilgError
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.tasks.bidirectional import BidirectionalBatch, BidirectionalStep, BidirectionalTaskConfig
from vilg.tasks.image_tokenizer import ImageBatch, ImageTokenizerTask, ImageTokenizerTaskConfig


def run(case: dict) -> dict:
    """Train the case and return the losses and norms that rank 0 logged."""
    train = TrainConfig(**{"log_every": 1, "preview_every": 0, "checkpoint_every": 0} | case["train"])
    rank, ranks = rank_of_launch(), ranks_of_launch()
    loader = ToyLoader(train.micro_batch_size(ranks), rank=rank, ranks=ranks)
    parallel, opened = Parallel(DistributedConfig(**case["distributed"])), count_bytes()
    paddle.seed(0)
    with parallel.making() if case.get("late") else contextlib.nullcontext():
        task = ToyTask(dropout=0.0, **case.get("task", {}))
    late = sum(not tensor._is_initialized() for tensor in task.model.parameters())
    trainer = Trainer(task, loader, train, OptimConfig(**case["optim"]), parallel, case["output"])
    taken = parallel.gather([sum(each.bytes_verified + each.bytes_read for each in opened),
                             sum(each.bytes_verified for each in opened)])
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
            "exported": sorted(exported), "late": late, "taken": taken}


def count_bytes() -> list[Checkpoint]:
    """The checkpoints that a run opens to resume from, as it opens them."""
    opened: list[Checkpoint] = []

    class Counted(Checkpoint):
        def __init__(self, path: str | Path):
            super().__init__(path)
            opened.append(self)

    resume.Checkpoint = Counted
    return opened


def transformer() -> tuple[Phase, Batch]:
    """The transformer's own phase, and a batch for it."""
    config = BidirectionalConfig(layers=4, width=32, heads=4, vocab_size=90, codebook_size=70, text_length=6, rows=4,
                                 columns=5)
    step = BidirectionalStep(BidirectionalTransformer(config),
                             BidirectionalTaskConfig(model=config, image_tokenizer="", vocabulary=""))
    random, size = np.random.default_rng(0), 4
    return Phase("model", step, dict(step.named_parameters())), BidirectionalBatch(
        t2i_text=random.integers(1, 90, [size, 6]), t2i_length=np.full([size], 6),
        i2t_text=random.integers(1, 90, [size, 6]), i2t_length=np.full([size], 6),
        i2t_prefix=np.zeros([size], "int64"), codes=random.integers(0, 70, [size, 20]))


def dvae() -> tuple[Phase, Batch]:
    """The phase of an image tokenizer that looks codes up in a convolution's weight, and a batch for it."""
    task = ImageTokenizerTask(from_dict(ImageTokenizerTaskConfig, {
        "tokenizer": {"kind": "dvae", "image_size": 16, "channels": 8, "multipliers": [1, 2], "blocks": 1,
                      "codebook_size": 16, "decoder_channels": 8}, "loss": {"kind": "logit_laplace"}}))
    return task.phases[0], ImageBatch(np.random.default_rng(0).uniform(-1, 1, [4, 3, 16, 16]).astype("float32"))


MODELS = {"transformer": transformer, "dvae": dvae}


def run_model(case: dict) -> dict:
    """The losses of a few steps of a model of the house, on the same batch on every rank."""
    parallel = Parallel(DistributedConfig(**case["distributed"]))
    paddle.seed(0)
    phase, batch = MODELS[case["model"]]()
    random = np.random.default_rng(1)
    for tensor in phase.parameters.values():
        tensor.set_value(random.normal(0, 0.05, tensor.shape).astype("float32"))
    phase_optimizer, losses = parallel.phase_optimizer(phase, OptimConfig(lr=1e-2), {}), []
    for number in range(case["steps"]):
        loss = phase_optimizer.forward(batch.map(paddle.to_tensor), number, True, True).loss
        loss.backward()
        phase_optimizer.exchange()
        phase_optimizer.step(1e-2)
        phase_optimizer.clear()
        losses.append(float(loss))
    return {"losses": losses}


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
            result = run_model(case) if case.get("model") else run(case)
        except VilgError as error:
            result = {"refused": str(error)}
        if rank_of_launch() == 0:
            Path(case["output"]).with_suffix(".json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
