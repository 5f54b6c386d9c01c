"""Drawing in int8: the compiled step, the whole stack, and what batch and runs may not change."""
import numpy as np
import paddle
import pytest

from vilg import runtime
from vilg.app import pipeline
from vilg.errors import ConfigError
from vilg.generation.autoregressive import generate_images
from vilg.generation.decoding import compiled
from vilg.generation.decoding.decoder import image_decoder
from vilg.generation.decoding.source import prefill_text
from vilg.kernels.jit import switch as loops, team
from vilg.kernels.onednn import int8, precision
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.nn import functional

needs_int8 = pytest.mark.skipif(bool(int8.missing()), reason=int8.missing() or "int8 works")
TEXTS = paddle.to_tensor([[1, 7, 9, 12, 2], [1, 5, 2, 0, 0], [1, 4, 17, 2, 0]]), paddle.to_tensor([5, 3, 4])


@pytest.fixture
def in_int8():
    before = precision.bf16()
    precision.use_int8(True)
    yield
    precision.use_int8(False)
    precision.use_bf16(before)


@pytest.fixture
def model():
    paddle.seed(0)
    model = BidirectionalTransformer(BidirectionalConfig(
        layers=4, width=64, heads=4, vocab_size=20, codebook_size=24, text_length=5, rows=4, columns=5, conv_window=3))
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
    model.round_to_int8()
    model.eval()
    return model


def draw(model, rows=slice(None), samples=1):
    text, length = (part[rows] for part in TEXTS)
    return generate_images(model, text, length, num_images=samples, seeds=3, keep_hidden="predicting")


@needs_int8
def test_compiled_steps_and_prefill_are_the_full_forward_in_int8(model, in_int8):
    drawn = draw(model)
    with paddle.no_grad():
        full = model.text_to_image_hidden(*TEXTS, drawn.codes).numpy()
        precision.use_int8(False)
        exact = model.text_to_image_hidden(*TEXTS, drawn.codes).numpy()
    size = np.abs(exact).max()
    apart = np.abs(drawn.hidden.numpy() - full).mean() / size
    rounding = np.abs(full - exact).mean() / size
    # Attention differs in its last bits, which now and then rounds an activation to the next int8.
    assert apart < rounding / 3 and 1e-4 < rounding < 0.05


@pytest.fixture
def in_loops(monkeypatch):
    if not loops.active():
        pytest.skip(loops.reason())
    monkeypatch.setattr(compiled, "WORTH_LOOPS", 1)


@needs_int8
def test_steps_in_loops_are_the_full_forward_in_int8(model, in_int8, in_loops):
    drawn = draw(model)
    with paddle.no_grad():
        full = model.text_to_image_hidden(*TEXTS, drawn.codes).numpy()
        precision.use_int8(False)
        exact = model.text_to_image_hidden(*TEXTS, drawn.codes).numpy()
    size = np.abs(exact).max()
    apart, rounding = (np.abs(each - full).mean() / size for each in (drawn.hidden.numpy(), exact))
    # Keys and values of float16 round many an activation to the next int8.
    assert 0 < apart < rounding and 1e-4 < rounding < 0.05


@needs_int8
def test_what_lies_between_two_products_is_one_call(model, in_int8, in_loops):
    with paddle.no_grad():
        decoder = image_decoder(model, prefill_text(model, *TEXTS))
    first, *between, last = decoder._compiled._segments
    loops_of = [sum(isinstance(call, team.Prepared) for call in calls) for calls in between]
    assert loops_of == [4] * 3 and all(len(calls) == 8 for calls in between)  # a product in turn with a loop


@needs_int8
@pytest.mark.parametrize("left", ["qkv", "proj", "fc1", "fc2"])
def test_maps_left_in_float32_stand_between_those_in_loops(model, in_int8, in_loops, left):
    for block in model.stack.blocks:
        getattr(block, left).int8 = None
    drawn = draw(model)
    with paddle.no_grad():
        full = model.text_to_image_hidden(*TEXTS, drawn.codes).numpy()
    assert np.abs(drawn.hidden.numpy() - full).mean() / np.abs(full).max() < 0.01


