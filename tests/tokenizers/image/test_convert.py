"""Public weights through the converter, against the public networks re-stated in numpy by their own names."""
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from vilg import release
from vilg.errors import CheckpointError
from vilg.tokenizers.image.convert import import_dvae, import_vqgan

import reference
import torch_writer

ROOT = Path(__file__).resolve().parents[3]
SIDE, CODES = 32, 40
VQGAN = {"channels": 32, "multipliers": [1, 2], "blocks": 2, "attention": {1}, "z": 16, "d": 16, "codes": CODES}
DVAE = {"width": 16, "stages": [1, 2, 4], "blocks": 2, "codes": CODES, "init": 12}


def pictures(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (2, 3, SIDE, SIDE)).astype("float32")


def write_vqgan(path: Path, gumbel: bool) -> dict[str, np.ndarray]:
    weights = reference.random_weights(reference.public_vqgan_shapes(**VQGAN, gumbel=gumbel), seed=int(gumbel))
    loss = {"loss.perceptual_loss.net.slice1.0.weight": np.zeros((2, 2), "float32")}
    torch_writer.save(path, {"state_dict": torch_writer.tensors(weights | loss), "global_step": 1})
    return weights


def public_codes(weights: dict[str, np.ndarray], z: np.ndarray, gumbel: bool) -> np.ndarray:
    rows = z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1])
    if gumbel:
        scores = rows @ weights["quantize.proj.weight"][:, :, 0, 0].T + weights["quantize.proj.bias"]
    else:
        scores = -((rows[:, None] - weights["quantize.embedding.weight"][None]) ** 2).sum(-1)
    return scores.argmax(-1).reshape(z.shape[0], -1)


