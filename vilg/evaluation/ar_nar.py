"""Drawing token by token against mask-predict, on equal terms: the same seed's weights, data, parameters and steps, and
again as much processor time, since AR learns from every token of a step and NAR from the masked ones only.

An arm is trained for a seed under a budget (``steps`` or ``cpu``) and judged with each of its decoders: AR has one, NAR
one for every schedule, number of steps and choice temperature. Seconds an image depend on the arm, its steps, the batch
and guidance, so they are measured once a seed and not under every row.
"""
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image

from vilg import config as configs
from vilg.app.pipeline import Pipeline
from vilg.data.worlds import scenes
from vilg.errors import ConfigError, DataError
from vilg.evaluation.report import write_json
from vilg.evaluation.table7 import claim, train
from vilg.generation.sampling import DrawingConfig
from vilg.metrics.frechet import frechet_distance, gaussian
from vilg.models.bidirectional import BidirectionalConfig
from vilg.models.scene_features import SceneFeatures
from vilg.progress import progress
from vilg.run.build import RunConfig, build_loader, build_task
from vilg.tasks.bidirectional import BidirectionalTaskConfig

ARMS = {"ar_sparse": "AR, sparse", "ar_dense": "AR, dense", "nar": "NAR"}
BUDGETS = {"steps": "equal steps", "cpu": "equal CPU time"}
METRICS = ("satisfied", "satisfied_unseen", "best_of_8", "frechet")
SAMPLES, BEST_OF = 8, 8


