"""The paper's Table 7 on the data of this project: {two-stage, end-to-end} generator × {two-stage, end-to-end}
reconstructor, and both reconstructors on the tokens of real pictures.

A row is tokens and what turns them into a picture. The two-stage reconstructor looks them up and decodes them by the
image tokenizer; the end-to-end one feeds them to the end-to-end generator and reconstructs its hidden vectors. So both
take the tokens of either generator, or of a real picture, and for the end-to-end generator's own tokens the picture is
the one that it draws itself.
"""
import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image

from vilg import config as configs
from vilg.app import sheet
from vilg.app.pipeline import DECODE_ROWS, Pipeline, load
from vilg.data.worlds import scenes
from vilg.engine.safety.guards import TrainingStopped
from vilg.errors import ConfigError, DataError
from vilg.evaluation.report import write_json
from vilg.generation.autoregressive import generate_images
from vilg.metrics.frechet import frechet_distance, gaussian
from vilg.metrics.pictures import psnr, ssim
from vilg.models.end_to_end import token_vectors
from vilg.models.scene_features import SceneFeatures
from vilg.run.build import RunConfig, build_trainer
from vilg.tasks.bidirectional import BidirectionalTaskConfig

ARMS = ("two_stage", "end_to_end")
# (whose tokens, whose reconstructor), in the order of the paper's table.
ROWS = (("two_stage", "two_stage"), ("two_stage", "end_to_end"), ("end_to_end", "two_stage"),
        ("end_to_end", "end_to_end"), ("real", "two_stage"), ("real", "end_to_end"))
METRICS = ("frechet", "satisfied", "psnr", "ssim")
NAMES = {"two_stage": "two-stage", "end_to_end": "end-to-end", "real": "real picture"}
SAMPLES = 8


@dataclass
class Table:
    """``cells[row][metric]`` holds one value a seed; ``seconds`` is the wall time of all seeds."""

    seeds: list[int]
    cells: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, row: tuple[str, str], metric: str) -> tuple[float, float]:
        """Mean and (sample) standard deviation over seeds; the latter is 0 for one seed."""
        values = np.array(self.cells[row][metric])
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def arm(run: RunConfig, name: str, seed: int, output: Path) -> RunConfig:
    """The run of one arm: the given end-to-end run, or its two-stage twin of the same seed, data and steps."""
    if run.task.kind != "end_to_end":
        raise ConfigError(f"task.kind: table 7 compares an end_to_end run with its two-stage twin, got {run.task.kind}")
    values = configs.to_dict(run)
    values |= {"name": f"{run.name}_{name}_{seed}", "seed": seed, "output": str(output / f"seed{seed}" / name)}
    values["train"] |= {"resume": "auto", "export": True}
    if name == "two_stage":
        shared = {entry.name for entry in dataclasses.fields(BidirectionalTaskConfig)}
        task = {key: value for key, value in values["task"].items() if key in shared}
        values["task"] = task | {"kind": "bidirectional"}
    return configs.from_dict(RunConfig, values, f"table 7, {name}")


def fill(run: RunConfig, seeds: list[int], output: Path, network: SceneFeatures, count: int) -> Table:
    """Train and judge both arms for every seed and gather the table; what an earlier call finished is kept.

    ``count`` held-out scenes are drawn a seed. Raises ConfigError when ``output`` holds the table of another config.
    """
    if count < 2 or not seeds:
        raise DataError(f"table 7 needs at least two scenes and one seed, got {count} and {len(seeds)}")
    claim(output, "table7", {"run": configs.to_dict(run), "count": count})
    table = Table(seeds)
    for seed in seeds:
        done = output / f"seed{seed}" / "figures.json"
        if not done.is_file():
            started = time.monotonic()
            arms = {name: train(arm(run, name, seed, output)) for name in ARMS}
            figures = judge(*arms.values(), network, count, seed, output / f"seed{seed}" / "samples")
            write_json(done, {**figures, "seconds": time.monotonic() - started}, seed=seed)
        figures = json.loads(done.read_text(encoding="utf-8"))
        table.seconds += figures["seconds"]
        for row in ROWS:
            for metric in METRICS:
                if key(row, metric) in figures:
                    table.cells.setdefault(row, {}).setdefault(metric, []).append(figures[key(row, metric)])
    return table


