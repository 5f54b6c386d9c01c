"""Losses under emulated O2: their own arithmetic is float32, whatever precision the model around them computes in."""
import half_emulation
import numpy as np
import paddle
import pytest
from paddle import nn

from vilg.losses.adversarial import hinge_discriminator_loss, hinge_generator_loss
from vilg.losses.picture import PictureLoss, PixelLossConfig
from vilg.losses.sequence import image_to_text_loss, text_to_image_loss
from vilg.losses.total import weighted_sum
from vilg.nn.layers import OutputHead
from vilg.tokenizers.image.quantize import QuantizerConfig, VectorQuantizer, divergence
from vilg.weights.files import as_array, fingerprint, read_weights, save_weights

VOCABULARY, WIDTH = 300, 16


@pytest.fixture
def half(monkeypatch):
    """Inside, operators compute as on a device at level O2 in bfloat16."""
    half_emulation.install(monkeypatch.setattr)
    with paddle.amp.auto_cast(level="O2", dtype="bfloat16"):
        yield


class Heads(nn.Layer):
    def __init__(self):
        super().__init__()
        self.image_head = self.text_head = OutputHead(WIDTH, VOCABULARY, std=0.7)


def bfloat16(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return paddle.to_tensor(values).astype("bfloat16")


def nll(heads, hidden, labels):
    """−log softmax of the rounded logits, in float64."""
    logits = heads.image_head(hidden).astype("float32").numpy().astype("float64")
    rows = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return rows


def test_half_precision_models_have_a_float32_nll(half):
    heads, hidden = Heads(), bfloat16(4, 600, WIDTH)
    labels = np.random.default_rng(1).integers(0, VOCABULARY, [4, 600])
    found = text_to_image_loss(heads, hidden, paddle.to_tensor(labels))
    assert found.dtype == paddle.float32
    assert found.item() == pytest.approx(nll(heads, hidden.reshape([-1, WIDTH]), labels.reshape(-1)).mean(), rel=1e-5)


def test_half_precision_counts_every_target_token(half):
    heads, hidden = Heads(), bfloat16(4, 600, WIDTH)  # 4 · 599 tokens, of which bfloat16 would count 2400
    labels = np.random.default_rng(1).integers(0, VOCABULARY, [4, 600])
    length = paddle.to_tensor([600, 600, 599, 333])
    found = image_to_text_loss(heads, hidden, paddle.to_tensor(labels), length, paddle.zeros([4], "int64"))
    rows = nll(heads, hidden[:, :-1].reshape([-1, WIDTH]), labels[:, 1:].reshape(-1)).reshape(4, 599)
    kept = np.concatenate([row[:count - 1] for row, count in zip(rows, length.numpy())])
    assert found.dtype == paddle.float32 and found.item() == pytest.approx(kept.mean(), rel=1e-5)


def test_half_precision_sums_of_losses_keep_their_digits(half):
    found = weighted_sum([(1.0, paddle.to_tensor(5.03125)), (0.1, paddle.to_tensor(0.011))])
    assert found.dtype == paddle.float32 and found.item() == pytest.approx(5.03235, rel=1e-6)


def test_half_precision_images_are_compared_in_float32(half):
    raw = bfloat16(2, 3, 32, 32)
    images = paddle.to_tensor(np.random.default_rng(1).uniform(-1, 1, (2, 3, 32, 32)).astype("float32"))
    loss, _ = PictureLoss(PixelLossConfig(l1=1.0, l2=0.5, perceptual="none"))(raw, images)
    error = raw.astype("float32").numpy().astype("float64") - images.numpy()
    assert loss.dtype == paddle.float32
    assert loss.item() == pytest.approx(np.abs(error).mean() + 0.5 * (error ** 2).mean(), rel=1e-5)


def test_half_precision_adversaries_are_compared_in_float32(half):
    real, fake = bfloat16(2, 1, 30, 30), bfloat16(2, 1, 30, 30, seed=1)
    x, y = (value.astype("float32").numpy().astype("float64") for value in (real, fake))
    expected = 0.5 * (np.maximum(0, 1 - x).mean() + np.maximum(0, 1 + y).mean())
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-5)
    assert hinge_generator_loss(fake).item() == pytest.approx(-y.mean(), rel=1e-5)


def test_half_precision_divergence_is_float32(half):
    logits = bfloat16(64, 50) * 3
    values = logits.astype("float32").numpy().astype("float64")
    share = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    expected = 0.3 * (share * np.log(share * 50)).sum(-1).mean()
    assert divergence(logits, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_vectors_find_their_nearest_code(half):
    quantizer = VectorQuantizer(QuantizerConfig(codebook_size=512), 8)
    table = 1.0 + 0.01 * np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
    quantizer.codebook.set_value(table)
    z = paddle.to_tensor(1.0 + 0.01 * np.random.default_rng(1).normal(size=(100, 8)).astype("float32"))
    z = z.astype("bfloat16")
    vectors = z.astype("float32").numpy()
    nearest = ((vectors[:, None] - table[None]) ** 2).sum(-1).argmin(-1)
    assert (quantizer.codes_of(z).numpy() == nearest).mean() > 0.95


def test_bfloat16_weights_are_written_and_fingerprinted_by_value(tmp_path):
    half = {"weight": bfloat16(4, 5)}
    full = {"weight": half["weight"].astype("float32")}
    assert as_array(half["weight"]).dtype == np.float32
    assert fingerprint(half) == fingerprint(full)
    save_weights(tmp_path / "half.safetensors", half)
    found = read_weights(tmp_path / "half.safetensors")["weight"]
    np.testing.assert_array_equal(found, full["weight"].numpy())
    save_weights(tmp_path / "small.safetensors", half, dtype="float16")
    np.testing.assert_allclose(read_weights(tmp_path / "small.safetensors")["weight"], found, rtol=1e-3)
