"""Which views help a dual encoder (ERNIE-ViL 2.0, arXiv 2209.15270): captions alone, with one other view, and all.

Arms differ in the weights of their losses alone: the same initial weights, samples and captions by seed, and as many of
them. Each is judged on the styles world's held-out cells, style and concepts.
"""
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vilg import config as configs
from vilg.app.pipeline import load_encoder
from vilg.engine.safety.guards import TrainingStopped
from vilg.errors import ConfigError
from vilg.evaluation.report import write_json
from vilg.evaluation.retrieval import HELD_OUT, styles_searches
from vilg.evaluation.table7 import claim
from vilg.metrics.retrieval import Standing
from vilg.run.build import RunConfig, build_trainer

OTHERS = ("image_image", "image_tags", "text_text")
ARMS: dict[str, tuple[str, ...]] = {"caption": (), "image": OTHERS[:1], "tags": OTHERS[1:2], "text": OTHERS[2:],
                                    "all": OTHERS}
"""The views that an arm compares beside images and captions."""
NAMES = {"caption": "captions alone", "image": "+ image–image", "tags": "+ tags", "text": "+ text–text", "all": "all"}
KS = (1, 10)
METRICS = tuple(f"{split}_{way}_r{k}" for split in HELD_OUT.values() for way in ("t2i", "i2t") for k in KS)


@dataclass
class Table:
    """``figures[arm][metric]`` holds one value a seed; ``chance`` the same of a model that knows nothing; ``seconds``
    is the processor time of all training."""

    seeds: list[int]
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, arm: str, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over seeds; the latter is 0 for one seed."""
        values = self.figures[arm][metric]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def gains(self, arm: str, metric: str) -> list[float]:
        """What an arm gains over captions alone, seed by seed."""
        return [value - base for value, base in zip(self.figures[arm][metric], self.figures["caption"][metric])]


def arm(run: RunConfig, name: str, seed: int, output: Path) -> RunConfig:
    """The run of one arm: the given one without the views that the arm leaves out."""
    if run.task.kind != "contrastive":
        raise ConfigError(f"task.kind: views are compared of a contrastive run, got {run.task.kind}")
    values = configs.to_dict(run)
    weights = values["task"]["loss"]
    absent = [view for view in ("image_caption", *OTHERS) if not weights[view]]
    if absent:
        raise ConfigError(f"task.loss.{absent[0]}: is 0, and arms that compare this view need its weight")
    weights |= {view: 0.0 for view in OTHERS if view not in ARMS[name]}
    values |= {"name": f"{run.name}_{name}_{seed}", "seed": seed, "output": str(output / f"seed{seed}" / name)}
    values["train"] |= {"resume": "auto", "export": True}
    return configs.from_dict(RunConfig, values, f"views, {name}")


def fill(run: RunConfig, seeds: Sequence[int], output: Path, data: str) -> Table:
    """Train and judge every arm for every seed, and gather the table; what an earlier call finished is kept.

    ``data``: the folder of the styles world. Raises ConfigError when ``output`` holds the table of another config.
    """
    if not seeds:
        raise ConfigError("seeds: a table needs at least one")
    for name in ARMS:
        arm(run, name, 0, output)  # refused before anything is trained
    claim(output, "views", {"run": configs.to_dict(run), "data": data})
    table = Table(list(seeds))
    for seed in seeds:
        for name in ARMS:
            one = arm(run, name, seed, output)
            seconds = train(one)
            kept = one.output_directory / "figures.json"
            if not kept.is_file():
                write_json(kept, judge(one.output_directory / "model", data), seed=seed)
            found = json.loads(kept.read_text(encoding="utf-8"))
            table.seconds += seconds
            for metric in METRICS:
                table.figures.setdefault(name, {}).setdefault(metric, []).append(found[metric])
                table.chance[metric] = found[f"{metric}_chance"]
    return table


def train(run: RunConfig) -> float:
    """Train one arm, or take up where it stopped; the processor seconds that all its calls took."""
    released, spent = run.output_directory / "model", run.output_directory / "cpu_seconds.json"
    before = json.loads(spent.read_text(encoding="utf-8")) if spent.is_file() else 0.0
    if (released / "model.yaml").is_file():
        return before
    start = time.process_time()
    summary = build_trainer(run).fit()
    before += time.process_time() - start
    spent.write_text(json.dumps(before), encoding="utf-8")
    if summary.stopped:
        raise TrainingStopped(f"stopped at step {summary.step} of {run.name}; the same command goes on from there")
    return before


def judge(folder: Path, data: str) -> dict[str, float]:
    """:data:`METRICS` of a released dual encoder on the styles world in ``data``, and each one's chance."""
    figures = {}
    for (split, way), searches in styles_searches(load_encoder(folder), data).items():
        standings = [search.standing() for search in searches]
        for k in KS:
            name = f"{HELD_OUT[split]}_{way}_r{k}"
            figures[name] = _over_queries(standings, [each.recall(k) for each in standings])
            figures[f"{name}_chance"] = _over_queries(standings, [each.chance(k) for each in standings])
    return figures


