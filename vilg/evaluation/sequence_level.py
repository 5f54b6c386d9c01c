"""What sequence-level training changes on held-out scenes: CIDEr of captions, the judge's score of drawn images, and
beside it the share that the scene reader, which judged nothing in training, finds as asked. Start and trained runs,
over several seeds."""
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from vilg import config as configs
from vilg.app.pipeline import Pipeline, load
from vilg.data.transforms import to_model
from vilg.data.worlds import scenes
from vilg.errors import ConfigError
from vilg.evaluation.table7 import claim, train
from vilg.metrics.captions.cider import cider
from vilg.metrics.captions.cut import characters
from vilg.metrics.captions.ngrams import count_ngrams
from vilg.run.build import RunConfig
from vilg.tasks.judges import Judge, read_judge


def compare(run: RunConfig, seeds: list[int], output: Path, count: int) -> Iterator[tuple[str, float]]:
    """Yield figures of ``count`` held-out scenes: ``start.NAME``, ``seedN.NAME`` and ``trained.NAME.mean`` and ``.sd``
    over seeds. A run that is not whole goes on from where it stopped. Raises ConfigError for another kind of run or
    one without a start."""
    if run.task.kind != "sequence_level" or not run.task.init_from:
        raise ConfigError("task: a sequence_level run with init_from is compared with its start; task.kind is "
                          f"{run.task.kind} and init_from {getattr(run.task, 'init_from', None)}")
    claim(output, "sequence_level", {"run": configs.to_dict(run)})
    before = figures(load(run.task.init_from), run, count)
    yield from ((f"start.{name}", value) for name, value in before.items())
    found: dict[str, list[float]] = {}
    for seed in seeds:
        values = configs.to_dict(run) | {"seed": seed, "output": str(output / f"seed{seed}")}
        values["train"] |= {"resume": "auto", "export": True}
        for name, value in figures(train(configs.from_dict(RunConfig, values, "the run")), run, count).items():
            found.setdefault(name, []).append(value)
            yield f"seed{seed}.{name}", value
    for name, values in found.items():
        yield f"trained.{name}.mean", statistics.fmean(values)
        yield f"trained.{name}.sd", statistics.stdev(values) if len(values) > 1 else 0.0


def figures(model: Pipeline, run: RunConfig, count: int) -> dict[str, float]:
    """The figures of one model, of the turns that the run has. Scenes, captions and drawing seeds are always the same,
    and the run's sampling draws."""
    truth = [scenes.sample_scene(index, "test") for index in range(count)]
    rng = np.random.default_rng(11)
    references = [scenes.captions(scene, rng) for scene in truth]
    made = {}
    if "captions" in run.task.turns:
        said = model.image_to_text([scenes.render(scene, model.image_tokenizer.image_size) for scene in truth])
        counted = [[count_ngrams(characters(text)) for text in given] for given in references]
        made["cider"] = float(cider([count_ngrams(characters(text)) for text in said], counted).clipped.mean())
        made["described"] = float(np.mean([scenes.describes(text, scene) for text, scene in zip(said, truth)]))
    if run.task.judge is not None:
        texts = [given[rng.integers(len(given))] for given in references]
        drawn = model.text_to_image(texts, num_images=1, seed=list(range(count)), **vars(run.drawing))
        images = [np.asarray(row[0]) for row in drawn]
        made["judge"] = _score(read_judge(run.task.judge, model.image_tokenizer), model, texts, images)
        made["satisfied"] = float(np.mean([scenes.satisfies(image, text) for image, text in zip(images, texts)]))
    return made


@paddle.no_grad()
def _score(judge: Judge, model: Pipeline, texts: list[str], images: list[np.ndarray]) -> float:
    """The judge's mean score of images uint8 [H, W, 3]: of their codes, each wholly one."""
    codes = model.image_tokenizer.encode(paddle.to_tensor(to_model(np.stack(images))))
    shares = paddle.nn.functional.one_hot(codes, model.image_tokenizer.codebook_size)
    scores = [judge.score(shares[start:start + 32], paddle.to_tensor(judge.read(texts[start:start + 32])))
              for start in range(0, len(texts), 32)]
    return float(paddle.concat(scores).mean())
