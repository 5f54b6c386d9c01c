"""Run config → data, task, trainer."""
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import paddle
import pydantic

from vilg import config as configs
from vilg import release, runtime
from vilg.config import configclass
from vilg.data.config import DataConfig, build_stream
from vilg.data.loader import Loader, Stream
from vilg.data.sample import BrokenSample, Sample
from vilg.engine.checkpoints.resume import admit, together
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel, ranks_of_launch
from vilg.engine.task import Task
from vilg.engine.trainer import TrainConfig, Trainer
from vilg.errors import ConfigError
from vilg.generation.sampling import DrawingConfig, MaskPredictConfig, SamplingConfig
from vilg.models.bidirectional import BidirectionalConfig
from vilg.progress import progress
from vilg.runtime import RuntimeConfig
from vilg.tasks.bidirectional import BidirectionalTask, BidirectionalTaskConfig
from vilg.tasks.contrastive import ContrastiveTask, ContrastiveTaskConfig
from vilg.tasks.end_to_end import EndToEndTask, EndToEndTaskConfig
from vilg.tasks.image_tokenizer import ImageTokenizerTask, ImageTokenizerTaskConfig
from vilg.tasks.scene_features import SceneFeaturesTask, SceneFeaturesTaskConfig
from vilg.tasks.sequence_level import SequenceLevelTask, SequenceLevelTaskConfig
from vilg.tasks.two_level import TwoLevelTask, TwoLevelTaskConfig
from vilg.yaml_files import shown

_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,100}")
_LONGEST_OUTPUT = 1000
_SURVEY_SAMPLES, _SURVEY_SECONDS = 1000, 10.0


@configclass
class RunConfig:
    """One training run. ``output`` may hold ``{name}``; ``sampling`` is what previews and the released model draw with,
    in the settings of the task's kind of model (:attr:`drawing`)."""

    name: str
    seed: int = 0
    output: str = "runs/{name}"
    task: Annotated[BidirectionalTaskConfig | EndToEndTaskConfig | ImageTokenizerTaskConfig | ContrastiveTaskConfig
                    | SceneFeaturesTaskConfig | SequenceLevelTaskConfig | TwoLevelTaskConfig,
                    pydantic.Field(discriminator="kind")]
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sampling = configs.to_dict(self.drawing)
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.task.kind == "sequence_level" and self.distributed.level == "p_g_os":
            raise ValueError("distributed.level: a sequence_level step draws and writes with the whole model, and "
                             "p_g_os leaves each rank a part of it; use level: os_g or dp")
        if not _NAME.fullmatch(self.name) or self.name in (".", ".."):
            raise ValueError(f"name is a plain file name of at most 100 characters, got {shown(self.name)}")
        if set("{}") & set(self.output.replace("{name}", "")) or len(self.output) > _LONGEST_OUTPUT:
            raise ValueError(f"output may hold {{name}} and no other braces, got {shown(self.output)}")

    @property
    def drawing(self) -> DrawingConfig:
        """``sampling``, as the task's kind of model takes it. Raises ConfigError."""
        own = MaskPredictConfig() if isinstance(self.task, TwoLevelTaskConfig) else SamplingConfig()
        return own.over(self.sampling, self.name)

    @property
    def output_directory(self) -> Path:
        """Where the run writes."""
        return Path(self.output.replace("{name}", self.name))


def load_run(path: str | Path, overrides: list[str] = ()) -> RunConfig:
    """Read a run config with its ``a.b=c`` overrides. Raises ConfigError naming the key."""
    return configs.load(path, RunConfig, list(overrides))