def _over_queries(standings: list[Standing], values: list[float]) -> float:
    counts = [len(each.total) for each in standings]
    return sum(count * value for count, value in zip(counts, values)) / sum(counts)


def findings(table: Table, metric: str) -> list[str]:
    """A sentence for every arm: does it gain over captions alone, in every seed or within the spread?"""
    sentences = []
    for name in list(ARMS)[1:]:
        gains = table.gains(name, metric)
        mean = statistics.fmean(gains)
        verdict = ("helps, for every seed" if min(gains) > 0 else "harms, for every seed" if max(gains) < 0 else
                   "is not told from captions alone: seeds do not agree")
        sentences.append(f"{NAMES[name]}: {mean:+.3f} ({', '.join(f'{gain:+.3f}' for gain in gains)}); {verdict}.")
    return sentences


def markdown(table: Table, run: RunConfig, command: str) -> str:
    """The table, what it says, and how it came to be."""
    samples = run.train.steps * run.train.batch_size
    seeds = ", ".join(map(str, table.seeds))
    lines = ["# Which views help", "",
             "ERNIE-ViL 2.0's ablation (arXiv 2209.15270) on this project's styles: captions alone, with one other "
             f"view each, and all.\nEvery run sees {samples} samples as an image and its caption; the other views come "
             "on top, and cost time. All arms are far from trained: they are compared in how fast they learn.", "",
             "![text to image by arm](images/views.png)", ""]
    for way, title in (("t2i", "texts look for images"), ("i2t", "images look for texts")):
        columns = [f"{split}_{way}_r{k}" for split in HELD_OUT.values() for k in KS]
        lines += [f"| {title} | {' | '.join(column.replace('_' + way, '') for column in columns)} |",
                  "|" + "---|" * (1 + len(columns))]
        for name in ARMS:
            cells = ["{:.3f} ± {:.3f}".format(*table.of(name, column)) for column in columns]
            lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
        lines += [f"| chance | {' | '.join(f'{table.chance[column]:.3f}' for column in columns)} |", ""]
    lines += ["Gain over captions alone in `cells_t2i_r10`, by seed:", "",
              *(f"- {sentence}" for sentence in findings(table, "cells_t2i_r10")), "",
              f"Mean ± standard deviation over seeds {seeds}. {table.seconds / 60:.0f} minutes of processor time in "
              f"all; `{command}`.", "What a split and a way are: [search.md](search.md#measure-one)."]
    return "\n".join(lines) + "\n"


def report(table: Table, run: RunConfig, folder: Path, command: str) -> None:
    """Write ``views.md``, ``views.json`` and, where matplotlib is installed, ``images/views.png`` to ``folder``."""
    figures: dict[str, Any] = {}
    for name in ARMS:
        for metric in METRICS:
            figures[f"{name}.{metric}.mean"], figures[f"{name}.{metric}.std"] = table.of(name, metric)
    figures |= {f"chance.{metric}": value for metric, value in table.chance.items()}
    write_json(folder / "views.json", figures, seeds=table.seeds, cpu_seconds=table.seconds, command=command,
               config=configs.to_dict(run))
    (folder / "views.md").write_text(markdown(table, run, command), encoding="utf-8")
    (folder / "images").mkdir(exist_ok=True)
    _plot(table, folder / "images" / "views.png")


def _plot(table: Table, path: Path) -> None:
    """Recall at 10 by arm, a panel a split, both ways; bars are deviations over seeds, crosses the seeds."""
    try:
        from matplotlib import figure
    except ImportError:
        return
    drawing = figure.Figure(figsize=(12, 3.6), layout="constrained")
    for split, panel in zip(HELD_OUT.values(), drawing.subplots(1, len(HELD_OUT))):
        for shift, way in ((-0.2, "t2i"), (0.2, "i2t")):
            metric = f"{split}_{way}_r10"
            places = [place + shift for place in range(len(ARMS))]
            means, spreads = zip(*(table.of(name, metric) for name in ARMS))
            panel.bar(places, means, 0.38, yerr=spreads, capsize=3, alpha=0.7, label=way)
            for place, name in zip(places, ARMS):
                values = table.figures[name][metric]
                panel.plot([place] * len(values), values, "kx", markersize=4)
        panel.axhline(table.chance[f"{split}_t2i_r10"], color="grey", linestyle=":", label="chance")
        panel.set_xticks(range(len(ARMS)), list(ARMS))
        panel.set(title=f"{split}, recall at 10")
    drawing.axes[0].legend(fontsize="small")
    drawing.savefig(path, dpi=120)
