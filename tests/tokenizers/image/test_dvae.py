"""The dVAE: widths of the public network, schedules, relaxation, training, refusals."""

import numpy as np
import paddle
import pytest

from vilg import config, release
from vilg.errors import ConfigError, DataError
from vilg.losses.reconstruction import logit_laplace_loss
from vilg.tokenizers.image.convert import convert_dvae, infer_dvae_config
from vilg.tokenizers.image.dvae import DVAE, DVAEConfig
from vilg.tokenizers.image.pixels import to_laplace

import reference

SMALL = {"image_size": 16, "channels": 16, "multipliers": [1, 2, 2], "blocks": 1, "codebook_size": 24,
         "decoder_channels": 8, "temperature_steps": 40, "kl_steps": 20, "kl_weight": 0.1}


def small(**settings) -> DVAE:
    paddle.seed(1)
    return DVAE(config.from_dict(DVAEConfig, SMALL | settings))


def pictures(count: int = 2, side: int = 16) -> paddle.Tensor:
    paddle.seed(2)
    return paddle.rand([count, 3, side, side]) * 2 - 1


def test_the_full_network_has_the_public_networks_weights():
    with paddle.LazyGuard():
        tokenizer = DVAE(DVAEConfig())
    own = {name: tuple(value.shape) for name, value in tokenizer.state_dict().items()}
    shapes = reference.public_dvae_shapes(width=256, stages=[1, 2, 4, 8], blocks=2, codes=8192, init=128)
    public = [{name: np.broadcast_to(np.float32(0), shape) for name, shape in half.items()} for half in shapes]
    assert {name: value.shape for name, value in convert_dvae(*public).items()} == own
    assert infer_dvae_config(*public, 256) == DVAEConfig()
    assert tokenizer.grid == (32, 32) and tokenizer.code_dim == 128


def test_pictures_become_codes_and_pictures_again(tmp_path):
    tokenizer = small()
    codes = tokenizer.encode(pictures())
    assert tokenizer.grid == (4, 4) and codes.shape == [2, 16] and codes.dtype == paddle.int64
    images = tokenizer.decode(codes)
    assert images.shape == [2, 3, 16, 16] and float(images.abs().max()) <= 1
    release.write(tmp_path, "image_tokenizer", tokenizer, dtype=None)
    again = release.read(tmp_path, "image_tokenizer")
    np.testing.assert_array_equal(again.decode(codes).numpy(), images.numpy())


def test_hard_codes_are_used_outside_training():
    tokenizer = small()
    tokenizer.eval()
    result = tokenizer.reconstruct(pictures())
    expected = tokenizer.reconstructor(tokenizer.embed(tokenizer.encode(pictures())))
    np.testing.assert_allclose(result.raw.numpy(), expected.numpy(), atol=1e-5)


def test_a_low_temperature_brings_relaxed_codes_close_to_hard_ones():
    tokenizer = small(temperature=1e-4, temperature_end=1e-4)
    paddle.seed(0)
    tokenizer.encoder.conv_out.weight.set_value(tokenizer.encoder.conv_out.weight * 1e7)
    relaxed = tokenizer.reconstruct(pictures()).raw
    tokenizer.eval()
    np.testing.assert_allclose(relaxed.numpy(), tokenizer.reconstruct(pictures()).raw.numpy(), atol=1e-3)


def test_a_step_relaxes_codes_at_its_own_temperature():
    tokenizer, relaxed = small(temperature=1.0, temperature_end=1e-4), []
    for step in (1, 40):
        paddle.seed(0)  # the same noise
        relaxed.append(tokenizer.reconstruct(pictures(), step).raw.numpy())
    assert not np.allclose(*relaxed, atol=1e-4)


def test_schedules_begin_and_end_where_the_config_says():
    tokenizer = small(temperature=1.0, temperature_end=0.0625)
    assert [tokenizer.temperature_at(step) for step in (0, 40, 900)] == pytest.approx([1.0, 0.0625, 0.0625])
    assert tokenizer.temperature_at(20) == pytest.approx((1 + 0.0625) / 2)
    assert [tokenizer.kl_weight_at(step) for step in (0, 20, 900)] == pytest.approx([0.0, 0.1, 0.1])


