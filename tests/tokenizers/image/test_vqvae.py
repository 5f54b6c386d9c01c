"""VQVAE and VQGAN: the paper's f = 8 network, shapes, folders on disk, refusals."""

import numpy as np
import paddle
import pytest

from vilg import config, release
from vilg.errors import CheckpointError, ConfigError, DataError, VilgError
from vilg.tokenizers.image.convert import convert_vqgan, infer_vqgan_config
from vilg.tokenizers.image.kinds import build_image_tokenizer
from vilg.tokenizers.image.quantize import QuantizerConfig
from vilg.tokenizers.image.vqvae import VQGAN, VQVAE, VQConfig
from vilg.weights.files import fingerprint, read_weights, save_weights

import reference

PAPER = {"channels": 128, "multipliers": [1, 1, 2, 4], "blocks": 2, "attention": {3}, "z": 256, "d": 256, "codes": 8192}


def small(**settings) -> VQVAE:
    paddle.seed(1)
    values = {"kind": "vqvae", "image_size": 16, "channels": 8, "multipliers": [1, 2], "blocks": 1, "decoder_blocks": 1,
              "attention_resolutions": [8], "norm_groups": 4, "z_channels": 6, "code_dim": 5,
              "quantizer": {"codebook_size": 20}} | settings
    return build_image_tokenizer(config.from_dict(VQConfig, values))


def pictures(count: int = 2, side: int = 16) -> paddle.Tensor:
    paddle.seed(2)
    return paddle.rand([count, 3, side, side]) * 2 - 1


@pytest.mark.parametrize("gumbel", [False, True])
def test_the_papers_network_has_the_public_networks_weights(gumbel):
    settings = VQConfig() if not gumbel else VQConfig(quantizer=QuantizerConfig(kind="gumbel", codebook_size=8192))
    tokenizer = build_image_tokenizer(settings)
    assert type(tokenizer) is VQGAN and tokenizer.grid == (32, 32) and tokenizer.codebook_size == 8192
    own = {name: tuple(value.shape) for name, value in tokenizer.state_dict().items()}
    shapes = reference.public_vqgan_shapes(**PAPER, gumbel=gumbel)
    public = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert {name: value.shape for name, value in convert_vqgan(public).items()} == own
    assert infer_vqgan_config(public, 256) == settings
    encoder = sum(int(value.size) for name, value in tokenizer.encoder.state_dict().items())
    decoder = sum(int(value.size) for name, value in tokenizer.reconstructor.decoder.state_dict().items())
    counts = [sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(half + "."))
              for half in ("encoder", "decoder")]
    assert [encoder, decoder] == counts


def test_pictures_become_codes_and_pictures_again():
    tokenizer = small()
    codes = tokenizer.encode(pictures())
    assert tokenizer.grid == (8, 8) and codes.shape == [2, 64] and codes.dtype == paddle.int64
    z = tokenizer.embed(codes)
    assert z.shape == [2, 5, 8, 8]
    chosen = tokenizer.quantizer.codebook.numpy()[codes.numpy()[1, 2 * 8 + 3]]
    np.testing.assert_array_equal(z.numpy()[1, :, 2, 3], chosen)
    images = tokenizer.decode(codes)
    assert images.shape == [2, 3, 16, 16] and float(images.abs().max()) <= 1
    np.testing.assert_array_equal(images.numpy(), tokenizer.decode_embeddings(z).numpy())


def test_folding_patches_keeps_the_picture_in_place():
    tokenizer = small(patch=2, attention_resolutions=[])
    assert tokenizer.grid == (4, 4)
    x = pictures()
    x.stop_gradient = False
    tokenizer.reconstructor(tokenizer.embed(tokenizer.encode(x)))[0, :, 3, 5].sum().backward()
    tokenizer.clear_gradients()
    tokenizer.vectors(x)[0, :, 0, 0].sum().backward()
    reach = np.abs(x.grad.numpy()[0]).sum(0)
    assert reach[:4, :4].min() > 0, "the first code sees all of its own pixels"


def test_training_lowers_the_papers_loss_and_reaches_every_weight():
    tokenizer = small(quantizer={"codebook_size": 20, "kind": "straight_through", "revive_every": 1})
    optimizer = paddle.optimizer.Adam(3e-3, parameters=tokenizer.parameters())
    x, losses = pictures(4), []
    for step in range(1, 31):
        result = tokenizer.reconstruct(x)
        loss = ((result.raw - x) ** 2).mean() + result.latent_loss
        loss.backward()
        if step == 2:
            silent = [name for name, weight in tokenizer.named_parameters()
                      if weight.grad is None or not np.abs(weight.grad.numpy()).max() > 0]
            # A shift of all keys alike changes no attention weight.
            assert all(name.endswith("key.bias") for name in silent)
        optimizer.step()
        optimizer.clear_grad()
        figures = tokenizer.after_step(step)
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert figures["codebook_usage"] > 0.5


