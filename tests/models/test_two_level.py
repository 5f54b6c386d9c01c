"""The two-level model: what each direction sees, cached against full, dense features, the smoothed masked loss."""
import math
from pathlib import Path

import numpy as np
import paddle
import pytest

from vilg import config as configs
from vilg.errors import ConfigError, ShapeError
from vilg.generation.autoregressive import generate_text
from vilg.losses.sequence import image_to_text_loss, masked_image_loss
from vilg.models.dual_encoder.image import ImageTower, ImageTowerConfig
from vilg.models.dual_encoder.preprocess import PreprocessConfig
from vilg.models.two_level.features import FeatureReader
from vilg.models.two_level.model import TwoLevelConfig, TwoLevelTransformer
from vilg.tokenizers.image.dvae import DVAE, DVAEConfig
from vilg.tokenizers.image.kinds import build_image_tokenizer
from vilg.tokenizers.image.quantize import QuantizerConfig
from vilg.tokenizers.image.vqvae import VQConfig
from vilg.yaml_files import read_chain

SMALL = dict(layers=4, width=16, heads=2, vocab_size=20, codebook_size=12, text_length=5, rows=3, columns=4)


def build(**changes):
    paddle.seed(0)
    model = TwoLevelTransformer(TwoLevelConfig(**SMALL | changes))
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    model.eval()
    return model


@pytest.fixture
def model():
    return build()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    draw = lambda high, shape: paddle.to_tensor(rng.integers(0, high, shape))
    return {"text": draw(20, (3, 5)), "length": paddle.to_tensor([5, 3, 2]), "codes": draw(12, (3, 12)),
            "masked": paddle.to_tensor(rng.random((3, 12)) < 0.5), "image": draw(12, (3, 12)),
            "target_text": draw(20, (3, 5)), "target_length": paddle.to_tensor([4, 5, 5]),
            "prefix": paddle.to_tensor([0, 2, 3])}


def drawn_of(model, batch):
    return model.text_to_image_hidden(*(batch[name] for name in ("text", "length", "codes", "masked"))).numpy()


def told_of(model, batch):
    return model.image_to_text_hidden(*(batch[name] for name in ("image", "target_text", "target_length",
                                                                 "prefix"))).numpy()


def changed(batch, name, row, place, value):
    other = batch[name].numpy().copy()
    other[row, place] = value
    return batch | {name: paddle.to_tensor(other)}


@pytest.mark.parametrize("sparse", [True, False])
def test_both_streams_in_one_pass_equal_each_alone(batch, sparse):
    model = build(sparse=sparse)
    drawn, told = model.both_hidden(*batch.values())
    np.testing.assert_allclose(drawn.numpy(), drawn_of(model, batch), atol=1e-5)
    np.testing.assert_allclose(told.numpy(), told_of(model, batch), atol=1e-5)


def test_a_masked_token_is_not_read_and_a_known_one_is_seen_from_both_sides(model, batch):
    mask = np.zeros((3, 12), dtype=bool)
    mask[0, 6] = True
    batch["masked"] = paddle.to_tensor(mask)
    base, code = drawn_of(model, batch), batch["codes"].numpy()
    np.testing.assert_array_equal(drawn_of(model, changed(batch, "codes", 0, 6, (code[0, 6] + 1) % 12)), base)
    for place in (0, 5, 7, 11):
        other = drawn_of(model, changed(batch, "codes", 0, place, (code[0, place] + 1) % 12))
        assert np.abs(other[0, 6] - base[0, 6]).max() > 1e-4, f"token 6 does not see token {place}"
        np.testing.assert_allclose(other[1:], base[1:], atol=1e-6)
    assert np.abs(drawn_of(model, changed(batch, "masked", 0, 6, False))[0] - base[0]).max() > 1e-3


def test_drawing_reads_the_text_and_not_its_padding(model, batch):
    base, text = drawn_of(model, batch), batch["text"].numpy()
    assert np.abs(drawn_of(model, changed(batch, "text", 1, 2, (text[1, 2] + 1) % 20))[1] - base[1]).max() > 1e-3
    np.testing.assert_allclose(drawn_of(model, changed(batch, "text", 1, 3, (text[1, 3] + 1) % 20)), base, atol=1e-6)


