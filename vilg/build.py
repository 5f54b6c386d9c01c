"""Run config → data, task, trainer: tables of names and nothing else."""
import os
from dataclasses import field
from pathlib import Path
from typing import Annotated, Union

import paddle
import pydantic

from vilg import config as configs
from vilg import runtime
from vilg.config import configclass
from vilg.data.batches import Loader
from vilg.data.sources import DataConfig, build_mixture
from vilg.engine.distributed import DistributedConfig, ranks_of_launch
from vilg.engine.optim import OptimConfig
from vilg.engine.task import Task
from vilg.engine.trainer import TrainConfig, Trainer
from vilg.generation.sampling import SamplingConfig
from vilg.runtime import RuntimeConfig
from vilg.tasks.bidirectional import BidirectionalTask, BidirectionalTaskConfig
from vilg.tasks.image_tokenizer import ImageTokenizerTask, ImageTokenizerTaskConfig


@configclass
class RunConfig:
    """One training run. ``output`` may hold ``{name}``; ``sampling`` is what previews and the released model draw with."""

    name: str
    seed: int = 0
    output: str = "runs/{name}"
    task: Annotated[Union[BidirectionalTaskConfig, ImageTokenizerTaskConfig], pydantic.Field(discriminator="kind")]
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def output_directory(self) -> Path:
        """Where the run writes."""
        return Path(self.output.format(name=self.name))


def load_run(path: str | Path, overrides: list[str] = ()) -> RunConfig:
    """Read a run config with its ``a.b=c`` overrides. Raises ConfigError naming the key."""
    return configs.load(path, RunConfig, list(overrides))


def build_task(run: RunConfig) -> Task:
    """The task that ``task.kind`` names, its models initialised from the run's seed."""
    runtime.configure(run.runtime)
    paddle.seed(run.seed)
    return {"bidirectional": lambda: BidirectionalTask(run.task, run.sampling),
            "image_tokenizer": lambda: ImageTokenizerTask(run.task)}[run.task.kind]()


def build_loader(run: RunConfig, task: Task, rank: int, ranks: int) -> Loader:
    """This rank's micro-batches of the run's data."""
    return Loader(build_mixture(run.data), run.data.loader, task.collate, run.train.micro_batch_size(ranks), run.seed,
                  rank, ranks)


def build_trainer(run: RunConfig) -> Trainer:
    """Everything that a run needs, ready to :meth:`~vilg.engine.trainer.Trainer.fit`."""
    task = build_task(run)
    loader = build_loader(run, task, int(os.environ.get("PADDLE_TRAINER_ID", "0")), ranks_of_launch())
    identity = {"config": configs.to_dict(run), "fingerprints": task.fingerprints()}
    return Trainer(task, loader, run.train, run.optim, run.distributed, run.output_directory, run.seed, run.name,
                   identity)
