"""Table 7: twins that differ in the picture's loss alone, rows that mean what they say, resuming, the report."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from vilg import config, release
from vilg.app import pipeline
from vilg.errors import ConfigError, DataError
from vilg.evaluation import table7
from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig
from vilg.run import build
from vilg.tasks.bidirectional import BidirectionalTask
from vilg.tasks.end_to_end import EndToEndTask

ROOT = Path(__file__).resolve().parents[2]
SCENES = ["一个红色的圆形，左边是蓝色的方块，两个黄色的星星", "有没有绿色的三角形在右上角紫色心形圆环十字菱形青粉黑大小上面下面方中间角三颗和"]


@pytest.fixture(scope="module")
def values(released_model, tmp_path_factory):
    """A run whose vocabulary knows the characters of scenes' captions."""
    from vilg.tokenizers.text.vocabulary import build_vocab, vocab_text

    folder = tmp_path_factory.mktemp("words")
    vocabulary = vocab_text(build_vocab(SCENES, 400))
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    shape = dict(layers=1, width=16, heads=2, vocab_size=len(vocabulary.splitlines()), codebook_size=32,
                 text_length=40, rows=4, columns=4)
    return {"name": "small", "task": {
                "kind": "end_to_end", "model": shape, "vocabulary": str(folder), "preview_captions": 1,
                "image_tokenizer": str(released_model / "image_tokenizer"), "reconstruction_weight": 2.0,
                "loss": {"kind": "pixels", "perceptual": "none"}},
            "data": {"sources": [{"kind": "scenes", "count": 40, "size": 16, "captions": 1, "questions": 1}]},
            "train": {"steps": 2, "batch_size": 4, "preview_every": 0, "checkpoint_every": 1, "log_every": 1}}


@pytest.fixture(scope="module")
def network():
    paddle.seed(2)
    return SceneFeatures(SceneFeaturesConfig(image_size=16, channels=8, dim=8))


def test_the_arms_are_twins(values, tmp_path):
    run = config.from_dict(build.RunConfig, values)
    twins = {name: table7.arm(run, name, 5, tmp_path) for name in table7.ARMS}
    tasks = {name: build.build_task(twin) for name, twin in twins.items()}
    assert type(tasks["two_stage"]) is BidirectionalTask and type(tasks["end_to_end"]) is EndToEndTask
    first, second = (task.model.state_dict() for task in tasks.values())
    assert all(np.array_equal(value.numpy(), second[name].numpy()) for name, value in first.items())
    batches = []
    for name in table7.ARMS:
        loader = build.build_loader(twins[name], tasks[name], 0, 1)
        batches.append(next(iter(loader)))
        loader.close()
    first, second = (batch.parts() for batch in batches)
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    assert twins["two_stage"].train == twins["end_to_end"].train
    assert twins["two_stage"].optim == twins["end_to_end"].optim
    with pytest.raises(ConfigError, match="end_to_end"):
        table7.arm(twins["two_stage"], "two_stage", 0, tmp_path)


def test_the_tool_fills_resumes_and_reports(values, network, tmp_path):
    release.write(tmp_path / "network", "scene_features", network)
    (tmp_path / "small.yaml").write_text(config.to_yaml(config.from_dict(build.RunConfig, values)), encoding="utf-8")
    command = [sys.executable, "tools/table7.py", "--config", str(tmp_path / "small.yaml"), "--features",
               str(tmp_path / "network"), "--seeds", "0", "1", "--count", "4", "--output", str(tmp_path / "out"),
               "--report", str(tmp_path / "report")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "report" / "table7.json").read_text(encoding="utf-8"))
    for row in table7.ROWS:
        metrics = table7.METRICS if row[0] == "real" else table7.METRICS[:2]
        for metric in table7.METRICS:
            assert (f"{table7.key(row, metric)}.mean" in written) == (metric in metrics)
    assert written["seeds"] == [0, 1] and written["seconds"] > 0
    text = (tmp_path / "report" / "table7.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == 6 and "not comparable with Inception" in text and text in done.stdout
    assert Image.open(tmp_path / "report" / "images" / "table7.png").height > 6 * 16

    figures = [tmp_path / "out" / f"seed{seed}" / "figures.json" for seed in (0, 1)]
    figures[1].unlink()  # as if it had been stopped while it judged the second seed
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("seed*/*/model/model.safetensors"))]
    run = config.from_dict(build.RunConfig, values)
    again = table7.fill(run, [0, 1], tmp_path / "out", network, 4)
    for row in table7.ROWS:
        assert again.of(row, "satisfied")[0] == written[f"{table7.key(row, 'satisfied')}.mean"]
    assert len(before) == 4 and before == [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("seed*/*/model/model.safetensors"))]
    with pytest.raises(ConfigError, match="another config"):
        table7.fill(run, [0], tmp_path / "out", network, 5)

    end_to_end = pipeline.load(tmp_path / "out" / "seed0" / "end_to_end" / "model")
    texts = ["红色的圆形", "蓝色的方块"]
    tokens = table7.draw(end_to_end, texts, 3)
    for index, (text, picture) in enumerate(zip(texts, table7.reconstruct(end_to_end, texts, tokens))):
        drawn = end_to_end.text_to_image(text, seed=3 * 1_000_003 + index, path="end_to_end")[0][0]
        assert np.abs(np.asarray(drawn).astype(int) - picture).max() <= 1
    # What a text leaves open is drawn anew for each: the same text twice gives two pictures.
    twice = table7.draw(end_to_end, texts[:1] * 2, 3).numpy()
    assert (twice[0] != twice[1]).any()


def table(old, mixed, new):
    cells = {row: {"frechet": [0.0], "satisfied": [0.5]} for row in table7.ROWS}
    cells["two_stage", "two_stage"]["frechet"] = old
    cells["end_to_end", "two_stage"]["frechet"] = mixed
    cells["end_to_end", "end_to_end"]["frechet"] = new
    return table7.Table([0, 1, 2], cells)


@pytest.mark.parametrize("old, mixed, new, says", [
    ([5.0, 5.1, 4.9], [4.0] * 3, [3.0, 3.1, 2.9], ("end-to-end is ahead, beyond", "is found")),
    ([5.0, 6.0, 4.0], [4.9] * 3, [4.5, 5.5, 3.5], ("end-to-end is ahead, but within", "is found")),
    ([3.0, 3.1, 2.9], [4.0] * 3, [5.0, 5.1, 4.9], ("two-stage is ahead, beyond", "is not found")),
])
def test_findings_say_what_the_figures_say(old, mixed, new, says):
    ahead, order = table7.findings(table(old, mixed, new))
    assert says[0] in ahead and says[1] in order


def test_one_scene_is_refused(values, network, tmp_path):
    with pytest.raises(DataError, match="two scenes"):
        table7.fill(config.from_dict(build.RunConfig, values), [0], tmp_path, network, 1)