def test_the_kl_term_is_that_of_the_categorical_to_uniform():
    tokenizer = small()
    logits = tokenizer.logits(pictures()).numpy().transpose(0, 2, 3, 1).reshape(-1, 24).astype("float64")
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kl = (share * np.log(share * 24)).sum(-1).mean() * 16 / (3 * 16 * 16)
    assert float(tokenizer.reconstruct(pictures(), step=20).latent_loss) == pytest.approx(0.1 * kl, rel=1e-3)
    assert float(tokenizer.reconstruct(pictures(), step=0).latent_loss) == 0


def test_training_lowers_the_likelihood_loss_and_reaches_every_weight():
    tokenizer = small()
    optimizer = paddle.optimizer.Adam(3e-3, parameters=tokenizer.parameters())
    x, losses = pictures(4) * 0.1 + 0.4, []
    for step in range(25):
        result = tokenizer.reconstruct(x, step)
        loss = logit_laplace_loss(result.raw, to_laplace(x)) + result.latent_loss
        loss.backward()
        assert all(np.abs(weight.grad.numpy()).max() > 0 for weight in tokenizer.parameters())
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.2
    assert 0 < tokenizer.after_step(25)["codebook_usage"] <= 1


LOCAL = {"patch": 4, "multipliers": [1], "local_encoder": True}


def test_a_local_encoder_reads_nothing_but_the_codes_own_pixels():
    tokenizer = small(**LOCAL)
    assert tokenizer.grid == (4, 4)
    x, y = pictures(1), pictures(1)
    y[:, :, :, 4:] = -y[:, :, :, 4:]
    ours, theirs = (tokenizer.logits(images).numpy() for images in (x, y))
    np.testing.assert_array_equal(ours[..., 0], theirs[..., 0])
    assert np.abs(ours[..., 1:] - theirs[..., 1:]).max() > 1e-3
    assert tokenizer.decode(tokenizer.encode(x)).shape == x.shape


def test_a_start_from_pictures_gives_every_patch_its_own_code_and_like_patches_like_vectors():
    tokenizer = small(**LOCAL, start="pictures")
    x = pictures(4)
    before = len(np.unique(tokenizer.encode(x).numpy()))
    tokenizer.reconstruct(x, step=0)
    codes = tokenizer.encode(x)
    assert len(np.unique(codes.numpy())) == 24 > 2 * before
    weights = tokenizer.encoder.conv_out.weight.numpy()
    tokenizer.reconstruct(pictures(2), step=0)  # a second part of an accumulated step changes nothing
    np.testing.assert_array_equal(tokenizer.encoder.conv_out.weight.numpy(), weights)
    tokenizer.start_from(paddle.zeros([1, 3, 16, 16]))  # fewer different patches than codes
    assert np.isfinite(tokenizer.encoder.conv_out.weight.numpy()).all()


def test_the_encoder_learns_at_its_own_rate():
    tokenizer = small(encoder_rate=0.25)
    optimizer = paddle.optimizer.Adam(1e-2, parameters=tokenizer.parameters())
    before = {name: value.numpy() for name, value in tokenizer.named_parameters()}
    logit_laplace_loss(tokenizer.reconstruct(pictures(), 0).raw, to_laplace(pictures())).backward()
    optimizer.step()  # the first step of Adam moves every weight by the rate
    moved = {name: np.abs(value.numpy() - before[name]).max() for name, value in tokenizer.named_parameters()}
    assert moved["encoder.conv_in.weight"] == pytest.approx(0.25e-2, rel=1e-3)
    assert moved["reconstructor.conv_out.weight"] == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("settings, word", [
    ({"encoder_rate": 0.0}, "encoder_rate"), ({"patch": 3}, "patch 3"),
    ({"temperature_end": 0.0}, "reaches zero"), ({"temperature": -1.0}, "reaches zero"),
    ({"image_size": 18}, "multiple"),
    ({"channels": 18}, "multiple of 4"), ({"kl_weight": -1.0}, "kl_weight"), ({"kl_steps": 0}, "positive")])
def test_contradictions_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        small(**settings)


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(DataError, match="resize"):
        small().encode(pictures(side=24))
    with pytest.raises(DataError, match="0 … 23"):
        small().decode(paddle.full([1, 16], 24, dtype="int64"))