def train(run: RunConfig) -> Pipeline:
    """Train one arm, or take up where it stopped, and load what it exported."""
    released = run.output_directory / "model"
    if not (released / "model.yaml").is_file():
        summary = build_trainer(run).fit()
        if summary.stopped:
            raise TrainingStopped(f"stopped at step {summary.step} of {run.name}; the same command goes on from there")
    return load(released)


def judge(two_stage: Pipeline, end_to_end: Pipeline, network: SceneFeatures, count: int, seed: int,
          samples: Path) -> dict[str, float]:
    """The figures of all six rows, by :func:`key`; writes the first pictures of each row to ``samples``.

    Scenes and captions are the same for every seed, so that the spread over seeds is that of training and drawing.
    """
    truth = [scenes.sample_scene(index, "test") for index in range(count)]
    rng = np.random.default_rng(7)
    texts = [given[rng.integers(len(given))] for given in (scenes.captions(scene, rng) for scene in truth)]
    real = [scenes.render(scene, end_to_end.image_tokenizer.image_size) for scene in truth]
    reference = gaussian(network.of(real))
    tokens = {"two_stage": draw(two_stage, texts, seed), "end_to_end": draw(end_to_end, texts, seed),
              "real": end_to_end.encode(real)}
    figures = {}
    for row in ROWS:
        source, reconstructor = row
        pictures = (two_stage.decode(tokens[source]) if reconstructor == "two_stage"
                    else reconstruct(end_to_end, texts, tokens[source]))
        figures[key(row, "frechet")] = frechet_distance(reference, gaussian(network.of(pictures)))
        figures[key(row, "satisfied")] = float(np.mean([scenes.satisfies(*pair) for pair in zip(pictures, texts)]))
        if source == "real":
            figures[key(row, "psnr")] = float(np.mean([psnr(*pair) for pair in zip(real, pictures)]))
            figures[key(row, "ssim")] = float(np.mean([ssim(*pair) for pair in zip(real, pictures)]))
        _save_strip(pictures[:SAMPLES], samples / f"{source}-{reconstructor}.png")
    return figures


def draw(pipeline: Pipeline, texts: list[str], seed: int) -> paddle.Tensor:
    """One picture's tokens [N, n] for every text, by the model's own sampling settings.

    Each text has random numbers of its own: with the same ones all pictures would share what the text leaves open,
    their background above all, and the set would be further from the real one than any single picture.
    """
    parts, done = [], 0
    with paddle.no_grad():
        for ids, length in _prompts(pipeline, texts):
            seeds = [seed * 1_000_003 + done + row for row in range(ids.shape[0])]
            parts.append(generate_images(pipeline.model, ids, length, seeds=seeds, sampling=pipeline.sampling).codes)
            done += ids.shape[0]
    return paddle.concat(parts)


def reconstruct(pipeline: Pipeline, texts: list[str], tokens: paddle.Tensor) -> list[np.ndarray]:
    """The end-to-end pictures of tokens [N, n] and the texts they are for, whoever drew them."""
    pictures = []
    with paddle.no_grad():
        for number, (ids, length) in enumerate(_prompts(pipeline, texts)):
            part = tokens[number * DECODE_ROWS:(number + 1) * DECODE_ROWS]
            hidden = token_vectors(pipeline.model, pipeline.reconstructor, ids, length, part)
            pictures += pipeline.decode_hidden(hidden, part)
    return pictures


def key(row: tuple[str, str], metric: str) -> str:
    """The name of one cell in the JSON files: ``<tokens>.<reconstructor>.<metric>``."""
    return f"{row[0]}.{row[1]}.{metric}"


