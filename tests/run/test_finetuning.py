"""A person's folder, from what is wrong with it to a model of its own."""
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg.app.pipeline import load
from vilg.errors import CheckpointError, ConfigError, DataError
from vilg.run.finetuning import folder as folders
from vilg.run.finetuning import page
from vilg.run.finetuning.recipe import RecipeConfig, run_recipe

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"红色": (220, 30, 30), "蓝色": (30, 30, 220), "金色": (230, 190, 40), "灰色": (120, 120, 120),
           "绿色": (20, 160, 60)}
PLACES = {"左边": (0, 0), "右边": (20, 0), "下边": (10, 20)}


def fill(folder, count, text=None):
    """Squares of a colour in a place, with captions of both; JPEG and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        colour, place = list(COLOURS)[number % 5], list(PLACES)[number % 3]
        image = np.full([40, 40, 3], 255, np.uint8)
        x, y = PLACES[place]
        image[y:y + 20, x:x + 20] = COLOURS[colour]
        image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype("uint8")
        Image.fromarray(image).save(folder / f"{number:03d}.{'jpg' if number % 2 else 'png'}")
        (folder / f"{number:03d}.txt").write_text(text or f"{place}有{colour}的方块", encoding="utf-8")
    return folder


def test_a_tenth_is_held_out_and_stays_the_same(tmp_path):
    looked = folders.look(fill(tmp_path / "a", 60), 16)
    again = folders.look(tmp_path / "a", 16)
    assert (len(looked.train), len(looked.held)) == (54, 6)
    assert [sample.key for sample in looked.held] == [sample.key for sample in again.held]
    assert not {sample.key for sample in looked.held} & {sample.key for sample in looked.train}
    assert looked.train[0].image.shape == (16, 16, 3)
    folders.write_tables(looked, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["captions"] for row in rows] == [list(sample.captions) for sample in looked.train]
    for row, sample in zip(rows, looked.train):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / row["picture"])), sample.image)


def test_too_few_pictures_are_said(tmp_path):
    with pytest.raises(DataError, match="3 pictures with captions are too few to learn from; bring at least 20"):
        folders.look(fill(tmp_path / "a", 3), 16)


def test_one_caption_for_all_is_said(tmp_path):
    with pytest.raises(DataError, match="30 pictures have 1 captions in all, such as '一张图'"):
        folders.look(fill(tmp_path / "a", 30, "一张图"), 16)


def test_a_caption_of_most_is_warned_of(tmp_path, caplog):
    fill(tmp_path / "a", 40)
    for number in range(25):
        (tmp_path / f"a/{number:03d}.txt").write_text("一张图", encoding="utf-8")
    folders.look(tmp_path / "a", 16)
    assert "25 of 40 pictures have the caption 一张图" in caplog.text


def test_damaged_pictures_are_left_out_or_refused(tmp_path):
    fill(tmp_path / "a", 40)
    for number in range(5):
        (tmp_path / f"a/{number:03d}.{'jpg' if number % 2 else 'png'}").write_bytes(b"not a picture")
    looked = folders.look(tmp_path / "a", 16)
    assert len(looked.train) + len(looked.held) == 35 and "5" in looked.broken
    for path in (tmp_path / "a").glob("*.[jp]*"):
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError):
        folders.look(tmp_path / "a", 16)


@pytest.mark.parametrize("settings", [{"minutes": 0}, {"minutes": float("nan")}, {"steps": 0}, {"least_psnr": -1},
                                      {"seed": -1}])
def test_numbers_that_cannot_be_meant(tmp_path, settings):
    with pytest.raises(ConfigError):
        run_recipe(RecipeConfig("a", str(tmp_path / "out"), **settings))


def test_the_recipe_makes_a_model_and_a_page(tmp_path, released_model, caplog):
    caplog.set_level(logging.INFO)
    config = RecipeConfig(str(fill(tmp_path / "a", 40)), str(tmp_path / "out"), str(released_model), steps=6)
    recipe = run_recipe(config)
    figures = page.compare(recipe)
    assert (figures["pictures"], figures["held_out"]) == (40, 4)
    assert figures["unknown_characters"] == 5 and figures["unknown_written"] == 0  # 右 下 金 灰 绿
    assert figures["psnr_before"] < 24 and figures["psnr"] != figures["psnr_before"]
    assert "the vocabulary lacks" not in caplog.text  # it was said once, when the folder was looked at
    model = load(recipe.model)
    assert not model.text_tokenizer.unknown("右下金灰绿") and load(released_model).text_tokenizer.unknown("金")
    shown = (tmp_path / "out" / page.PAGE).read_text(encoding="utf-8")
    assert shown.count("<img") == 4 * 3 and "有" in shown and "<script" not in shown
    before = recipe.model.joinpath("model.safetensors").stat().st_mtime_ns
    assert page.compare(run_recipe(config))["psnr"] == figures["psnr"]  # nothing is trained again
    assert recipe.model.joinpath("model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="holds the work of folder"):
        run_recipe(RecipeConfig(str(fill(tmp_path / "b", 40)), config.output, config.model, steps=6))


def test_an_image_tokenizer_that_suffices_is_kept(tmp_path, released_model):
    config = RecipeConfig(str(fill(tmp_path / "a", 30)), str(tmp_path / "out"), str(released_model), steps=2,
                          least_psnr=0)
    recipe = run_recipe(config)
    assert recipe.figures["psnr"] == recipe.figures["psnr_before"]
    assert not (tmp_path / "out/image_tokenizer_run").exists()


def test_steps_follow_from_the_minutes(tmp_path, released_model, caplog):
    caplog.set_level(logging.INFO)
    run_recipe(RecipeConfig(str(fill(tmp_path / "a", 30)), str(tmp_path / "out"), str(released_model),
                            minutes=0.001, least_psnr=0))
    assert "s a step: 20 steps" in caplog.text  # the least
    assert not (tmp_path / "out/model_run_probe").exists()


def test_another_folder_is_not_written_over(tmp_path, released_model):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("a")
    with pytest.raises(CheckpointError, match="holds other files"):
        run_recipe(RecipeConfig(str(fill(tmp_path / "a", 30)), str(tmp_path / "out"), str(released_model), steps=2))


def test_a_killed_run_goes_on_to_the_same_model(tmp_path, released_model):
    fill(tmp_path / "a", 30)

    def command(output):
        return [sys.executable, str(ROOT / "tools/finetune.py"), str(tmp_path / "a"), "--output",
                str(tmp_path / output),
                "--model", str(released_model), "--steps", "130", "--least-psnr", "0", "--json", f"{tmp_path}/f.json"]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command("out"), env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "out/model_run/checkpoints/step-00000100"
    end = time.monotonic() + 400
    while not (checkpoint / "manifest.json").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    for output in ("out", "undisturbed"):
        subprocess.run(command(output), env=environment, check=True, capture_output=True, timeout=400)
    weights = [(tmp_path / output / "model_run/model/model.safetensors").read_bytes()
               for output in ("out", "undisturbed")]
    assert weights[0] == weights[1]


def test_the_tool_says_what_is_wrong_in_a_sentence(tmp_path, released_model, monkeypatch, capsys):
    fill(tmp_path / "a", 3)
    monkeypatch.setattr(sys, "argv", ["tools/finetune.py", str(tmp_path / "a"), "--output", str(tmp_path / "out"),
                                      "--model", str(released_model)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "tools/finetune.py"), run_name="__main__")
    assert left.value.code == 2 and "too few to learn from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