@pytest.mark.parametrize("gumbel", [False, True])
def test_a_vqgan_computes_what_its_public_form_computes(tmp_path, gumbel):
    weights = write_vqgan(tmp_path / "last.ckpt", gumbel)
    tokenizer = import_vqgan(tmp_path / "last.ckpt", SIDE)
    assert tokenizer.config.attention_resolutions == [SIDE // 2]
    public = reference.PublicVQGAN(weights, groups=32, levels=2, blocks=2, attention={1})
    x = pictures()
    z = public.encode(x)
    np.testing.assert_allclose(tokenizer.vectors(paddle.to_tensor(x)).numpy(), z, atol=1e-5 * np.abs(z).max())
    codes = tokenizer.encode(paddle.to_tensor(x)).numpy()
    assert (codes == public_codes(weights, z, gumbel)).all()
    table = weights["quantize.embed.weight" if gumbel else "quantize.embedding.weight"]
    chosen = table[codes].transpose(0, 2, 1).reshape(2, -1, SIDE // 2, SIDE // 2)
    expected = public.decode(chosen)
    raw = tokenizer.reconstructor(paddle.to_tensor(chosen)).numpy()
    np.testing.assert_allclose(raw, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(tokenizer.decode(paddle.to_tensor(codes)).numpy(), expected.clip(-1, 1), atol=1e-4)


def write_dvae(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    halves = []
    for name, shapes in zip(("encoder", "decoder"), reference.public_dvae_shapes(**DVAE)):
        weights = reference.random_weights(shapes, seed=len(name) + len(halves))
        torch_writer.save(folder / f"{name}.pkl", torch_writer.tensors(weights))
        halves.append(weights)
    return halves[0], halves[1]


def test_a_dvae_computes_what_its_public_form_computes(tmp_path):
    encoder, decoder = write_dvae(tmp_path)
    tokenizer = import_dvae(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", SIDE)
    x = pictures()
    logits = reference.public_dvae(encoder, 0.8 * (x + 1) / 2 + 0.1, groups=3, blocks=2, decoder=False)
    np.testing.assert_allclose(tokenizer.logits(paddle.to_tensor(x)).numpy(), logits, atol=1e-5 * np.abs(logits).max())
    codes = tokenizer.encode(paddle.to_tensor(x))
    assert (codes.numpy() == logits.argmax(1).reshape(2, -1)).all()
    one_hot = np.eye(CODES)[codes.numpy()].transpose(0, 2, 1).reshape(2, CODES, SIDE // 4, SIDE // 4)
    raw = reference.public_dvae(decoder, one_hot, groups=3, blocks=2, decoder=True)
    found = tokenizer.reconstructor(tokenizer.embed(codes)).numpy()
    np.testing.assert_allclose(found, raw, atol=1e-5 * np.abs(raw).max())
    shown = (1 / (1 + np.exp(-raw[:, :3])) - 0.1) / 0.8
    np.testing.assert_allclose(tokenizer.decode(codes).numpy(), (2 * shown - 1).clip(-1, 1), atol=1e-4)


@pytest.fixture
def run_tool(monkeypatch):
    """Runs tools/convert_weights.py with arguments; returns its exit status."""
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["convert_weights.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "tools" / "convert_weights.py"), run_name="__main__")
        return left.value.code
    return run


def test_the_tool_writes_a_folder_that_loads(tmp_path, run_tool):
    write_vqgan(tmp_path / "last.ckpt", gumbel=True)
    assert run_tool("vqgan", "--checkpoint", tmp_path / "last.ckpt", "--output", tmp_path / "ours",
                    "--image-size", SIDE) == 0
    ours, direct = release.read(tmp_path / "ours", "image_tokenizer"), import_vqgan(tmp_path / "last.ckpt", SIDE)
    x = paddle.to_tensor(pictures())
    assert (ours.encode(x).numpy() == direct.encode(x).numpy()).all()


def test_the_tool_refuses_in_one_sentence(tmp_path, run_tool, capsys):
    torch_writer.save(tmp_path / "other.ckpt", torch_writer.tensors({"fc.weight": np.zeros((2, 2), "float32")}))
    assert run_tool("vqgan", "--checkpoint", tmp_path / "other.ckpt", "--output", tmp_path / "ours") == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("error: ") and "other.ckpt" in sentence
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("change, word", [
    (lambda weights: weights.pop("encoder.mid.attn_1.q.weight"), "lacks"),
    (lambda weights: weights.update({"encoder.mid.attn_9.q.weight": np.zeros(1, "float32")}), "attn_9"),
    (lambda weights: weights.update({"post_quant_conv.bias": np.zeros(3, "float32")}), "reconstructor.conv_in.bias"),
    (lambda weights: weights.pop("quantize.embedding.weight"), "quantize.embedding.weight")])
def test_weights_that_do_not_fit_are_named(tmp_path, change, word):
    weights = reference.random_weights(reference.public_vqgan_shapes(**VQGAN, gumbel=False), seed=1)
    change(weights)
    torch_writer.save(tmp_path / "last.ckpt", torch_writer.tensors(weights))
    with pytest.raises(CheckpointError, match=word) as refused:
        import_vqgan(tmp_path / "last.ckpt", SIDE)
    assert "last.ckpt" in str(refused.value)


def test_a_dvae_with_an_unknown_key_is_named(tmp_path):
    write_dvae(tmp_path)
    torch_writer.save(tmp_path / "decoder.pkl", torch_writer.tensors(
        {"blocks.input.w": np.zeros((12, CODES, 1, 1), "float32"), "blocks.group_1.other.w": np.zeros(1, "float32")}))
    with pytest.raises(CheckpointError, match="blocks.group_1.other.w"):
        import_dvae(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", SIDE)


def bits(array):
    """float32 → bfloat16, as its bits."""
    return (array.view("uint32") >> 16).astype("uint16")


def plain_vqgan() -> dict[str, np.ndarray]:
    return reference.random_weights(reference.public_vqgan_shapes(**VQGAN, gumbel=False), seed=4)


def same(tokenizer, weights) -> bool:
    return np.allclose(tokenizer.reconstructor.conv_in.bias.numpy(), weights["post_quant_conv.bias"], rtol=1e-2)


@pytest.mark.parametrize("save", [torch_writer.save, torch_writer.save_stream])
@pytest.mark.parametrize("stored", [lambda a: a.astype("float16"), lambda a: a.astype("float64"), bits])
def test_numbers_of_every_width_are_read(tmp_path, save, stored):
    weights = plain_vqgan()
    save(tmp_path / "last.ckpt", torch_writer.tensors({name: stored(value) for name, value in weights.items()}))
    tokenizer = import_vqgan(tmp_path / "last.ckpt", SIDE)
    assert same(tokenizer, weights) and tokenizer.reconstructor.conv_in.bias.dtype == paddle.float32


@pytest.mark.parametrize("dtype", ["F16", "F64", "BF16"])
def test_numbers_of_every_width_are_read_from_safetensors(tmp_path, dtype):
    weights = plain_vqgan()
    stored = {name: {"F16": value.astype("float16"), "F64": value.astype("float64"), "BF16": bits(value)}[dtype]
              for name, value in weights.items()}
    header, body = {}, b""
    for name, value in stored.items():
        place = [len(body), len(body) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": place}
        body += value.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "last.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    assert same(import_vqgan(tmp_path / "last.safetensors", SIDE), weights)


@pytest.mark.parametrize("prefix", ["module.", "model.", "first_stage_model.", "module.first_stage_model."])
def test_prefixes_are_taken_off(tmp_path, prefix):
    weights = plain_vqgan()
    named = {prefix + name: value for name, value in weights.items()} | {"other.proj.weight": np.zeros(2, "float32")}
    torch_writer.save(tmp_path / "last.ckpt", {"state_dict": torch_writer.tensors(named)})
    assert same(import_vqgan(tmp_path / "last.ckpt", SIDE), weights)


def test_averages_are_found_and_named(tmp_path, caplog):
    weights, average = plain_vqgan(), reference.random_weights(
        reference.public_vqgan_shapes(**VQGAN, gumbel=False), seed=5)
    inside = weights | {"model_ema." + name.replace(".", ""): value for name, value in average.items()}
    inside |= {"model_ema.decay": np.zeros(1, "float32"), "model_ema.num_updates": np.zeros(1, "int64")}
    torch_writer.save(tmp_path / "inside.ckpt", {"state_dict": torch_writer.tensors(inside)})
    torch_writer.save(tmp_path / "beside.ckpt", {"model": torch_writer.tensors(weights),
                                                 "ema": torch_writer.tensors(average)})
    for name in ("inside.ckpt", "beside.ckpt"):
        caplog.clear()
        tokenizer = import_vqgan(tmp_path / name, SIDE)
        assert same(tokenizer, average) and not same(tokenizer, weights)
        assert f"{name}: its averaged weights" in caplog.text


def test_several_modules_are_named(tmp_path):
    weights = {prefix + name: value for prefix in ("a.", "b.") for name, value in plain_vqgan().items()}
    torch_writer.save(tmp_path / "last.ckpt", torch_writer.tensors(weights))
    with pytest.raises(CheckpointError, match=r"last.ckpt: holds several such modules \(a., b.\)"):
        import_vqgan(tmp_path / "last.ckpt", SIDE)


@pytest.mark.parametrize("changes, side, says", [
    ({"nodot": np.zeros(1, "float32")}, SIDE, "has nodot, which no known VQGAN has"),
    ({"post_quant_conv.bias": np.full(16, np.nan, "float32")}, SIDE, "post_quant_conv.bias holds values that are"),
    ({}, 33, "image size of 33: .*33 is not a multiple of 2"), ({}, 0, "positive"),
    ({"encoder.conv_in.weight": np.zeros((), "float32")}, SIDE, "where 4 axes are due"),
    ({"encoder.down.0.block.999999.conv1.weight": np.zeros(1, "float32")}, SIDE, "beyond the"),
    ({"quantize.embedding.weight": np.zeros((40, 16), "int64")}, SIDE, "is int64 in the file and float32 in the model"),
])
def test_weights_that_no_vqgan_has_are_refused_in_words(tmp_path, changes, side, says):
    torch_writer.save(tmp_path / "last.ckpt", torch_writer.tensors(plain_vqgan() | changes))
    with pytest.raises(CheckpointError, match=f"last.ckpt.*{says}") as refused:
        import_vqgan(tmp_path / "last.ckpt", side)
    assert "\\" not in str(refused.value) and "(\\d" not in str(refused.value)