def build_task(run: RunConfig, making: Callable[[], AbstractContextManager] = nullcontext) -> Task:
    """The task that ``task.kind`` names, its models initialised from the run's seed; ``making`` is
    :meth:`~vilg.engine.parallel.distributed.Parallel.making` of the ranks that train them."""
    runtime.configure(run.runtime)
    paddle.seed(run.seed)
    return {"bidirectional": lambda: BidirectionalTask(run.task, run.drawing, making),
            "contrastive": lambda: ContrastiveTask(run.task),
            "end_to_end": lambda: EndToEndTask(run.task, run.drawing),
            "image_tokenizer": lambda: ImageTokenizerTask(run.task),
            "sequence_level": lambda: SequenceLevelTask(run.task, run.drawing),
            "two_level": lambda: TwoLevelTask(run.task, run.drawing),
            "scene_features": lambda: SceneFeaturesTask(run.task)}[run.task.kind]()


def build_loader(run: RunConfig, task: Task, rank: int, ranks: int) -> Loader:
    """The micro-batches of the run's data for one of ``ranks`` that read different samples."""
    stream = build_stream(run.data, task.fingerprints().get("image_tokenizer"), task.least_side, task.reads_text)
    return Loader(stream, run.data.loader, task.collate, run.train.micro_batch_size(ranks), run.seed, rank, ranks,
                  task.view)


def first_samples(stream: Stream) -> Iterator[Sample]:
    """Some samples of a run's data, to be looked at before it starts: few enough to be read in seconds."""
    until = time.monotonic() + _SURVEY_SECONDS
    for position in range(min(len(stream), _SURVEY_SAMPLES)):
        if time.monotonic() > until:
            return
        with suppress(BrokenSample):  # the loader counts and names it
            yield stream.sample(position, 0)


def spread_captions(stream: Stream, count: int) -> Iterator[list[str]]:
    """The captions of at most ``count`` samples, evenly spread over a run's data; samples that cannot be read are left
    out."""
    positions = np.unique(np.linspace(0, len(stream) - 1, min(count, len(stream))).astype("int64"))
    for position in progress(positions.tolist(), desc="captions of the corpus", unit="sample"):
        with suppress(BrokenSample):
            yield stream.sample(position, 0).captions


def build_trainer(run: RunConfig) -> Trainer:
    """Everything that a run needs, ready to :meth:`~vilg.engine.trainer.Trainer.fit`.

    What the ranks cannot do together is refused before the model is made; what is missing on one rank only (a file, a
    shard) is refused on all of them, or the others would wait for it.
    """
    run.train.check_parallel(run.distributed, ranks_of_launch())
    parallel = Parallel(run.distributed)
    admit(parallel, run.output_directory, configs.to_dict(run))
    task = together(parallel, lambda: build_task(run, parallel.making))
    loader = together(parallel, lambda: build_loader(run, task, parallel.topology.data_rank,
                                                     parallel.topology.data_ranks))
    if isinstance(task, BidirectionalTask) and parallel.rank == 0:
        task.survey(first_samples(loader.stream))
    if isinstance(task, SequenceLevelTask):  # on every rank: the reward is the same
        task.read_corpus(spread_captions(loader.stream, run.task.corpus))
    identity = {"config": configs.to_dict(run), "fingerprints": task.fingerprints()}
    return Trainer(task, loader, run.train, run.optim, parallel, run.output_directory, run.seed, run.name,
                   identity)


def planned_shape(run: RunConfig) -> BidirectionalConfig:
    """The model's shape, for planning. Raises ConfigError for a task that plans do not know."""
    if run.task.kind != "bidirectional":
        raise ConfigError(f"task.kind: plans are made for bidirectional runs, got {run.task.kind}")
    return run.task.model


def drawn_shape(source: str | Path, overrides: list[str]) -> BidirectionalConfig:
    """The shape of a model to draw with: of a run config (``overrides``: key=value), or of a released folder by its
    path or its name in ``model_zoo/``. Raises VilgError for what is neither, and for models that do not draw token by
    token."""
    if Path(source).suffix in (".yaml", ".yml"):
        return planned_shape(load_run(source, overrides))
    if overrides:
        raise ConfigError(f"--set changes a run config, and {source} is a model; leave it out")
    folder = release.find_model(source, "bidirectional")
    said, _ = release.describe(folder, "bidirectional")
    return configs.from_dict(BidirectionalConfig, said.get("model") or {}, f"{folder}: model")
