"""tools/evaluate.py for dual encoders, and benchmarks/rerank.py, with models that are loaded replaced."""
import importlib
import json
import logging
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg.app import pipeline
from vilg.data.worlds import scenes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, encoder, caplog):
    caplog.set_level(logging.ERROR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "load_any", lambda *_: encoder)

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/evaluate.py", *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "tools/evaluate.py"), run_name="__main__")
        output, error = capsys.readouterr()
        assert "Traceback" not in error
        return left.value.code, output, error.strip().splitlines()

    return go


def test_worlds(run):
    status, output, _ = run("retrieval", "--count", "20", "--json", "r.json")
    figures = json.loads(Path("r.json").read_text())
    assert status == 0 and figures["model"] == "untrained_3" and figures["task"] == "retrieval"
    assert {"scenes_t2i_r1", "scenes_t2i_chance", "scenes_unseen_i2t_r1", "calibration_error"} <= figures.keys()
    assert f"scenes_t2i_r1{' ' * 16}{figures['scenes_t2i_r1']:.4f}" in output


@pytest.fixture
def coco(tmp_path):
    from tests.data.benchmarks.test_retrieval_files import png, texts

    lines = [f"{text}\t{100 + number}\t{png(number)}\n" for number in range(12) for text in texts(number)]
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/test.tsv").write_text("".join(lines), encoding="utf-8")


def test_a_public_benchmark_and_the_score_of_its_predictions(run, coco, monkeypatch):
    options = ("retrieval", "--format", "coco-cn", "--data", "coco")
    assert run(*options, "--predictions", "p.jsonl", "--json", "r.json")[0] == 0
    figures = json.loads(Path("r.json").read_text())
    monkeypatch.setattr(pipeline, "load_any", None)
    assert run(*options, "--score", "p.jsonl", "--json", "s.json")[0] == 0
    again = json.loads(Path("s.json").read_text())
    assert again["t2i_r5"] == pytest.approx(figures["t2i_r5"]) and again["model"] == "p.jsonl"


def test_zero_shot(run):
    Path("data/test/001").mkdir(parents=True)
    Path("data/label_cn.txt").write_text("红色的圆形\n蓝色的方块\n", encoding="utf-8")
    Image.fromarray(scenes.render(scenes.sample_scene(0, "test"), 16)).save("data/test/001/a.png")
    status, output, _ = run("zero-shot", "--data", "data", "--json", "z.json")
    assert status == 0 and json.loads(Path("z.json").read_text())["chance"] == 0.5 and output.startswith("accuracy")


@pytest.mark.parametrize("arguments, sentence", [
    (["--format", "coco-cn", "--data", "nowhere"], "nowhere: holds neither test_imgs.tsv"),
    (["--format", "aic-icc"], "wants --data"),
    (["--predictions", "p.jsonl"], "--predictions and --score want it"),
    (["--data", "nowhere", "--count", "4"], "nowhere: holds no tables of styles"),
    (["--count", "0"], "at least 1")])
def test_bad_input_is_a_sentence(run, arguments, sentence):
    status, _, error = run("retrieval", *arguments)
    assert status == 2 and sentence in error[-1]


def test_a_model_that_draws_is_no_dual_encoder(run, monkeypatch, released_model):
    monkeypatch.undo()
    with pytest.raises(pipeline.CheckpointError, match="is no dual encoder, which compares texts and images, but Pip"):
        pipeline.load_encoder(released_model)


@pytest.fixture
def rerank(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("rerank")


def test_contestants_choose_by_their_own_scores(rerank):
    log_p, similarity = np.array([-3.0, -1.0, -1.2]), np.array([0.9, 0.0, 0.8])
    assert rerank.chosen(log_p, similarity) == {"single": 0, "p_text": 1, "dual_encoder": 0, "both": 2}


def test_shares_are_of_true_drawings(rerank):
    class Drawer:
        """Draws the scene truly as sample 3 alone, and likes sample 5 best; gives its best first."""

        def text_to_image(self, texts, num_images, seed, best_of):
            blank, rows = np.full([64, 64, 3], 250, np.uint8), []
            for one in seed:
                row = []
                for number in (5, 3, *(place for place in range(num_images) if place not in (3, 5))):
                    picture = scenes.render(scenes.sample_scene(one, "test")) if number == 3 else blank
                    image = Image.fromarray(picture)
                    image.info.update(sample=number, log_p_text=-1.0 if number == 5 else -2.0 - number)
                    row.append(image)
                rows.append(row)
            return rows

    class Judge:
        def similarity(self, texts, images):
            return np.array([[0.9 if image.std() > 1 else 0.01 for image in images]])

    assert rerank.shares(Drawer(), Judge(), "test", 5, 0) == {
        "test_single": 0, "test_p_text": 0, "test_dual_encoder": 1, "test_both": 1, "test_any": 1}
