"""Released folders: what is written is read, and what was changed since is not."""
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml

import vilg
from vilg import release
from vilg.app.pipeline import Pipeline, load
from vilg.config import configclass
from vilg.errors import CheckpointError, VilgError
from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig
from vilg.nn.layers import Linear
from vilg.release import registry
from vilg.weights.files import read_stored, read_weights, save_weights
from vilg.weights.limits import ROOM, at_most

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(released_model, tmp_path):
    return shutil.copytree(released_model, tmp_path / "copy")


@pytest.fixture
def older(folder, make_older):
    return make_older(folder)


def change(folder, **values):
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def alter(folder, change_weights):
    path = folder / "model.safetensors"
    weights = read_stored(path)
    change_weights(weights)
    import safetensors.numpy
    safetensors.numpy.save_file(weights, str(path))


def test_a_folder_without_its_description_is_refused(folder):
    (folder / "model.yaml").unlink()
    with pytest.raises(CheckpointError, match="model.yaml"):
        release.read(folder, "bidirectional")


def test_weights_cut_short_are_refused_by_name(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors: not a whole safetensors file"):
        release.read(folder, "bidirectional")


def test_older_weights_of_another_size_name_the_first_that_differ(older):
    text = (older / "model.yaml").read_text(encoding="utf-8")
    (older / "model.yaml").write_text(text.replace("width: 16", "width: 32"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="in the file and"):
        release.read(older, "bidirectional")


def test_another_image_tokenizer_is_refused(older):
    change(older, image_tokenizer="0123456789abcdef")
    with pytest.raises(CheckpointError, match="image tokenizer 0123456789abcdef"):
        release.read(older, "bidirectional")


def test_another_vocabulary_is_refused(folder):
    with open(folder / "vocab.txt", "a", encoding="utf-8") as vocabulary:
        vocabulary.write("新\n")
    with pytest.raises(CheckpointError, match="vocabulary"):
        release.read(folder, "bidirectional")


def test_what_was_written_comes_back_to_the_bit(released_model, tmp_path):
    first = release.read(released_model)
    mark = release.write(tmp_path / "again", "bidirectional", first)
    assert mark == yaml.safe_load((released_model / "model.yaml").read_text(encoding="utf-8"))["fingerprint"]
    for name in ("model.safetensors", "image_tokenizer/model.safetensors", "vocab.txt", "model.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (released_model / name).read_bytes()


def test_an_older_folder_is_read_and_written_anew(older, released_model, tmp_path):
    first = release.read(older)
    release.write(older, "bidirectional", first)
    assert (older / "model.yaml").read_bytes() == (released_model / "model.yaml").read_bytes()
    assert (older / "model.safetensors").read_bytes() == (released_model / "model.safetensors").read_bytes()


SWAP = {"heads: 2": "heads: 4", "conv_window: 11": "conv_window: 3", "guidance: 3.0": "guidance: 4.0"}


@pytest.mark.parametrize("part", ["", "image_tokenizer"])
@pytest.mark.parametrize("damage, says", [
    (lambda weights: weights.update({name: value * np.float16("nan") for name, value in weights.items()}), "finite"),
    (lambda weights: weights.update({name: value + np.float16("inf") for name, value in weights.items()}), "finite"),
    (lambda weights: weights.update({name: -value for name, value in weights.items()}), "fingerprint"),
    (lambda weights: _swap_two(weights), "fingerprint"),
    (lambda weights: weights.pop(sorted(weights)[0]), "fingerprint"),
    (lambda weights: weights.update(more=np.zeros(2, "float16")), "fingerprint"),
    (lambda weights: weights.update({name: value.astype("float32") for name, value in weights.items()}), "fingerprint"),
    (lambda weights: weights.update({name: value.astype("int8") for name, value in weights.items()}), "fingerprint"),
    (lambda weights: weights.update({name: value.astype("float64") for name, value in weights.items()}), "as F64"),
])
def test_altered_weights_are_refused(folder, part, damage, says):
    alter(folder / part, damage)
    with pytest.raises(CheckpointError, match=says) as refused:
        release.read(folder)
    assert str(folder / part) in str(refused.value)


def _swap_two(weights):
    """Two tensors of one shape change their names."""
    names = sorted(weights)
    one, other = next((a, b) for a in names for b in names
                      if a < b and weights[a].shape == weights[b].shape and not np.array_equal(weights[a], weights[b]))
    weights[one], weights[other] = weights[other], weights[one]


@pytest.mark.parametrize("part, key, old, new", [
    ("", "model", "heads", 4), ("", "model", "sparse", False), ("", "model", "width", 10 ** 9),
    ("", "sampling", "top_k", 5), ("image_tokenizer", "tokenizer", "attention_resolutions", [4])])
def test_a_changed_config_is_refused_naming_both_fingerprints(folder, part, key, old, new):
    path = folder / part / "model.yaml"
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert said[key][old] != new
    said[key][old] = new
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"have the fingerprint .*says {said['fingerprint']}"):
        release.read(folder)


def test_a_part_of_another_release_is_refused(folder, released_model, tmp_path):
    other = release.read(released_model / "image_tokenizer")
    release.write(folder / "image_tokenizer", "image_tokenizer", other, {"to_code.bias": np.ones([8], "float32")})
    with pytest.raises(CheckpointError, match="image_tokenizer: its fingerprint is .* was written with"):
        release.read(folder)


def test_a_part_that_is_missing_or_nobody_named_is_refused(folder):
    shutil.copytree(folder / "image_tokenizer", folder / "reconstructor")
    with pytest.raises(CheckpointError, match="names no part reconstructor"):
        release.read(folder)
    shutil.rmtree(folder / "reconstructor")
    shutil.rmtree(folder / "image_tokenizer")
    with pytest.raises(CheckpointError, match="names a part image_tokenizer.*missing"):
        release.read(folder)


@pytest.mark.parametrize("values, says", [
    ({"width": 10 ** 9, "heads": 1}, "far more than its weights"), ({"layers": 10 ** 12}, "far more"),
    ({"text_length": 10 ** 9}, "far more"), ({"rows": 10 ** 6}, "model.rows is 1000000"),
    ({"codebook_size": 10 ** 9}, "model.codebook_size"), ({"vocab_size": 10 ** 9}, "model.vocab_size"),
    ({"width": "wide"}, "model: width"), ({"depth": 3}, "model: depth")])
def test_an_older_config_of_absurd_sizes_costs_no_memory(older, values, says):
    said = yaml.safe_load((older / "model.yaml").read_text(encoding="utf-8"))
    change(older, model=said["model"] | values)
    with pytest.raises(VilgError, match=says):
        release.read(older)


def test_an_older_codebook_of_absurd_size_costs_no_memory(older):
    part = older / "image_tokenizer"
    said = yaml.safe_load((part / "model.yaml").read_text(encoding="utf-8"))
    said["tokenizer"]["quantizer"] |= {"kind": "ema", "codebook_size": 10 ** 12}
    change(part, tokenizer=said["tokenizer"])
    with pytest.raises(CheckpointError, match="far more than its weights"):
        release.read(older)


def test_only_the_thread_that_builds_is_counted():
    made = []
    with at_most(0, "here"):
        other = threading.Thread(target=lambda: made.append(Linear(ROOM, 2)))
        other.start()
        other.join()
        made.append(Linear(10, 10))
        with pytest.raises(CheckpointError, match="here: its config asks"):
            Linear(ROOM, 1)
    assert len(made) == 2 and Linear(ROOM, 1) is not None


def test_folders_of_another_kind_say_so(released_model, tmp_path):
    assert isinstance(vilg.load(released_model), Pipeline)
    tokenizer = vilg.load(released_model / "image_tokenizer")
    assert tokenizer.grid == (4, 4) and not tokenizer.training
    with pytest.raises(CheckpointError, match="a bidirectional model.*it holds an image tokenizer"):
        load(released_model / "image_tokenizer")
    with pytest.raises(CheckpointError, match="an image tokenizer, which is wanted.*it holds a bidirectional model"):
        release.read(released_model, "image_tokenizer")
    release.write(tmp_path / "r", "image_tokenizer", tokenizer)
    change(tmp_path / "r", kind="reconstructor")
    with pytest.raises(CheckpointError):
        vilg.load(tmp_path / "r")


@pytest.mark.parametrize("values, says", [
    ({"kind": "gan"}, "kind 'gan' is none"), ({"kind": None}, "kind 'None'"), ({"kind": ["bidirectional"]}, "kind"),
    ({"format": 3}, "form 3, and this version of vilg reads 1 and 2"), ({"format": "new"}, "form new"),
    ({"format": True}, "form True"), ({"format": 1}, "fingerprint"), ({"fingerprint": None}, "says None"),
    ({"parts": []}, "fingerprint")])
def test_a_description_that_cannot_be_followed_is_refused(folder, values, says):
    change(folder, **values)
    with pytest.raises(CheckpointError, match=says):
        release.read(folder)


def test_a_reconstructor_alone_names_the_folder_to_load():
    with pytest.raises(CheckpointError, match="load the folder that it lies in, .*ernie_vilg_tiny$"):
        vilg.load(ROOT / "model_zoo/ernie_vilg_tiny/reconstructor")


def test_aliases_without_end_are_refused(folder):
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with open(folder / "model.yaml", "a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    with pytest.raises(CheckpointError, match="more than 10000 values"):
        release.read(folder)


@pytest.fixture
def network():
    paddle.seed(2)
    return SceneFeatures(SceneFeaturesConfig(image_size=16, channels=8, dim=4))


def test_weights_that_are_not_finite_are_not_written(network, tmp_path):
    release.write(tmp_path, "scene_features", network)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="embedding.bias holds values that are not finite"):
        release.write(tmp_path, "scene_features", network, {"embedding.bias": np.full([4], np.nan, "float32")})
    with pytest.raises(CheckpointError, match="embedding.bias has values too large for float16; store it as float32"):
        release.write(tmp_path, "scene_features", network, {"embedding.bias": np.full([4], 1e6, "float32")})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    release.write(tmp_path, "scene_features", network, {"embedding.bias": np.full([4], 1e6, "float32")}, None)
    assert release.read(tmp_path).embedding.bias.numpy().tolist() == [1e6] * 4


def test_half_a_folder_never_loads_and_nothing_is_left_behind(network, tmp_path, monkeypatch):
    release.write(tmp_path, "scene_features", network)
    done = []

    def fails_second(source, target):
        if len(done) == 1:
            raise OSError(28, "No space left on device")
        done.append(target)
        os.rename(source, target)

    monkeypatch.setattr("vilg.release.staging.os.replace", fails_second)
    with pytest.raises(CheckpointError, match="No space left"):
        release.write(tmp_path, "scene_features", network, {"embedding.bias": np.ones([4], "float32")})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="no model.yaml"):
        release.read(tmp_path)
    (tmp_path / ".writing-999999999").mkdir()
    release.write(tmp_path, "scene_features", network)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "model.yaml"]