@needs_int8
def test_a_sample_in_loops_has_the_same_bits_alone_and_among_others(model, in_int8, in_loops):
    alone, many = draw(model, slice(0, 1)), draw(model, samples=9)
    np.testing.assert_array_equal(alone.hidden.numpy()[0], many.hidden.numpy()[0])
    np.testing.assert_array_equal(draw(model, samples=9).hidden.numpy(), many.hidden.numpy())


@needs_int8
def test_loops_are_chosen_by_the_model_alone(model, in_int8, monkeypatch):
    before = draw(model).hidden.numpy()
    assert not compiled.in_loops(model.stack, 20)
    loops.active()  # they are loaded, and a small model goes on without
    np.testing.assert_array_equal(draw(model).hidden.numpy(), before)
    monkeypatch.setattr(compiled, "WORTH_LOOPS", 1)
    assert compiled.in_loops(model.stack, 20) == loops.active()
    precision.use_int8(False)
    assert not compiled.in_loops(model.stack, 20)


@needs_int8
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("left", ["qkv", "proj", "fc1", "fc2"])
def test_maps_left_in_other_arithmetic_stand_between_those_in_int8(model, in_int8, bf16, left):
    precision.use_bf16(bf16)
    for block in model.stack.blocks:
        getattr(block, left).int8 = None
    drawn = draw(model)
    with paddle.no_grad():
        full = model.text_to_image_hidden(*TEXTS, drawn.codes).numpy()
    assert np.abs(drawn.hidden.numpy() - full).mean() / np.abs(full).max() < 0.01


@needs_int8
@pytest.mark.parametrize("bf16", [False, True])
def test_a_sample_has_the_same_bits_alone_and_among_others_in_int8(model, in_int8, bf16):
    precision.use_bf16(bf16)
    alone, many = draw(model, slice(0, 1)), draw(model, samples=9)
    np.testing.assert_array_equal(alone.hidden.numpy()[0], many.hidden.numpy()[0])
    np.testing.assert_array_equal(draw(model, samples=9).hidden.numpy(), many.hidden.numpy())


@needs_int8
def test_losses_of_labels_are_those_of_int8_logits(model, in_int8):
    x, labels = paddle.randn([6, 64]), paddle.to_tensor([3, 0, -100, 19, 7, 7])
    with paddle.no_grad():
        expected = functional.cross_entropy(model.text_head(x), labels)
        np.testing.assert_array_equal(model.text_head(x, labels).numpy(), expected.numpy())
    recorded = model.text_head(x, labels)
    assert not recorded.stop_gradient and (recorded != expected).any()


@needs_int8
def test_recorded_products_are_those_of_the_float_weights(model, in_int8):
    x = paddle.randn([3, 64])
    layer = model.stack.blocks[0].fc1
    recorded = layer(x)
    assert not recorded.stop_gradient
    with paddle.no_grad():
        rounded = layer(x)
        precision.use_int8(False)
        np.testing.assert_array_equal(recorded.detach().numpy(), layer(x).numpy())
    assert (rounded != recorded).any()


def test_loading_in_int8_draws_in_int8_or_says_why_not(released_model, caplog, monkeypatch):
    try:
        loaded = pipeline.load(released_model, cpu_math="int8")
        assert precision.int8() == (not int8.missing()) == (loaded.model.image_head.int8 is not None)
        assert pipeline.load(released_model, cpu_math="fp32").model.image_head.int8 is None
        monkeypatch.setattr(int8, "missing", lambda: "the CPU has no VNNI")
        assert pipeline.load(released_model, cpu_math="int8").model.image_head.int8 is None
        assert "int8 cannot be had on this machine (the CPU has no VNNI); computing in" in caplog.text
    finally:
        runtime.set_cpu_math("fp32")


def test_training_in_int8_is_refused_in_one_sentence():
    from vilg import config

    with pytest.raises(ConfigError, match="int8 is for drawing"):
        config.from_dict(runtime.RuntimeConfig, {"cpu_math": "int8"})