@pytest.mark.parametrize("width", [0, 6])
def test_cached_image_to_text_equals_the_full_forward(width):
    model = build(features="encoder" if width else "codes", feature_width=width)
    paddle.seed(2)
    image = paddle.randn([3, 12, width]) if width else paddle.randint(0, 12, [3, 12])
    prompt, prefix = paddle.to_tensor([[1, 0], [1, 4], [1, 9]]), paddle.to_tensor([0, 2, 2])
    written = generate_text(model, image, prompt, prefix, max_tokens=2).numpy()
    assert len({tuple(row) for row in written}) > 1, "images and questions make no difference"
    for row in range(3):
        given = prompt.numpy()[row, :max(1, int(prefix[row]))].tolist()
        for step in range(2):
            text = paddle.to_tensor([given + written[row, :step].tolist()])
            hidden = model.image_to_text_hidden(image[row:row + 1], text, paddle.to_tensor([text.shape[1]]),
                                                prefix[row:row + 1])
            assert int(model.text_logits(hidden[0, text.shape[1] - 1]).argmax()) == written[row, step]


def test_dense_features_are_read_cell_by_cell_and_codes_not_at_all(batch):
    model = build(features="encoder", feature_width=6)
    paddle.seed(1)
    batch["image"] = paddle.randn([3, 12, 6])
    base = told_of(model, batch)
    for cell in (0, 7):
        other = changed(batch, "image", 0, cell, np.ones(6, "float32"))
        assert np.abs(told_of(model, other)[0] - base[0]).max() > 1e-3
    swapped = batch | {"image": batch["image"].numpy()[:, ::-1].copy()}
    swapped["image"] = paddle.to_tensor(swapped["image"])
    assert np.abs(told_of(model, swapped) - base).max() > 1e-3, "places make no difference"
    for wrong in (paddle.randn([3, 12, 5]), paddle.randint(0, 12, [3, 12])):
        with pytest.raises(ShapeError, match=r"features of shape .* \[batch, 12, 6\]"):
            model.image_to_text_hidden(wrong, *(batch[name] for name in ("target_text", "target_length", "prefix")))


def test_the_smoothed_loss_is_that_of_masked_slots_by_definition(model, batch):
    hidden = paddle.to_tensor(drawn_of(model, batch), stop_gradient=False)
    loss = masked_image_loss(model, hidden, batch["codes"], batch["masked"], smoothing=0.2)
    loss.backward()
    mask, codes = batch["masked"].numpy(), batch["codes"].numpy()
    plain = paddle.to_tensor(hidden.numpy(), stop_gradient=False)
    log_p = paddle.nn.functional.log_softmax(model.image_logits(plain), axis=-1)
    target = 0.8 * np.eye(12, dtype="float32")[codes] + 0.2 / 12
    wanted = -(log_p * paddle.to_tensor(target * mask[..., None])).sum() / int(mask.sum())
    np.testing.assert_allclose(float(loss), float(wanted), rtol=1e-5)
    gradients = {name: value.grad.numpy().copy() for name, value in model.image_head.named_parameters()}
    model.clear_gradients()
    wanted.backward()
    np.testing.assert_allclose(hidden.grad.numpy(), plain.grad.numpy(), atol=1e-6)
    for name, value in model.image_head.named_parameters():
        np.testing.assert_allclose(gradients[name], value.grad.numpy(), atol=1e-6)
    assert not hidden.grad.numpy()[~mask].any()


def test_nothing_masked_is_no_loss(model, batch):
    hidden = paddle.to_tensor(drawn_of(model, batch), stop_gradient=False)
    loss = masked_image_loss(model, hidden, batch["codes"], paddle.zeros([3, 12], "bool"), 0.1)
    loss.backward()
    assert float(loss) == 0 and not hidden.grad.numpy().any()


