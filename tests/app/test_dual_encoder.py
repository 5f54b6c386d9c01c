"""What a user of a dual encoder calls, its released folder, and its calibration on data."""
import copy
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

import vilg
from vilg import config, release
from vilg.app.dual_encoder import Match, Matcher
from vilg.errors import CheckpointError, ConfigError, DataError, VilgError
from vilg.run import build
from vilg.run.calibrate import calibrate, held_out, pairs
from vilg.weights.files import read_stored

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(contrastive_values, tmp_path_factory):
    """A folder trained on the styled table until it knows most of it, calibrated on the same."""
    folder = tmp_path_factory.mktemp("trained")
    values = copy.deepcopy(contrastive_values) | {"output": str(folder / "run")}
    values["train"] |= {"steps": 200}
    build.build_trainer(config.from_dict(build.RunConfig, values)).fit()
    return folder / "run" / "model"


@pytest.fixture(scope="module")
def calibrated(trained, styled_table, tmp_path_factory):
    import shutil

    folder = shutil.copytree(trained, tmp_path_factory.mktemp("calibrated") / "styled")
    calibrate(folder, held_out([str(styled_table)], 0))
    return folder


@pytest.fixture(scope="module")
def model(calibrated):
    return vilg.load(calibrated)


@pytest.fixture(scope="module")
def image(styled_table):
    return lambda concept, style="flat": styled_table.parent / f"{style}-{concept}.png"


def test_loading_gives_what_the_folder_says(calibrated, model):
    assert isinstance(model, Matcher) and model.name == "styled"
    assert model.fingerprint == yaml.safe_load((calibrated / "model.yaml").read_text())["fingerprint"]


def test_vectors_are_of_length_one_and_do_not_depend_on_company(model, image):
    texts, images = ["太阳", "平面风格的月牙", "书本"], [image("sun"), image("moon"), image("book")]
    for embed, things in ((model.embed_text, texts), (model.embed_image, images)):
        vectors = embed(things)
        assert vectors.shape == (3, 32) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([embed([thing]) for thing in things]), vectors, atol=1e-5)
        np.testing.assert_allclose(embed(things[1]), vectors[1:2], atol=1e-5)
        assert np.abs(vectors[0] - vectors[1]).max() > 0.05 and embed([]).shape == (0, 32)
        np.testing.assert_allclose(embed(things * 50), np.tile(vectors, [50, 1]), atol=1e-5)


def test_images_come_in_any_form(model, image):
    with Image.open(image("sun")) as opened:
        vectors = model.embed_image([image("sun"), str(image("sun")), opened, np.asarray(opened.convert("RGB"))])
    np.testing.assert_allclose(vectors, np.tile(vectors[:1], [4, 1]), atol=1e-6)


def test_similarity_is_calibrated_and_orders_as_cosines_do(model, image):
    texts, images = ["太阳", "月牙"], [image("sun"), image("moon"), image("tree")]
    found = model.similarity(texts, images)
    assert found.shape == (2, 3) and (found >= 0).all() and (found <= 1).all()
    cosines = model.embed_text(texts) @ model.embed_image(images).T
    assert (found.argsort() == cosines.argsort()).all()
    assert found[0, 0] > 0.5 > found[0, 2] and found[1, 1] > 0.5 > found[1, 2]


def test_rerank_puts_the_best_first_and_can_say_that_nothing_matches(model, image):
    images = [image("tree"), image("sun"), image("fish")]
    found = model.rerank("太阳", images)
    assert isinstance(found[0], Match) and found[0].index == 1 and len(found) == 3
    assert [match.similarity for match in found] == sorted((match.similarity for match in found), reverse=True)
    assert [match.index for match in model.rerank("太阳", images, least=0.5)] == [1]
    assert model.rerank("太阳", [image("tree"), image("fish")], least=0.5) == []


def test_classify_names_what_an_image_shows(model, image):
    labels = ["太阳", "月牙", "树木"]
    found = model.classify([image("moon", "line"), image("tree")], labels, ["{}"])
    assert [row[0].index for row in found] == [1, 2] and all(len(row) == 3 for row in found)
    assert [[match.index for match in row] for row in model.classify(image("moon"), labels, "{}", least=0.5)] == [[1]]
    assert model.classify([image("fish")], ["太阳", "月牙"], ["{}"], least=0.5) == [[]]


def test_classes_are_the_mean_of_their_templates(model):
    both = model.embed_classes(["太阳", "月牙"], ["{}", "平面风格的{}"])
    each = model.embed_text(["太阳", "平面风格的太阳"]).mean(0)
    np.testing.assert_allclose(both[0], each / np.linalg.norm(each), atol=1e-5)
    with pytest.raises(VilgError, match="the template '一张图' has not one {}"):
        model.embed_classes(["太阳"], ["一张图"])
    with pytest.raises(VilgError, match="0 labels and 3 templates make no classes"):
        model.embed_classes([])


