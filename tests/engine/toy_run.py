"""Short runs of the toy task, and what they leave behind."""
import json

from toy_task import ToyLoader, ToyTask

from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.engine.trainer import TrainConfig, Trainer


def trainer(output, steps=12, poison=range(0), width=16, fingerprints=None, task=None, optim=None, parallel=None,
            **train):
    train = {"batch_size": 8, "log_every": 1, "preview_every": 0, "checkpoint_every": 5} | train
    config = TrainConfig(steps=steps, **train)
    loader = ToyLoader(config.micro_batch_size(1), poison=poison)
    ranks = Parallel(DistributedConfig(**(parallel or {})))
    return Trainer(task or ToyTask(width=width), loader, config, optim or OptimConfig(lr=1e-2, warmup_steps=3), ranks,
                   output, identity={"fingerprints": fingerprints or {}})


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(output)]


def weights(run):
    return {name: value.numpy() for name, value in run.task.state().items()}


def averages(run):
    return {shard.name: shard.read() for shard in run.ema.tensor_shards()}


def interrupt(run, step, action):
    """Let ``run`` do ``action`` right after ``step``."""
    original = run._between_steps

    def between(*arguments):
        original(*arguments)
        if run.step == step:
            action()

    run._between_steps = between
    return run


def fail():
    raise KeyboardInterrupt