def test_every_parameter_learns(batch):
    model = build(features="encoder", feature_width=6)
    model.train()
    batch["image"] = paddle.randn([3, 12, 6])
    drawn, told = model.both_hidden(*batch.values())
    labels = batch["target_text"], batch["target_length"], batch["prefix"]
    (masked_image_loss(model, drawn, batch["codes"], batch["masked"], 0.1)
     + image_to_text_loss(model, told, *labels)).backward()
    assert [name for name, parameter in model.named_parameters()
            if parameter.grad is None or not float(parameter.grad.abs().max())] == []


@pytest.mark.parametrize("changes,says", [({"features": "encoder"}, "feature_width"), ({"feature_width": 4}, "codes"),
                                          ({"features": "pixels"}, "features"), ({"heads": 3}, "multiple of heads")])
def test_contradictions_in_the_config_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        configs.from_dict(TwoLevelConfig, SMALL | changes)


def vqvae():
    return build_image_tokenizer(VQConfig(
        image_size=16, channels=8, multipliers=[1, 2, 2], blocks=1, decoder_blocks=1, attention_resolutions=[],
        norm_groups=4, z_channels=8, code_dim=6, quantizer=QuantizerConfig(kind="straight_through", codebook_size=12)))


def dvae():
    return DVAE(DVAEConfig(image_size=16, channels=8, multipliers=[1, 2, 2], blocks=1, codebook_size=12,
                           decoder_channels=8))


def tower(size=16):
    return ImageTower(ImageTowerConfig(layers=2, width=8, heads=2, image_size=size, patch_size=size // 4))


@pytest.mark.parametrize("make", [vqvae, dvae], ids=lambda make: make.__name__)
def test_encoder_features_are_what_is_quantized_in_raster_order(make):
    paddle.seed(0)
    tokenizer, images = make(), paddle.rand([2, 3, 16, 16]) * 2 - 1
    tokenizer.eval()
    reader = FeatureReader("encoder", tokenizer)
    seen = reader.of_images(images)
    rows, columns = tokenizer.grid
    assert seen.shape == [2, rows * columns, reader.width]
    back = seen.transpose([0, 2, 1]).reshape([2, reader.width, rows, columns])
    np.testing.assert_array_equal(tokenizer.quantize(back).numpy(), tokenizer.encode(images).numpy())
    codes = tokenizer.encode(images)
    np.testing.assert_allclose(reader.of_codes(codes).numpy(), reader.of_images(tokenizer.decode(codes)).numpy())


def test_tower_features_are_its_patches_at_the_levels_it_expects():
    paddle.seed(0)
    tokenizer, trunk, images = vqvae(), tower(32), paddle.rand([2, 3, 16, 16]) * 2 - 1
    trunk.eval()
    even = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # [-1, 1], as images already are
    seen = FeatureReader("vit", tokenizer, trunk, even).of_images(images)
    large = paddle.nn.functional.interpolate(images, [32, 32], mode="bicubic")
    np.testing.assert_allclose(seen.numpy(), trunk.patches(large).detach().numpy(), atol=1e-5)
    assert seen.shape == [2, 16, 8]
    other = FeatureReader("vit", tokenizer, trunk, PreprocessConfig()).of_images(images)
    assert np.abs(other.numpy() - seen.numpy()).max() > 1e-3


def test_features_that_do_not_fit_are_refused_with_both_sides():
    reader = FeatureReader("encoder", vqvae())
    grid = SMALL | {"rows": 4, "columns": 4, "features": "encoder", "feature_width": 9}
    with pytest.raises(ConfigError, match=r"feature_width: is 9, but encoder features are 6 wide"):
        reader.check(TwoLevelConfig(**grid), "task.model")
    with pytest.raises(ConfigError, match=r"16 patches, but the grid is 3×4 = 12"):
        FeatureReader("vit", vqvae(), tower()).check(
            TwoLevelConfig(**SMALL | {"features": "vit", "feature_width": 8}), "task.model")


def test_the_papers_size_is_built_without_being_allocated():
    path = Path(__file__).resolve().parents[2] / "configs" / "two_level" / "base.yaml"
    config = configs.from_dict(TwoLevelConfig, read_chain(path)["task"]["model"])
    with paddle.LazyGuard():
        model = TwoLevelTransformer(config)
    assert sum(math.prod(parameter.shape) for parameter in model.parameters()) == pytest.approx(231e6, rel=0.03)
