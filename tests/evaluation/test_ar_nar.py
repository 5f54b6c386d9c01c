"""AR against NAR: twins of equal weights, every row judged, resuming, the report, what cannot be compared."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg import config as configs
from vilg.errors import ConfigError
from vilg.evaluation import ar_nar, ar_nar_report
from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig
from vilg.run.build import RunConfig, build_task

SCENES = ["一个红色的圆形，左边是蓝色的方块，两个黄色的星星", "有没有绿色的三角形在右上角紫色心形圆环十字菱形青粉黑大小上面下面方中间角三颗和"]


@pytest.fixture(scope="module")
def run(released_model, tmp_path_factory):
    from vilg.tokenizers.text.vocabulary import build_vocab, vocab_text

    folder = tmp_path_factory.mktemp("words")
    vocabulary = vocab_text(build_vocab(SCENES, 400))
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    shape = dict(layers=2, width=16, heads=2, vocab_size=len(vocabulary.splitlines()), codebook_size=32,
                 text_length=40, rows=4, columns=4)
    return configs.from_dict(RunConfig, {
        "name": "small", "task": {"kind": "two_level", "model": shape, "vocabulary": str(folder),
                                  "image_tokenizer": str(released_model / "image_tokenizer")},
        "data": {"sources": [{"kind": "scenes", "count": 40, "size": 16, "captions": 1, "questions": 0}]},
        "train": {"steps": 2, "batch_size": 4, "preview_every": 0, "checkpoint_every": 1, "log_every": 1},
        "sampling": {"steps": 4, "guidance": 1.5}})


TABLE = ar_nar.ArNarConfig(seeds=[0, 1], count=3, best_count=2, steps=[1, 4], schedules=["cosine"],
                           choice_temperatures=[0.0, 4.5], batches=[1, 2], repeats=1, cost_steps=1)


def test_arms_start_from_the_same_weights_and_have_as_many(run, tmp_path):
    made = {name: ar_nar.arm(run, name, 3, "steps", 2, tmp_path) for name in ar_nar.ARMS}
    assert [made[name].task.kind for name in ar_nar.ARMS] == ["bidirectional", "bidirectional", "two_level"]
    assert [made[name].task.model.sparse for name in ar_nar.ARMS] == [True, False, True]
    assert len({made[name].drawing.guidance for name in ar_nar.ARMS}) == 1
    states = [{name.replace("begin_of_image", "mask_vector"): value.numpy()
               for name, value in build_task(one).model.state_dict().items()} for one in made.values()]
    for state in states[:2]:
        assert state.keys() == states[2].keys()
        assert all(np.array_equal(state[name], states[2][name]) for name in state)


def test_every_row_of_the_table_is_there_once():
    rows = ar_nar.rows_of(ar_nar.ArNarConfig())
    assert len(rows) == 63 and len({row.name for row in rows}) == 63
    assert sum(row.arm == "nar" and row.budget == "steps" for row in rows) == 30


def test_the_table_is_filled_written_and_taken_up_again(run, tmp_path, monkeypatch):
    network = SceneFeatures(SceneFeaturesConfig(image_size=16, channels=8, dim=8))
    network.eval()
    monkeypatch.setattr(ar_nar, "cpu_seconds_a_step",
                        lambda one, steps: 1.0 if one.task.kind == "bidirectional" else 0.5)
    rows, times = ar_nar.fill(run, TABLE, tmp_path, network)
    assert all(len(row.figures[metric]) == 2 for row in rows for metric in ar_nar.METRICS)
    spent = {name: len((tmp_path / "seed0" / name / "metrics.jsonl").read_text().splitlines())
             for name in ("nar_steps", "nar_cpu", "ar_dense_cpu")}
    assert spent == {"nar_steps": 2, "nar_cpu": 4, "ar_dense_cpu": 2}, "half the time a step is twice the steps"
    assert set(times) == {f"{arm}.{batch}.{kind}" for arm in ("ar_sparse.all", "ar_dense.all", "nar.1", "nar.4")
                          for batch in (1, 2) for kind in ("plain", "guided")}

    def refuse(*given):
        raise AssertionError("what is done was done again")

    for name in ("judge", "seconds", "cpu_seconds_a_step"):
        monkeypatch.setattr(ar_nar, name, refuse)
    again, same = ar_nar.fill(run, TABLE, tmp_path, network)
    assert [row.figures for row in again] == [row.figures for row in rows] and same == times
    ar_nar_report.write(rows, times, run, TABLE, tmp_path, tmp_path / "docs", "python tools/ar_nar.py")
    figures = json.loads((tmp_path / "docs" / "ar_nar.json").read_text(encoding="utf-8"))
    assert figures["nar.cpu.cosine.4.4.5.frechet.mean"] == pytest.approx(rows[-1].of("frechet")[0])
    text = (tmp_path / "docs" / "ar_nar.md").read_text(encoding="utf-8")
    assert text.count("\n| NAR | equal CPU time | cosine |") == 4 and "seeds 0, 1" in text
    with Image.open(tmp_path / "docs" / "images" / "ar_nar_samples.png") as sheet:
        assert sheet.height > len(rows) * 16


def test_processor_time_of_a_step_is_measured_over_a_whole_turn(run):
    values = configs.to_dict(run)
    values["task"]["image_to_text_every"] = 2
    assert 0 < ar_nar.cpu_seconds_a_step(configs.from_dict(RunConfig, values), 2) < 60


def test_what_cannot_be_compared_is_refused(run):
    values = configs.to_dict(run)
    with pytest.raises(ConfigError, match="16 are more than the 4 tokens"):
        small = values | {"task": values["task"] | {"model": values["task"]["model"] | {"rows": 2, "columns": 2}}}
        ar_nar.check(configs.from_dict(RunConfig, small), ar_nar.ArNarConfig())
    dense = values["task"]["model"] | {"features": "encoder", "feature_width": 8}
    with pytest.raises(ConfigError, match="task.model.features"):
        ar_nar.check(configs.from_dict(RunConfig, values | {"task": values["task"] | {"model": dense}}), TABLE)
    twin = ar_nar.arm(run, "ar_dense", 0, "steps", 2, Path("unused"))
    with pytest.raises(ConfigError, match="two_level run, got bidirectional"):
        ar_nar.check(twin, TABLE)
