"""The end-to-end path: what the picture's loss reaches, and what does not fit."""
import numpy as np
import paddle
import pytest

from vilg import config as configs
from vilg.errors import ConfigError, ShapeError
from vilg.losses.reconstruction import pixel_loss
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.models.end_to_end import EndToEndModel, EndToEndReconstructor, ReconstructorConfig
from vilg.tokenizers.image.dvae import DVAEConfig
from vilg.tokenizers.image.kinds import build_image_tokenizer
from vilg.tokenizers.image.quantize import QuantizerConfig
from vilg.tokenizers.image.vqvae import VQConfig

GENERATOR = dict(layers=2, width=8, heads=2, vocab_size=20, codebook_size=6, text_length=4, rows=2, columns=2)
HEADS = {"image_head.weight", "image_head.bias", "text_head.weight", "text_head.bias"}


def make_tokenizer(kind="vqvae", **changes):
    if kind == "dvae":
        return build_image_tokenizer(DVAEConfig(image_size=4, channels=4, multipliers=[1, 2], blocks=1, codebook_size=6,
                                                decoder_channels=4))
    return build_image_tokenizer(VQConfig(**dict(
        kind="vqvae", image_size=4, channels=4, multipliers=[1, 2], blocks=1, decoder_blocks=1,
        attention_resolutions=[], norm_groups=2, z_channels=4, code_dim=4,
        quantizer=QuantizerConfig(kind="straight_through", codebook_size=6)) | changes))


def make_model(tokenizer=None, **changes):
    paddle.seed(0)
    tokenizer = tokenizer or make_tokenizer()
    generator = BidirectionalTransformer(BidirectionalConfig(**GENERATOR))
    reconstructor = EndToEndReconstructor(ReconstructorConfig(**changes), GENERATOR["width"], tokenizer)
    return EndToEndModel(generator, reconstructor)


def inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    return (paddle.to_tensor(rng.integers(0, 20, (3, 4))), paddle.to_tensor([4, 3, 2]),
            paddle.to_tensor(rng.integers(0, 6, (3, 4))),
            paddle.to_tensor(rng.uniform(-1, 1, (3, 3, 4, 4))).astype(dtype))


def test_the_picture_moves_all_of_the_generator_before_the_map_and_no_head():
    model = make_model()
    text, length, codes, images = inputs()
    before = {name: value.numpy().copy() for name, value in model.named_parameters()}
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    pixel_loss(model(text, length, codes), images, 1.0, 1.0).backward()
    optimizer.step()
    still = {name for name, value in model.named_parameters() if np.array_equal(value.numpy(), before[name])}
    # A bias of attention's keys shifts all scores of a query alike, so nothing ever moves it.
    silent = {"reconstructor.network.decoder.middle.attention.key.bias"}
    assert still - silent == {f"generator.{name}" for name in HEADS}


@pytest.fixture
def double():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def test_the_gradient_agrees_with_finite_differences(double):
    model = make_model(map_layers=1)
    text, length, codes, images = inputs("float64")

    def loss():
        return pixel_loss(model(text, length, codes), images, 0.0, 1.0)

    loss().backward()
    rng, checked = np.random.default_rng(1), 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        value, gradient = parameter.numpy().copy(), parameter.grad.numpy()
        assert gradient.dtype == np.float64
        direction = rng.standard_normal(value.shape)
        slopes, step = [], 1e-5
        for sign in (1, -1):
            parameter.set_value(value + sign * step * direction)
            slopes.append(float(loss()))
        parameter.set_value(value)
        numeric, exact = (slopes[0] - slopes[1]) / (2 * step), float((gradient * direction).sum())
        assert abs(numeric - exact) <= 1e-5 * max(abs(exact), 1e-3), name
        checked += 1
    assert checked == len(model.parameters()) - len(HEADS)


@pytest.mark.parametrize("kind, channels", [("vqvae", 3), ("dvae", 6)])
def test_the_network_starts_as_the_tokenizers_own_or_afresh(kind, channels):
    paddle.seed(3)
    tokenizer = make_tokenizer(kind)
    own = {name: value.numpy() for name, value in tokenizer.reconstructor.state_dict().items()}

    def same(start):
        started = make_model(tokenizer, start=start).reconstructor.network.state_dict()
        assert started.keys() == own.keys()
        return [name for name, value in started.items() if np.array_equal(value.numpy(), own[name])]

    assert set(same("tokenizer")) == set(own)
    assert not [name for name in same("fresh") if name.endswith("conv_out.weight")]
    text, length, codes, _ = inputs()
    raw = make_model(tokenizer)(text, length, codes)
    assert list(raw.shape) == [3, channels, 4, 4] and list(tokenizer.picture_of(raw).shape) == [3, 3, 4, 4]


def test_training_the_network_leaves_the_tokenizer_alone():
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    before = {name: value.numpy().copy() for name, value in tokenizer.state_dict().items()}
    text, length, codes, images = inputs()
    pixel_loss(model(text, length, codes), images, 1.0, 1.0).backward()
    paddle.optimizer.SGD(0.1, parameters=model.parameters()).step()
    assert all(np.array_equal(value.numpy(), before[name]) for name, value in tokenizer.state_dict().items())


