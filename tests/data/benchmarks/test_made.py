"""Scenes in the files of the public benchmarks, by the tool that writes them."""
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg.data.benchmarks.aic_icc import read_aic_icc
from vilg.data.benchmarks.coco_cn import read_coco_cn
from vilg.data.benchmarks.fmiqa import read_fmiqa
from vilg.data.benchmarks.made import write_benchmark
from vilg.data.worlds import scenes
from vilg.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name, read, splits", [("aic-icc", read_aic_icc, ("train", "validation")),
                                                ("coco-cn", read_coco_cn, ("train", "test"))])
def test_captions_are_of_their_own_images(name, read, splits, tmp_path):
    write_benchmark(name, tmp_path / "made", train=6, held_out=3)
    further = {} if name == "aic-icc" else {"cut": False}
    found = [read(tmp_path / "made", split, **further) for split in splits]
    assert [len(part.paths) for part in found] == [6, 3] and not set(found[0].paths) & set(found[1].paths)
    for part in found:
        for key, path in part.paths.items():
            scene = scenes.read(np.asarray(Image.open(path)))
            assert len(part.references[key]) == 5
            assert all(scenes.describes(text, scene) for text in part.references[key])


def test_answers_are_right_about_their_images(tmp_path):
    write_benchmark("fmiqa", tmp_path / "made", train=4, held_out=3)
    train, held_out = (read_fmiqa(tmp_path / "made", split) for split in ("train", "val"))
    assert (len({one.image for one in train}), len({one.image for one in held_out})) == (4, 3)
    ids = [one.question_id for one in [*train, *held_out]]
    assert len(ids) == len(set(ids))
    for one in held_out:
        assert scenes.answer_is_right(one.question, one.answer, scenes.read(np.asarray(Image.open(one.image))))


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(ConfigError, match="holds something already"):
        write_benchmark("fmiqa", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_tool_writes_what_a_config_names(tmp_path, monkeypatch, capsys):
    arguments = ["--format", "aic-icc", "--output", str(tmp_path / "aic"), "--train", "3", "--held-out", "2"]
    monkeypatch.setattr(sys, "argv", ["prepare_benchmark.py", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "tools/prepare_benchmark.py"), run_name="__main__")
    assert left.value.code == 0 and "3 images to learn from and 2 to score" in capsys.readouterr().out
    assert len(read_aic_icc(tmp_path / "aic", "validation").paths) == 2