@configs.configclass
class ArNarConfig:
    """What the table holds: ``seeds``, ``count`` held-out scenes a row and split, of the first ``best_count`` of which
    eight images are drawn, NAR's decoders, all of ``schedules`` × ``steps`` × ``choice_temperatures``, and ``batches``
    that are timed, ``repeats`` times each. A step's processor time is that of ``cost_steps``."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    count: int = 32
    best_count: int = 8
    schedules: list[str] = field(default_factory=lambda: ["linear", "cosine"])
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    choice_temperatures: list[float] = field(default_factory=lambda: [0.0, 1.0, 4.5])
    batches: list[int] = field(default_factory=lambda: [1, 8, 32])
    repeats: int = 3
    cost_steps: int = 10

    def __post_init__(self) -> None:
        if self.count < 2 or not self.seeds or min(self.repeats, self.cost_steps, self.best_count, *self.batches) < 1:
            raise ValueError("count is at least 2, seeds at least one, and best_count, repeats, cost_steps and batches "
                             "at least 1")


@dataclass
class Row:
    """One line: an arm under a budget with a decoder (empty for AR), and its figures, one value a seed."""

    arm: str
    budget: str
    decoder: dict[str, Any]
    figures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The row in the JSON file."""
        return ".".join([self.arm, self.budget, *map(str, self.decoder.values())])

    def of(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over seeds; the latter is 0 for one seed."""
        values = self.figures[metric]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def rows_of(config: ArNarConfig) -> list[Row]:
    """All lines, without figures. Under equal CPU time the first arm is what it is under equal steps."""
    decoders = [{"schedule": schedule, "steps": steps, "choice_temperature": choice}
                for schedule in config.schedules for steps in config.steps for choice in config.choice_temperatures]
    return [Row(arm, budget, decoder) for budget in BUDGETS for arm in ARMS if (arm, budget) != ("ar_sparse", "cpu")
            for decoder in (decoders if arm == "nar" else [{}])]


def check(run: RunConfig, config: ArNarConfig) -> None:
    """Refuse what cannot be compared on equal terms. Raises ConfigError naming the key."""
    if run.task.kind != "two_level":
        raise ConfigError(f"task.kind: AR is compared with a two_level run, got {run.task.kind}")
    if run.task.model.features != "codes":
        raise ConfigError("task.model.features: is codes here, so that all arms have the same parameters, not "
                          f"{run.task.model.features}")
    tokens = run.task.model.layout.image
    if max(config.steps) > tokens:
        raise ConfigError(f"steps: {max(config.steps)} are more than the {tokens} tokens of task.model's grid")


def arm(run: RunConfig, name: str, seed: int, budget: str, steps: int, output: Path) -> RunConfig:
    """The run of one arm. AR arms lack what masks alone have, and sample as freely, under the same guidance."""
    values = configs.to_dict(run)
    values |= {"name": f"{run.name}_{name}_{budget}_{seed}", "seed": seed,
               "output": str(output / f"seed{seed}" / f"{name}_{budget}")}
    values["train"] |= {"resume": "auto", "export": True, "steps": steps}
    if name != "nar":
        keep = BidirectionalTaskConfig.__dataclass_fields__, BidirectionalConfig.__dataclass_fields__
        task = {key: value for key, value in values["task"].items() if key in keep[0]} | {"kind": "bidirectional"}
        shape = {key: value for key, value in values["task"]["model"].items() if key in keep[1]}
        values["task"] = task | {"model": shape | {"sparse": name == "ar_sparse"}}
        values["sampling"] = {key: values["sampling"][key] for key in DrawingConfig.__dataclass_fields__}
    return configs.from_dict(RunConfig, values, f"AR against NAR, {name}")


def cpu_seconds_a_step(run: RunConfig, steps: int) -> float:
    """Median processor time of forward and backward of a training step; one that makes things for the first time goes
    before. An alternating run's step is the mean over a whole turn of its tasks."""
    task = build_task(run)
    loader = build_loader(run, task, 0, 1)
    turn = max(1, getattr(run.task, "image_to_text_every", 0))
    batches, spent = iter(loader), []
    for number in range((steps + 1) * turn):
        batch = next(batches).map(paddle.to_tensor)
        start = time.process_time()
        for phase in task.phases:
            phase.module(task.prepare(batch), number).loss.backward()
        spent.append(time.process_time() - start)
        for phase in task.phases:
            phase.module.clear_gradients()
    loader.close()
    turns = np.array(spent).reshape(-1, turn)  # [steps + 1, turn]
    return float(np.median(turns[1:].mean(axis=1)))


def fill(run: RunConfig, config: ArNarConfig, output: Path, network: SceneFeatures
         ) -> tuple[list[Row], dict[str, float]]:
    """Train and judge what is not yet done in ``output``; the rows, and seconds an image by
    ``arm.steps.batch.guidance``. Raises ConfigError when the folder holds the table of another config."""
    check(run, config)
    claim(output, "ar_nar", {"run": configs.to_dict(run), "table": configs.to_dict(config)})
    costs = _kept(output / "costs.json", _costs, run, config, output)
    rows, times = rows_of(config), {}
    for seed in config.seeds:
        for name, budget in dict.fromkeys((row.arm, row.budget) for row in rows):
            steps = run.train.steps
            if budget == "cpu":
                steps = max(1, round(steps * costs["ar_sparse"] / costs[name]))
            one = arm(run, name, seed, budget, steps, output)
            model = train(one)
            mine = [row for row in rows if (row.arm, row.budget) == (name, budget)]
            for row in progress(mine, desc=one.name, unit="row"):
                found = _kept(one.output_directory / f"{row.name}.json", judge, model, row, network, config, seed,
                              one.output_directory)
                for metric in METRICS:
                    row.figures.setdefault(metric, []).append(found[metric])
            if budget == "steps" and seed == config.seeds[0]:
                times |= _kept(one.output_directory / "seconds.json", seconds, model, name, config)
    return rows, times


def judge(model: Pipeline, row: Row, network: SceneFeatures, config: ArNarConfig, seed: int,
          folder: Path) -> dict[str, float]:
    """A row's figures for one seed; writes the first images beside them. Scenes and captions are the same for every
    row and seed, so that the spread is that of training and drawing."""
    figures, size = {}, model.image_tokenizer.image_size
    for split, suffix in (("test", ""), ("unseen", "_unseen")):
        truth = [scenes.sample_scene(index, split) for index in range(config.count)]
        rng = np.random.default_rng(7)
        texts = [given[rng.integers(len(given))] for given in (scenes.captions(scene, rng) for scene in truth)]
        seeds = [seed * 1_000_003 + index for index in range(config.count)]
        many = config.best_count if split == "test" else 0  # captions with several images
        drawn = []
        for part, each in ((slice(many), BEST_OF), (slice(many, None), 1)):
            if texts[part]:
                drawn += model.text_to_image(texts[part], num_images=each, seed=seeds[part], **row.decoder)
        pixels = [[np.asarray(image) for image in images] for images in drawn]
        right = [[scenes.satisfies(one, text) for one in images] for images, text in zip(pixels, texts)]
        figures[f"satisfied{suffix}"] = float(np.mean([each[0] for each in right]))
        if split == "test":
            best = [int(np.argmax(model.rank(text, images)[0])) for text, images in zip(texts[:many], pixels)]
            figures["best_of_8"] = float(np.mean([each[pick] for each, pick in zip(right, best)]))
            real = gaussian(network.of([scenes.render(scene, size) for scene in truth]))
            figures["frechet"] = frechet_distance(real, gaussian(network.of([images[0] for images in pixels])))
            strip = np.concatenate([images[0] for images in pixels[:SAMPLES]], axis=1)
            Image.fromarray(strip).save(folder / f"{row.name}.png")
    return figures


def seconds(model: Pipeline, name: str, config: ArNarConfig) -> dict[str, float]:
    """Seconds an image, the median of repeats after one to warm up, by ``arm.steps.batch.guidance``."""
    rng, found = np.random.default_rng(3), {}
    texts = [scenes.captions(scenes.sample_scene(index, "test"), rng)[0] for index in range(max(config.batches))]
    for steps in config.steps if name == "nar" else [0]:
        given = {"steps": steps} if steps else {}
        for batch in config.batches:
            for guidance in (1.0, 2.0):
                taken = []
                for _ in range(config.repeats + 1):
                    start = time.perf_counter()
                    model.text_to_image(texts[:batch], guidance=guidance, **given)
                    taken.append((time.perf_counter() - start) / batch)
                found[f"{name}.{steps or 'all'}.{batch}.{'plain' if guidance == 1 else 'guided'}"] = (
                    statistics.median(taken[1:]))
    return found


def _costs(run: RunConfig, config: ArNarConfig, output: Path) -> dict[str, float]:
    return {name: cpu_seconds_a_step(arm(run, name, 0, "steps", run.train.steps, output), config.cost_steps)
            for name in ARMS}


def _kept(path: Path, make: Callable[..., dict[str, float]], *given: Any) -> dict[str, float]:
    """The figures in ``path``, made of ``given`` when they are not there yet."""
    if not path.is_file():
        write_json(path, make(*given))
    try:
        return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items()
                if isinstance(value, float)}
    except ValueError:
        raise DataError(f"{path}: is not whole; delete it, and the same command makes it again") from None