def test_a_folder_holds_the_tokenizer(tmp_path):
    tokenizer = small()
    mark = release.write(tmp_path / "t", "image_tokenizer", tokenizer)
    again = release.read(tmp_path / "t", "image_tokenizer")
    assert again.config == tokenizer.config and not again.training
    assert fingerprint(tokenizer.state_dict()) == fingerprint(again.state_dict())
    assert mark == release.open_folder(tmp_path / "t").said["fingerprint"]
    for name, value in tokenizer.state_dict().items():
        np.testing.assert_allclose(again.state_dict()[name].numpy(), value.numpy(), atol=1e-3)


def test_an_average_replaces_weights_by_name(tmp_path):
    tokenizer = small()
    average = {"encoder.conv_in.bias": np.full(8, 0.5, "float32")}
    release.write(tmp_path, "image_tokenizer", tokenizer, average, dtype=None)
    again = release.read(tmp_path, "image_tokenizer")
    np.testing.assert_array_equal(again.encoder.conv_in.bias.numpy(), 0.5)
    np.testing.assert_array_equal(again.encoder.conv_out.weight.numpy(), tokenizer.encoder.conv_out.weight.numpy())


def test_two_halves_of_different_folders_are_refused(tmp_path):
    release.write(tmp_path, "image_tokenizer", small())
    state = read_weights(tmp_path / "model.safetensors")
    save_weights(tmp_path / "model.safetensors", {name: value + 1 for name, value in state.items()})
    with pytest.raises(CheckpointError, match="fingerprint"):
        release.read(tmp_path, "image_tokenizer")


@pytest.mark.parametrize("content, word", [
    ("kind: bidirectional\n", "does not describe"),
    ("kind: image_tokenizer\ntokenizer: {kind: other}\n", "known kinds"),
    ("kind: image_tokenizer\n", "does not describe")])
def test_a_folder_of_something_else_is_refused(tmp_path, content, word):
    save_weights(tmp_path / "model.safetensors", small().state_dict())
    (tmp_path / "model.yaml").write_text(content)
    with pytest.raises(VilgError, match=word):
        release.read(tmp_path, "image_tokenizer")


@pytest.mark.parametrize("call, word", [
    (lambda t: t.encode(pictures(side=24)), r"\[B, 3, 16, 16\].*resize"),
    (lambda t: t.encode(paddle.zeros([2, 1, 16, 16])), r"\[B, 3, 16, 16\]"),
    (lambda t: t.decode(paddle.full([1, 64], 20, dtype="int64")), "0 … 19, got 20"),
    (lambda t: t.decode(paddle.full([1, 64], -1, dtype="int64")), "0 … 19"),
    (lambda t: t.decode(paddle.zeros([1, 60], dtype="int64")), "8×8 grid"),
    (lambda t: t.decode(paddle.zeros([1, 64])), "integers"),
    (lambda t: t.decode_embeddings(paddle.zeros([1, 4, 8, 8])), r"\[B, 5, 8, 8\]")])
def test_what_does_not_fit_is_refused_in_words(call, word):
    with pytest.raises(DataError, match=word):
        call(small())


@pytest.mark.parametrize("settings, word", [
    ({"image_size": 18, "patch": 4}, "not a multiple"), ({"norm_groups": 3}, "norm_groups"),
    ({"attention_resolutions": [5]}, "attention_resolutions"), ({"blocks": 0}, "positive"),
    ({"multipliers": []}, "multipliers")])
def test_contradictions_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        small(**settings)


def test_a_patch_encoder_sees_its_own_patch_alone():
    tokenizer = small(encoder="patch")
    tokenizer.eval()
    images = paddle.uniform([1, 3, 16, 16])
    changed = images.clone()
    changed[:, :, :2, :2] = 0.0
    before, after = tokenizer.vectors(images).numpy(), tokenizer.vectors(changed).numpy()
    differs = np.abs(before - after).max(1)[0] > 1e-4
    assert differs[0, 0] and differs.sum() == 1
    assert before.shape == (1, tokenizer.code_dim, *tokenizer.grid)
