"""Which views help: arms that differ in their losses alone, a table that is taken up again, what cannot be compared."""
import json
from pathlib import Path

import pytest

from vilg import config as configs
from vilg.errors import ConfigError
from vilg.evaluation import views
from vilg.run.build import RunConfig, build_task, load_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(styled_table):
    folder = styled_table.parent
    shape = {"image": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 8, "heads": 2},
             "text": {"vocab_size": 2226, "positions": 24, "layers": 1, "width": 8, "heads": 2, "dropout": 0.1}}
    return configs.from_dict(RunConfig, {
        "name": "small", "task": {"kind": "contrastive", "model": shape, "text_length": 20,
                                  "vocabulary": str(ROOT / "configs/ernie_vil/vocabulary")},
        "data": {"sources": [{"kind": "table", "path": str(styled_table), "twins": "concept"}]},
        "train": {"steps": 2, "batch_size": 4, "preview_every": 0, "log_every": 1}}), str(folder)


def test_arms_differ_in_their_losses_alone(run, tmp_path):
    arms = {name: views.arm(run[0], name, 3, tmp_path) for name in views.ARMS}
    weights = {name: [view for view, weight in one.task.loss.weights.items() if weight] for name, one in arms.items()}
    assert weights == {"caption": ["image_caption"], "image": ["image_caption", "image_image"],
                       "tags": ["image_caption", "image_tags"], "text": ["image_caption", "text_text"],
                       "all": ["image_caption", "image_image", "image_tags", "text_text"]}
    assert len({(one.seed, one.train.steps, one.train.batch_size) for one in arms.values()}) == 1
    assert len({str(one.output) for one in arms.values()}) == 5
    states = [build_task(one).model.state_dict() for one in (arms["caption"], arms["all"])]
    assert states[0].keys() == states[1].keys()


def test_the_table_is_filled_written_and_taken_up_again(run, tmp_path, monkeypatch):
    config, data = run
    split = {metric: 0.25 for metric in views.METRICS}
    judged = []

    def judge(folder, given):
        assert (folder / "model.yaml").is_file() and given == data
        judged.append(folder.parent.name)
        value = {"caption": 0.25, "image": 0.5, "tags": 0.25, "text": 0.125, "all": 0.5}[folder.parent.name]
        return {metric: value + 0.01 * len(judged) for metric in split} | {f"{one}_chance": 0.01 for one in split}

    monkeypatch.setattr(views, "judge", judge)
    table = views.fill(config, [0, 1], tmp_path / "out", data)
    assert judged == list(views.ARMS) * 2 and table.seconds > 0
    monkeypatch.setattr(views, "judge", None)
    monkeypatch.setattr(views, "build_trainer", None)
    again = views.fill(config, [0, 1], tmp_path / "out", data)
    assert again == table
    views.report(table, config, tmp_path / "docs", "python tools/views.py")
    text = (tmp_path / "docs/views.md").read_text(encoding="utf-8")
    assert "| + image–image | " in text and "helps, for every seed" in text and "harms, for every seed" in text
    figures = json.loads((tmp_path / "docs/views.json").read_text(encoding="utf-8"))
    assert figures["image.cells_t2i_r1.mean"] == pytest.approx(table.of("image", "cells_t2i_r1")[0])
    with pytest.raises(ConfigError, match="holds a table of another config"):
        views.fill(configs.from_dict(RunConfig, configs.to_dict(config) | {"name": "other"}), [0], tmp_path / "out",
                   data)


def test_a_view_that_seeds_disagree_on_is_said_to_be_undecided():
    values = {"caption": [0.2, 0.2], "image": [0.3, 0.1], "tags": [0.3, 0.4], "text": [0.1, 0.1], "all": [0.2, 0.2]}
    table = views.Table([0, 1], {name: {"m": each} for name, each in values.items()})
    said = views.findings(table, "m")
    assert "seeds do not agree" in said[0] and "helps" in said[1] and "harms" in said[2]
    assert "do not agree" in said[3] and "+0.150 (+0.100, +0.200)" in said[1]


def test_what_cannot_be_compared_is_refused(run, tmp_path):
    config, data = run
    values = configs.to_dict(config)
    values["task"]["loss"]["image_tags"] = 0.0
    with pytest.raises(ConfigError, match="task.loss.image_tags: is 0"):
        views.fill(configs.from_dict(RunConfig, values), [0], tmp_path, data)
    with pytest.raises(ConfigError, match="compared of a contrastive run, got bidirectional"):
        views.arm(load_run(ROOT / "configs/vilg/tiny.yaml", []), "all", 0, tmp_path)
    with pytest.raises(ConfigError, match="at least one"):
        views.fill(config, [], tmp_path, data)