def markdown(table: Table, count: int, command: str) -> str:
    """The table, what it says about the paper's claims, and how it came to be."""
    lines = ["| tokens of | reconstructor | Fréchet distance ↓ | caption satisfied ↑ | PSNR ↑ | SSIM ↑ |",
             "|---|---|---|---|---|---|"]
    for row in ROWS:
        cells = [_cell(*table.of(row, metric), digits) if metric in table.cells[row] else "–"
                 for metric, digits in zip(METRICS, (3, 3, 2, 3))]
        lines.append(f"| {NAMES[row[0]]} | {NAMES[row[1]]} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, table.seeds))
    lines += ["", *(f"- {sentence}" for sentence in findings(table)), "",
              f"Mean ± standard deviation over seeds {seeds}; {count} held-out scenes a seed; "
              f"{table.seconds / 60:.0f} minutes in all; `{command}`. The Fréchet distance is taken in the features of "
              "a small network that was trained on scenes: it is not comparable with Inception FID."]
    return "\n".join(lines) + "\n"


def findings(table: Table) -> list[str]:
    """Whether the figures bear out the paper: end-to-end ahead beyond the spread of seeds, and the order of the four
    combinations (both end-to-end < end-to-end generator alone < both two-stage)."""
    (old, old_spread), (new, new_spread) = (table.of((name, name), "frechet") for name in ARMS)
    apart = abs(old - new) > old_spread + new_spread
    first = "end-to-end" if new < old else "two-stage"
    verdict = f"{first} is ahead, {'beyond' if apart else 'but within'} the spread of seeds"
    mixed = table.of(("end_to_end", "two_stage"), "frechet")[0]
    order = "is" if new < mixed < old else "is not"
    return [f"End-to-end {_cell(new, new_spread, 3)} against two-stage {_cell(old, old_spread, 3)}: {verdict}.",
            f"The order of the paper (both end-to-end < end-to-end generator with two-stage reconstructor < both "
            f"two-stage) {order} found: {new:.3f}, {mixed:.3f}, {old:.3f}."]


def report(table: Table, run: RunConfig, output: Path, folder: Path, count: int, command: str) -> None:
    """Write ``table7.md``, ``table7.json`` and ``images/table7.png`` to ``folder``."""
    figures: dict[str, Any] = {}
    for row in ROWS:
        for metric in table.cells[row]:
            mean, spread = table.of(row, metric)
            figures |= {f"{key(row, metric)}.mean": mean, f"{key(row, metric)}.std": spread}
    write_json(folder / "table7.json", figures, seeds=table.seeds, count=count, seconds=table.seconds, command=command,
               config=configs.to_dict(run))
    (folder / "table7.md").write_text(markdown(table, count, command), encoding="utf-8")
    strips = output / f"seed{table.seeds[0]}" / "samples"
    rows = [(f"{NAMES[row[0]]} tokens\n{NAMES[row[1]]} reconstructor", _read_strip(strips / f"{row[0]}-{row[1]}.png"))
            for row in ROWS]
    (folder / "images").mkdir(exist_ok=True)
    sheet.table(rows, scale=1).save(folder / "images" / "table7.png")


def claim(output: Path, name: str, content: dict[str, Any]) -> None:
    """Write down in ``output`` what a table called ``name`` is of, so that the same command goes on with it. Raises
    ConfigError when the folder holds one of another config."""
    path = output / f"{name}_config.json"
    text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{output}: holds a table of another config; choose another --output, or delete it")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _prompts(pipeline: Pipeline, texts: list[str]):
    batch = pipeline.text_tokenizer.encode_prompts(texts, pipeline.model.config.text_length, strict=True)
    for start in range(0, len(texts), DECODE_ROWS):
        part = slice(start, start + DECODE_ROWS)
        yield paddle.to_tensor(batch.ids[part]), paddle.to_tensor(batch.length[part])


def _cell(mean: float, spread: float, digits: int) -> str:
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _save_strip(pictures: list[np.ndarray], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(pictures, axis=1)).save(path)


def _read_strip(path: Path) -> list[Image.Image]:
    strip = Image.open(path, formats=["PNG"]).convert("RGB")
    side = strip.height
    return [strip.crop((left, 0, left + side, side)) for left in range(0, strip.width, side)]