def test_what_lies_beside_a_release_stays_and_parts_gone_are_taken_away(folder, network):
    (folder / "README.md").write_text("card")
    shutil.copytree(folder, folder / "another_model")
    (folder / "image_tokenizer" / "notes.txt").write_text("mine")
    release.write(folder, "scene_features", network)
    assert (folder / "README.md").is_file() and isinstance(release.read(folder), SceneFeatures)
    assert release.read(folder / "another_model").model is not None
    assert [path.name for path in (folder / "image_tokenizer").iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_a_folder_is_named(network, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="taken: cannot be written"):
        release.write(tmp_path / "taken", "scene_features", network)


def test_float16_weights_that_became_integers_do_not_fit(network, tmp_path):
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    save_weights(tmp_path / "w.safetensors", state | {"embedding.bias": np.zeros([4], "int64")})
    with pytest.raises(CheckpointError, match="embedding.bias is int64 in the file and float32 in the model"):
        registry_load(network, tmp_path / "w.safetensors")


def registry_load(network, path):
    from vilg.weights.files import load_weights
    load_weights(network, read_weights(path), str(path))


def test_the_zoo_lists_the_kinds_that_fit(released_model, monkeypatch, tmp_path):
    zoo = released_model.parent
    monkeypatch.setenv("VILG_MODEL_ZOO", str(zoo))
    monkeypatch.chdir(tmp_path)
    assert release.find_model("untrained") == zoo / "untrained"
    with pytest.raises(CheckpointError, match="one of ernie_vilg_tiny, untrained$"):
        release.find_model("nobody", "bidirectional")
    with pytest.raises(CheckpointError, match="one of ernie_vil_tiny, ernie_vilg_tiny, scene_features, two_level_tiny, "
                       "untrained$"):
        release.find_model("nobody")


@configclass
class TwoSidesConfig:
    """A model of two linear maps, for the next test."""

    width: int


def test_a_new_kind_is_one_small_class(tmp_path, monkeypatch):
    monkeypatch.setattr("vilg.release.registry.KINDS", dict(registry.KINDS))

    class TwoSides(paddle.nn.Layer):
        def __init__(self, config):
            super().__init__()
            self.config, self.left, self.right = config, Linear(config.width, 2), Linear(config.width, 2)

    @registry.register("two_sides")
    class TwoSidesFolder(registry.Kind):
        title = "a model of two sides"

        def pack(self, thing, replaced):
            return registry.Contents("two_sides", {"model": thing.config}, registry.chosen(thing, replaced))

        def restore(self, opened, **beside):
            config = opened.section("model", TwoSidesConfig)
            return opened.build(lambda: TwoSides(config))

    made = TwoSides(TwoSidesConfig(width=3))
    release.write(tmp_path / "new", "two_sides", made, dtype=None)
    again = vilg.load(tmp_path / "new")
    np.testing.assert_array_equal(again.left.weight.numpy(), made.left.weight.numpy())
    assert not np.array_equal(again.left.weight.numpy(), again.right.weight.numpy())


@pytest.mark.parametrize("name", ["ernie_vilg_tiny", "scene_features"])
def test_the_shipped_folders_are_of_the_new_form(name):
    for path in sorted((ROOT / "model_zoo" / name).rglob("model.yaml")):
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert said["format"] == 2 and len(said["fingerprint"]) == 16
    assert release.read(ROOT / "model_zoo" / name) is not None