def test_the_map_starts_with_the_spread_of_the_code_vectors():
    tokenizer = make_tokenizer(code_dim=3, quantizer=QuantizerConfig(kind="straight_through", codebook_size=6))
    codes = paddle.arange(8).reshape([2, 4]) % 6
    vectors = tokenizer.embed(codes).transpose([0, 2, 3, 1]).reshape([-1, 3]).numpy()
    model = make_model(tokenizer, map_ratio=32)
    hidden = paddle.randn([64, 4, 8])
    z = model.reconstructor.embed(hidden).transpose([0, 2, 3, 1]).reshape([-1, 3]).numpy()
    np.testing.assert_allclose(z.mean(0), vectors.mean(0), atol=0.6 * vectors.std())
    np.testing.assert_allclose(z.std(0), vectors.std(0, ddof=1), rtol=0.5)


def test_with_token_anchor_training_begins_with_the_two_stage_picture_and_reaches_the_generator():
    tokenizer = make_tokenizer("dvae")
    model = make_model(tokenizer, anchor="token")
    text, length, codes, images = inputs()
    raw = model(text, length, codes)
    np.testing.assert_allclose(tokenizer.picture_of(raw).numpy(), tokenizer.decode(codes).numpy(), atol=1e-6)
    before = {name: value.numpy().copy() for name, value in model.named_parameters()}
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    for _ in range(2):  # the map's last layer is zero in the first step, so nothing before it moves
        pixel_loss(model(text, length, codes)[:, :3], images, 1.0, 1.0).backward()
        optimizer.step()
        optimizer.clear_grad()
    assert {name for name, value in model.named_parameters() if np.array_equal(value.numpy(), before[name])} == {
        f"generator.{name}" for name in HEADS}
    with pytest.raises(ShapeError, match="anchor: token"):
        model.reconstructor(model.generator.text_to_image_hidden(text, length, codes))


def test_a_reconstructor_of_another_width_or_grid_is_refused_with_both_numbers():
    generator = BidirectionalTransformer(BidirectionalConfig(**GENERATOR))
    wide = EndToEndReconstructor(ReconstructorConfig(), 16, make_tokenizer())
    with pytest.raises(ShapeError, match="width is 8 and the reconstructor's 16"):
        EndToEndModel(generator, wide)
    large = EndToEndReconstructor(ReconstructorConfig(), 8, make_tokenizer(image_size=8))
    with pytest.raises(ShapeError, match=r"grid is \(2, 2\) and the reconstructor's \(4, 4\)"):
        EndToEndModel(generator, large)
    with pytest.raises(ShapeError, match="16, 8"):
        large(paddle.zeros([1, 4, 8]))


@pytest.mark.parametrize("key", ["map_layers", "map_ratio"])
def test_a_map_without_layers_is_refused(key):
    with pytest.raises(ConfigError, match=key):
        configs.from_dict(ReconstructorConfig, {key: 0})


def test_the_own_slot_is_the_one_that_the_token_is_the_input_of():
    model = make_model(reads="own")
    model.eval()
    text, length, codes, _ = inputs()
    own = model.generator.text_to_image_own_hidden(text, length, codes)
    predicting = model.generator.text_to_image_hidden(text, length, codes)
    assert list(own.shape) == [3, 5, 8]
    np.testing.assert_allclose(own[:, :4].numpy(), predicting.numpy(), atol=1e-5)
    np.testing.assert_allclose(model(text, length, codes).numpy(), model.reconstructor(own[:, 1:]).numpy(), atol=1e-5)
    for place in range(4):  # token p is seen by its own slot and those after it alone
        changed = codes.clone()
        changed[:, place] = (codes[:, place] + 1) % 6
        moved = (model.generator.text_to_image_own_hidden(text, length, changed) - own).abs().max(axis=[0, 2]).numpy()
        assert (moved[:place + 1] < 1e-6).all() and (moved[place + 1:] > 1e-6).sum() >= 1 and moved[place + 1] > 1e-6


def test_a_mixture_of_codes_begins_with_the_expected_code_vectors():
    tokenizer = make_tokenizer("dvae")
    model = make_model(tokenizer, map="soft_codes")
    model.reconstructor.mixture.start_as(model.generator.image_head)
    text, length, codes, images = inputs()
    hidden = model.generator.text_to_image_hidden(text, length, codes)
    shares = paddle.nn.functional.softmax(model.generator.image_logits(hidden), axis=-1).numpy()
    table = tokenizer.embed(paddle.arange(8).reshape([2, 4]) % 6).transpose([0, 2, 3, 1]).reshape([8, -1]).numpy()[:6]
    z = model.reconstructor.embed(hidden).transpose([0, 2, 3, 1]).reshape([3, 4, -1]).numpy()
    np.testing.assert_allclose(z, shares @ table, atol=1e-5)
    pixel_loss(model(text, length, codes)[:, :3], images, 1.0, 1.0).backward()
    assert float(model.generator.image_embedding.weight.grad.abs().sum()) > 0  # from the first step on


def test_a_mixture_of_codes_with_an_anchor_is_refused():
    with pytest.raises(ConfigError, match="anchor: none"):
        configs.from_dict(ReconstructorConfig, {"map": "soft_codes", "anchor": "token"})