def test_texts_that_cannot_be_read_are_refused(model, caplog):
    for text, message in (("", "is empty"), ("鑫鑫", "has no word that the vocabulary of styled knows"),
                          ("太阳" * 30, "has 60 tokens and this model reads 14; shorten it")):
        with pytest.raises(VilgError, match=message):
            model.embed_text([text])
    with caplog.at_level(logging.WARNING):
        cut = model.embed_text(["太阳" * 30], strict=False)
    assert "60 tokens and this model reads 14" in caplog.text
    np.testing.assert_allclose(cut, model.embed_text(["太阳" * 7]), atol=1e-5)


def test_a_file_that_is_no_image_is_refused_by_name(model, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match="a.png: not a whole image"):
        model.embed_image([tmp_path / "a.png"])


def test_a_model_without_calibration_says_how_to_get_one(trained, image):
    bare = vilg.load(trained)
    assert bare.embed_text("太阳").shape == (1, 32)
    with pytest.raises(VilgError, match="has no calibration, .* tools/calibrate.py"):
        bare.similarity(["太阳"], [image("sun")])


def test_calibrating_changes_the_fingerprint_and_not_the_vectors(trained, calibrated, model, image):
    bare = vilg.load(trained)
    assert bare.fingerprint != model.fingerprint
    np.testing.assert_array_equal(bare.embed_image([image("sun")]), model.embed_image([image("sun")]))
    assert {array.dtype for array in read_stored(calibrated / "model.safetensors").values()} == {np.dtype("float16")}


def test_shuffled_pairs_leave_out_captions_that_are_true_as_well(model, styled_table):
    source = held_out([str(styled_table)], 0)[0]
    found = pairs(model, source, 24)
    assert len(found.true) == 24 and 0 < len(found.shuffled) < 4 * 24
    assert found.true.mean() > found.shuffled.mean() + 0.3
    assert found.shuffled.max() < found.true.max()
    scenes = held_out([], 30)[0]
    assert len(pairs(model, scenes, 5).true) == 5 and len(scenes) == 30


def test_calibrating_needs_data_and_a_dual_encoder(released_model, trained, styled_table):
    with pytest.raises(DataError, match="there is nothing to calibrate on"):
        held_out([], 0)
    with pytest.raises(CheckpointError, match="does not describe a dual encoder"):
        calibrate(released_model, held_out([str(styled_table)], 0))
    with pytest.raises(DataError, match="too few to fit a calibration"):
        calibrate(trained, held_out([str(styled_table)], 0), count=3)


def test_the_tool_calibrates_and_prints_its_figures(trained, styled_table, tmp_path):
    import shutil

    folder = shutil.copytree(trained, tmp_path / "copy")
    run = subprocess.run([sys.executable, "tools/calibrate.py", str(styled_table), "--model", str(folder), "--json",
                          str(tmp_path / "out.json")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    figures = {name: float(value) for name, value in (line.split() for line in run.stdout.splitlines())}
    assert figures["slope"] > 0 and figures["true_matched"] > 0.8 > 0.3 > figures["shuffled_matched"]
    assert vilg.load(folder).calibration.slope == pytest.approx(figures["slope"], abs=1e-3)


def test_a_folder_that_does_not_fit_itself_is_refused(trained, tmp_path):
    import shutil

    def changed(name, **values):
        folder = shutil.copytree(trained, tmp_path / name)
        said = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8")) | values
        # Form 1 has no fingerprint over what is said, so that the check behind it is reached.
        said = {key: value for key, value in said.items() if key not in ("format", "fingerprint")}
        (folder / "model.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
        return folder

    assert release.read(changed("same"), "dual_encoder").text_length == 16
    for number, length in enumerate((None, 1, 99, "16", True)):
        with pytest.raises(CheckpointError, match="text_length must be from 2 to the text tower's 16 positions"):
            release.read(changed(f"length{number}", text_length=length))
    model = yaml.safe_load((trained / "model.yaml").read_text(encoding="utf-8"))["model"]
    few = copy.deepcopy(model)
    few["text"]["vocab_size"] -= 3
    with pytest.raises(CheckpointError, match="text tower has .* rows .* but the vocabulary has .* tokens"):
        release.read(changed("few", model=few))
    with pytest.raises(ConfigError, match="calibration.*slope must be above 0"):
        release.read(changed("down", calibration={"slope": -2.0, "offset": 0.0}))


def test_averaged_weights_go_in_the_place_of_the_models_own(trained, tmp_path):
    released = release.read(trained, "dual_encoder")
    release.write(tmp_path / "other", "dual_encoder", released, {"temperature.log": np.array([1.5], "float32")})
    again = release.read(tmp_path / "other", "dual_encoder")
    assert again.model.temperature.log.item() == 1.5 and released.model.temperature.log.item() != 1.5
    weight = "text_tower.word_embedding.weight"
    assert paddle.equal_all(again.model.state_dict()[weight], released.model.state_dict()[weight]).item()
