"""A masked model behind the same calls: drawing in steps, completion, what is seen after a step, what is refused."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import vilg
from vilg import release
from vilg.app import pipeline
from vilg.app.quantizing import quantize_model
from vilg.data.worlds import scenes
from vilg.errors import CheckpointError, ConfigError, ShapeError, VilgError
from vilg.generation.sampling import MaskPredictConfig
from vilg.models.two_level.model import TwoLevelConfig, TwoLevelTransformer
from vilg.release.kinds.two_level import ReleasedTwoLevel

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["一个红色的圆形", "蓝色的方块在左边", "图里有几个方块"]


@pytest.fixture(scope="module")
def folder(released_model, tmp_path_factory):
    """An untrained two-level model that reads encoder features, whose outputs differ for each input."""
    start = release.read(released_model, "bidirectional")
    shape = {name: getattr(start.model.config, name) for name in (
        "layers", "width", "heads", "vocab_size", "codebook_size", "text_length", "rows", "columns")}
    model = TwoLevelTransformer(TwoLevelConfig(**shape, features="encoder", feature_width=8))
    rng = np.random.default_rng(11)
    for name, parameter in model.named_parameters():
        if len(parameter.shape) == 2:
            scale = 2.0 if name.startswith("text_") else 1.5 if "embedding" in name else 2 / parameter.shape[0] ** 0.5
            parameter.set_value(rng.normal(0, scale, parameter.shape).astype("float32"))
    path = tmp_path_factory.mktemp("two_level") / "masked"
    release.write(path, "two_level", ReleasedTwoLevel(model, start.image_tokenizer, start.text_tokenizer,
                                                      MaskPredictConfig(steps=6)))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return vilg.load(folder)


def pixels(rows):
    return [[np.asarray(image) for image in row] for row in rows]


def test_every_input_makes_a_difference(model):
    """Without this the tests below could not fail."""
    drawn = [row[0].tobytes() for row in pixels(model.text_to_image(TEXTS))]
    assert len(set(drawn)) == len(TEXTS)
    images = [scenes.render(scenes.sample_scene(seed, "train"), 16) for seed in range(4)]
    assert len(set(model.image_to_text(images))) > 1
    ranks = model.rank(TEXTS, images)
    assert len(set(ranks.reshape(-1).tolist())) == ranks.size


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "schedule": "linear", "guidance": 2.0}, {"temperature": 0.0}])
def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(model, settings):
    together = pixels(model.text_to_image(TEXTS, num_images=3, seed=[7, 8, 9], **settings))
    for row, text in enumerate(TEXTS):
        alone = pixels(model.text_to_image(text, num_images=1, seed=7 + row, **settings))
        np.testing.assert_array_equal(alone[0][0], together[row][0])


def test_pictures_say_how_they_were_drawn(model):
    info = model.text_to_image(TEXTS[0], steps=4, guidance=1.5)[0][0].info
    assert (info["steps"], info["guidance"], info["schedule"]) == (4, 1.5, "cosine") and "top_k" not in info


def test_best_of_ranks_by_what_the_model_reads_of_the_pictures(model):
    drawn = pixels(model.text_to_image(TEXTS[0], num_images=6, seed=1))[0]
    codes = paddle.concat([model.encode(picture) for picture in drawn])
    best = model.text_to_image(TEXTS[0], num_images=6, best_of=6, seed=1)[0]
    scores = [image.info["log_p_text"] for image in best]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    assert sorted(image.info["sample"] for image in best) == list(range(6)) and codes.shape == [6, 16]
    for image in best:
        np.testing.assert_array_equal(np.asarray(image), drawn[image.info["sample"]])


def test_any_part_of_a_picture_is_kept(model):
    image = scenes.render(scenes.sample_scene(3, "train"), 16)
    codes = model.encode(image).numpy()[0]
    mask = np.zeros((4, 4), dtype=bool)
    mask[[0, 2, 3], [1, 2, 3]] = True
    seen = []
    drawn = model.text_to_image(TEXTS[:2], num_images=2, known_image=image, known_mask=mask, seed=[1, 2],
                                after_step=lambda step, images: seen.append((step, len(images), images[0].shape)))
    assert seen == [(step, 4, (16, 16, 3)) for step in range(6)]
    assert len({np.asarray(one).tobytes() for row in drawn for one in row}) == 4
    whole = model.text_to_image(TEXTS[0], known_image=image, known_rows=4)[0][0]
    np.testing.assert_array_equal(np.asarray(whole), model.decode(paddle.to_tensor(codes[None]))[0])


def test_the_last_step_shows_what_is_returned(model):
    seen = []
    drawn = model.text_to_image(TEXTS, seed=4, after_step=lambda step, images: seen.append(images))
    for row, image in enumerate(pixels(drawn)):
        np.testing.assert_array_equal(image[0], seen[-1][row])
    assert any((first != last).any() for first, last in zip(seen[0], seen[-1]))


@pytest.mark.parametrize("given,error,says", [
    ({"top_k": 4}, ConfigError, "top_k .*token by token.*masked.*by mask-predict"),
    ({"steps": 17}, ShapeError, "steps is 17, .*4×4 has 16 tokens"), ({"steps": 0}, ConfigError, "steps"),
    ({"temperature": -1}, ConfigError, "temperature"), ({"choice_temperature": -1}, ConfigError, "choice_temperature"),
    ({"path": "end_to_end"}, VilgError, "no reconstructor"), ({"stepps": 3}, ConfigError, "did you mean steps")])
def test_what_a_masked_model_cannot_do_is_refused(model, given, error, says):
    with pytest.raises(error, match=says):
        model.text_to_image(TEXTS[0], **given)
    if "path" not in given:
        before = model.sampling
        with pytest.raises(error, match=says):
            model.use_sampling(**given)
        assert model.sampling == before


def test_a_model_that_draws_token_by_token_refuses_steps(released_model):
    other = pipeline.load(released_model)
    with pytest.raises(ConfigError, match="steps .*by mask-predict.*untrained draws token by token"):
        other.text_to_image(TEXTS[0], steps=4)
    with pytest.raises(VilgError, match="after_step"):
        other.text_to_image(TEXTS[0], after_step=print)


def test_another_kind_of_folder_is_refused(released_model):
    with pytest.raises(CheckpointError, match="image tokenizer"):
        pipeline.load(released_model / "image_tokenizer")


def test_the_tool_draws_with_the_settings_of_either_kind(folder, released_model, tmp_path):
    def infer(model, *options):
        return subprocess.run([sys.executable, "tools/infer.py", "text2image", TEXTS[0], "--model", str(model),
                          "--json",
                               str(tmp_path / "lines.jsonl"), "--output", str(tmp_path / "out"), *options],
                              cwd=ROOT, capture_output=True, text=True)

    done = infer(folder, "--steps", "3", "--schedule", "linear")
    assert done.returncode == 0, done.stderr
    line, = map(json.loads, (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines())
    with Image.open(line["image"]) as image:
        assert image.info["steps"] == "3" and image.info["schedule"] == "linear"
    refused = infer(released_model, "--steps", "3")
    assert refused.returncode == 2 and "by mask-predict" in refused.stderr and "Traceback" not in refused.stderr


def test_a_masked_model_in_int8_is_half_as_large_and_draws_as_its_captions_ask(folder, model, tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    for name, captions in (("plain", None), ("seen", tmp_path / "captions.txt")):
        quantize_model(folder, tmp_path / name, captions)
        small = vilg.load(tmp_path / name)
        assert (tmp_path / name / "model.safetensors").stat().st_size < (folder / "model.safetensors").stat().st_size
        exact, near = model.rank(TEXTS, model.text_to_image(TEXTS[:1])[0]), small.rank(
            TEXTS, model.text_to_image(TEXTS[:1])[0])
        assert np.abs(exact - near).max() < 0.2 * np.abs(exact - exact.mean()).max() + 0.05 and (exact != near).any()
        assert len({row[0].tobytes() for row in pixels(small.text_to_image(TEXTS))}) == len(TEXTS)


def test_the_shipped_model_keeps_within_ten_megabytes():
    files = [path for path in (ROOT / "model_zoo" / "two_level_tiny").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
