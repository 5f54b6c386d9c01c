"""A released model in int8: what is written is what is drawn from, and large channels move where that helps."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors.numpy
import yaml

from vilg import release
from vilg.app.pipeline import load
from vilg.app.quantizing import quantize_model
from vilg.errors import CheckpointError, DataError
from vilg.kernels.onednn import precision
from vilg.kernels.onednn.int8 import missing
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.nn.layers import LayerNorm, Linear
from vilg.release.folder import open_folder
from vilg.release.quantizing import shift
from vilg.weights import int8
from vilg.weights.files import read_stored
from vilg.weights.stored import Stored

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("F16", "F32", "I64", "I8")
needs_int8 = pytest.mark.skipif(bool(missing()), reason=missing() or "int8 works")


@pytest.fixture(scope="module")
def small(released_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    quantize_model(released_model, folder)
    return folder


def weights_of(folder):
    return {name: value.numpy() for name, value in load(folder).model.state_dict().items()}


def test_rounding_what_was_rounded_changes_no_bit():
    rng = np.random.default_rng(0)
    for axis in (0, 1):
        matrix = rng.standard_normal((300, 200), "float32") * rng.random((300, 1), "float32")
        matrix[5], matrix[:, 7] = 0, 0
        values, scales = int8.rounded(matrix, axis)
        assert (np.abs(values.astype("int64")).max(axis=1 - axis) % 127 == 0).all()
        restored = values.astype("float32") * scales
        again, scales_again = int8.rounded(restored, axis)
        np.testing.assert_array_equal(again, values)
        np.testing.assert_array_equal(scales_again, scales)
        assert np.abs(restored - matrix).max() <= scales.max() * 0.51


def test_a_folder_in_int8_holds_a_byte_a_weight_and_reads_near_the_model(released_model, small):
    stored, exact, near = read_stored(small / "model.safetensors", KINDS), weights_of(released_model), weights_of(small)
    assert {name for name, array in stored.items() if array.dtype == np.int8} == {
        name for name, array in exact.items() if array.ndim == 2}
    assert set(near) == set(exact)
    for name, array in exact.items():
        step = np.abs(array).max() / 127 if array.ndim == 2 else 0
        assert np.abs(near[name] - array).max() <= 0.51 * step + 1e-3 * np.abs(array).max()
    assert any((near[name] != exact[name]).any() for name in exact)


@needs_int8
def test_a_folder_drawn_from_in_int8_holds_no_float_map_and_the_same_numbers(small):
    wide = load(small, cpu_math="fp32")
    try:
        lean = load(small, cpu_math="int8")
        maps = [layer for layer in lean.model.sublayers() if isinstance(layer, Linear)]
        assert maps and all(layer.weight is None and layer.int8 is not None for layer in maps)
        wide.model.round_to_int8()
        for mine, theirs in zip(maps, (layer for layer in wide.model.sublayers() if isinstance(layer, Linear))):
            np.testing.assert_array_equal(mine.int8.values, theirs.int8.values)
        texts = ["红色的圆形", "蓝色的方块"]
        drawn, expected = (np.stack([np.asarray(row[0]) for row in each.text_to_image(texts)]) for each in (lean, wide))
        np.testing.assert_array_equal(drawn, expected)
        assert lean.image_to_text([drawn[0]]) == wide.image_to_text([drawn[0]])
        np.testing.assert_array_equal(lean.rank(texts, list(drawn)), wide.rank(texts, list(drawn)))
        assert "stack.blocks.0.fc1.weight" not in lean.model.state_dict()
    finally:
        load(small, cpu_math="fp32")


@needs_int8
def test_what_holds_int8_alone_goes_on_in_it_when_others_do_not(small):
    lean = load(small, cpu_math="int8")
    x = paddle.randn([3, lean.model.config.width])
    before = lean.model.image_head(x).numpy()
    wide = load(small, cpu_math="fp32")
    np.testing.assert_array_equal(lean.model.image_head(x).numpy(), before)
    assert (wide.model.image_head(x).numpy() != before).any()
    assert len(lean.text_to_image("红色的圆形")[0]) == 1


def test_a_tensor_at_a_time_is_read_as_all_at_once(small, tmp_path):
    mapped, whole = Stored(small / "model.safetensors", KINDS), read_stored(small / "model.safetensors", KINDS)
    assert set(mapped) == set(whole) and len(mapped) == len(whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(mapped[name], array)
        np.testing.assert_array_equal(mapped[name], array)  # what was given back is read again
        assert mapped.shape(name) == array.shape and mapped.dtype(name) == array.dtype
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((small / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        Stored(cut, KINDS)


def test_reading_a_folder_in_int8_widens_a_matrix_at_a_time(small, monkeypatch):
    read = []
    monkeypatch.setattr(int8.Restored, "__getitem__", lambda self, name, get=int8.Restored.__getitem__:
                        read.append(name) or get(self, name))
    opened = open_folder(small, "bidirectional")
    assert opened.int8 and not read
    if not missing():
        monkeypatch.setattr(precision, "int8", lambda: True)
        model = opened.build(lambda: BidirectionalTransformer(opened.section("model", BidirectionalConfig)),
                             drawing=True)
        assert isinstance(model, BidirectionalTransformer) and "image_embedding.weight" in read
        assert "stack.blocks.0.fc1.weight" not in read and "image_head.weight" not in read


def test_reading_and_drawing_go_on_in_any_arithmetic(small):
    pictures = [np.asarray(load(small, cpu_math=math).text_to_image("红色的圆形")[0][0]) for math in ("int8", "fp32")]
    assert pictures[0].shape == pictures[1].shape


def test_a_folder_in_int8_is_not_quantized_again_nor_over_itself(released_model, small, tmp_path):
    with pytest.raises(CheckpointError, match="is in int8 already"):
        quantize_model(small, tmp_path / "twice")
    with pytest.raises(DataError, match="is the model itself"):
        quantize_model(released_model, released_model)


@pytest.mark.parametrize("change", ["none", "shape", "zero", "type"])
def test_scales_that_do_not_fit_are_named(small, tmp_path, change):
    stored = read_stored(small / "model.safetensors", KINDS)
    name = "stack.blocks.0.fc1.weight"
    scales = stored.pop(name + int8.SCALE)
    other = {"shape": scales[:, :-1].copy(), "zero": scales * 0, "type": scales.astype("float64")}
    stored |= {} if change == "none" else {name + int8.SCALE: other[change]}
    with pytest.raises(CheckpointError, match="the scales of stack.blocks.0.fc1.weight .* quantize the model again"):
        int8.Restored(stored, "model.safetensors")


def test_a_scale_that_was_changed_is_found_by_the_fingerprint(small, tmp_path):
    import shutil

    folder = shutil.copytree(small, tmp_path / "changed")
    stored = read_stored(folder / "model.safetensors", KINDS)
    stored["image_head.weight.scale"] *= 1.5
    safetensors.numpy.save_file(stored, str(folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match="fingerprint"):
        release.read(folder)
    assert "fingerprint" in yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))


def test_large_channels_move_into_the_map_and_change_no_result():
    rng = np.random.default_rng(1)
    norm, linear = LayerNorm(32), Linear(32, 24, std=1.0)
    gain = np.ones(32, "float32")
    x = paddle.to_tensor(rng.standard_normal((64, 32), "float32"))
    with paddle.no_grad():
        gain[[3, 17]] = 60
        norm.weight.set_value(gain)
        before = linear(norm(x)).numpy()
        assert shift(norm, linear, norm(x).numpy())
        np.testing.assert_allclose(linear(norm(x)).numpy(), before, rtol=1e-4, atol=1e-3)
        after = np.abs(norm(x).numpy()).max(axis=0)
    assert after.max() / np.median(after) < 30


def test_the_tool_calibrates_on_captions_and_refuses_none(released_model, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("红色的圆形\n蓝色的方块\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools/quantize.py"), str(released_model), "--output", str(tmp_path / "out"),
               "--captions", str(captions)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "of 4 maps looked at" in done.stdout, done.stderr
    load(tmp_path / "out")
    captions.write_text("\n", encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "holds no captions" in done.stderr.splitlines()[-1]
