"""Cached decoding against the full forward pass, for every kind of layer."""
import numpy as np
import paddle
import pytest

from vilg.errors import ShapeError
from vilg.generation.autoregressive import generate_images
from vilg.generation.decoding import decoder, source
from vilg.generation.decoding.caches import LayerCache
from vilg.generation.decoding.compiled import ACTIVATION_STEPS
from vilg.kernels.onednn import precision
from vilg.kernels.onednn.switch import active
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.nn.attention.cached import DeviceMaths
from vilg.nn.attention.patterns import TARGET, Column, Convolution, Dense, Layout, Row
from vilg.nn.functional import stock_operators
from vilg.nn.program import Activation, Add, Attend, Fork, Map, Norm
from vilg.nn.transformer import ACTIVATIONS, Stack


def build(rows=5, columns=7, layers=4, window=3, **changes):
    paddle.seed(0)
    shape = dict(width=16, heads=2, vocab_size=20, codebook_size=12, text_length=5)
    model = BidirectionalTransformer(BidirectionalConfig(
        layers=layers, rows=rows, columns=columns, conv_window=window, **shape | changes))
    for parameter in model.parameters():  # far from the initial near-uniform predictions
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    model.eval()
    return model


def texts(*lengths):
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 20, (len(lengths), 5))
    ids[:, 0], ids[np.arange(len(lengths)), np.array(lengths) - 1] = 1, 2
    return paddle.to_tensor(ids), paddle.to_tensor(lengths)


def assert_cached_equals_full(model, text, length, samples):
    with paddle.no_grad():
        drawn = generate_images(model, text, length, num_images=samples, seeds=3, keep_hidden="predicting")
        full = model.text_to_image_hidden(text.repeat_interleave(samples, axis=0),
                                          length.repeat_interleave(samples, axis=0), drawn.codes)
    np.testing.assert_allclose(drawn.hidden.numpy(), full.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows,columns", [(4, 4), (5, 7), (8, 3), (1, 6)])
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(3)], ids=lambda pattern: pattern.name)
def test_every_step_of_every_layer_kind_equals_the_full_forward(pattern, rows, columns):
    model = build(rows, columns, layers=2)
    model.patterns = [pattern] * 2
    assert_cached_equals_full(model, *texts(5, 2, 3), samples=1)


@pytest.mark.parametrize("rows,columns", [(4, 4), (5, 7), (8, 3), (1, 6)])
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(3)], ids=lambda pattern: pattern.name)
def test_the_tokens_own_slots_take_one_step_more_and_draw_the_same(pattern, rows, columns):
    model = build(rows, columns, layers=2)
    model.patterns = [pattern] * 2
    text, length = texts(5, 2, 3)
    with paddle.no_grad():
        plain = generate_images(model, text, length, num_images=2, seeds=3)
        drawn = generate_images(model, text, length, num_images=2, seeds=3, keep_hidden="own")
        full = model.text_to_image_own_hidden(text.repeat_interleave(2, axis=0), length.repeat_interleave(2, axis=0),
                                              drawn.codes)
    assert np.array_equal(plain.codes.numpy(), drawn.codes.numpy())
    np.testing.assert_allclose(drawn.hidden.numpy(), full[:, 1:].numpy(), atol=1e-5, rtol=1e-5)


def test_the_papers_layers_with_many_samples_of_a_prompt():
    assert_cached_equals_full(build(layers=5, window=11), *texts(5, 3), samples=9)


def test_dense_caches_are_read_grain_by_grain(monkeypatch):
    monkeypatch.setattr("vilg.nn.attention.slots.STRAIGHT_GRAIN", 8)
    assert_cached_equals_full(build(sparse=False), *texts(4), samples=2)


@pytest.mark.parametrize("rows,columns", [(4, 4), (5, 7)])
def test_other_precisions_and_accelerators_decode_in_paddles_operators(rows, columns):
    model = build(rows, columns).to(dtype="float64")
    attention = decoder.image_attention(model, source.prefill_text(model, *texts(5)))
    assert isinstance(attention.maths, DeviceMaths)
    assert_cached_equals_full(model, *texts(5, 2, 3), samples=3)


@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(5)], ids=lambda pattern: pattern.name)
@pytest.mark.parametrize("rows,columns", [(4, 4), (5, 7), (9, 2)])
def test_caches_hold_exactly_what_the_rule_lets_a_query_see(pattern, rows, columns):
    layout = Layout(0, rows, columns)
    cache = LayerCache(pattern, layout)
    slots, all_tokens = cache.slots, np.arange(layout.image)
    buffers = np.full([slots.count, slots.entries], -1)
    for step in all_tokens:
        buffers[slots.place(step)] = step
        held, read = slots.held(step), buffers[slots.place(step)[0], slots.near(step)]
        np.testing.assert_array_equal(np.maximum(held, -1), read, "an entry does not hold the token it claims")
        wanted = all_tokens[pattern.sees(step, all_tokens, layout, TARGET)]
        assert sorted(held[cache.seen(step)]) == wanted.tolist()


def test_sparse_caches_are_small_and_read_little():
    layout = Layout(64, 32, 32)
    slots = {pattern.name: pattern.slots(layout) for pattern in (Dense(), Row(), Column(), Convolution())}
    assert {name: one.count * one.entries for name, one in slots.items()} == {
        "row": 33, "column": 1024, "conv": 6 * 32, "dense": 1024}
    most = {name: max(len(one.held(step)) for step in range(1024)) for name, one in slots.items()}
    assert most == {"row": 33, "column": 32, "conv": 6 * 11, "dense": 1024}


@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(3)], ids=lambda pattern: pattern.name)
def test_a_cache_past_its_end_is_refused_with_both_numbers(pattern):
    model = build(4, 5)
    model.patterns = [pattern] * 4
    attention = decoder.image_attention(model, source.prefill_text(model, *texts(5)))
    attention.step = 20
    with pytest.raises(ShapeError, match="holds 20 tokens, but token number 21 came"):
        attention(0, paddle.zeros([8, 1, 3, 2, 8]))
    with paddle.no_grad(), pytest.raises(ShapeError, match="holds 20 tokens, but token number 21 came"):
        one = decoder.image_decoder(model, source.prefill_text(model, *texts(5)))
        one.step(20, paddle.zeros([1, 16]))


def test_a_source_is_prefilled_once_for_all_samples(monkeypatch):
    model = build()
    seen = []
    forward = type(model.stack).forward

    def watched(self, x, attend):
        seen.append(x.shape)
        return forward(self, x, attend)

    monkeypatch.setattr(type(model.stack), "forward", watched)
    text, length = texts(5)
    prefilled = source.prefill_text(model, text, length)
    one = prefilled.nbytes()
    attention = decoder.image_attention(model, prefilled, samples=60)
    assert attention.rows == 60 and attention.source.nbytes() == one == 4 * 2 * 5 * 16 * 4
    generate_images(model, text, length, num_images=60)
    assert [shape[:2] for shape in seen if shape[1] > 1] == [[1, 5], [1, 5]]


def test_a_step_of_another_batch_is_refused_with_both_numbers():
    model = build()
    attention = decoder.image_attention(model, source.prefill_text(model, *texts(5)))
    with pytest.raises(ShapeError, match="1 token of 8 rows, but got 1 of 3"):
        attention(0, paddle.zeros([3, 1, 3, 2, 8]))
    two = decoder.image_decoder(model, source.prefill_text(model, *texts(5)), samples=2)
    with paddle.no_grad(), pytest.raises(ShapeError, match="made for 2 rows, but 3 came"):
        two.step(0, paddle.zeros([3, 16]))


@pytest.mark.skipif(precision.bf16_method() == "none" or not active(), reason="no bf16 arithmetic here")
def test_a_compiled_step_in_bf16_stays_near_the_exact_one():
    model, (text, length) = build(rows=4, columns=4, width=64, heads=4), texts(5, 3)
    known = dict(known_codes=paddle.zeros([1, 16], "int64"), known_mask=paddle.ones([16], "bool"), keep_hidden="predicting")
    exact = generate_images(model, text, length, **known).hidden.numpy()
    precision.use_bf16(True)
    try:
        rounded = generate_images(model, text, length, **known).hidden.numpy()
    finally:
        precision.use_bf16(False)
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-6 < error < 0.05


def test_weights_that_change_between_two_pictures_are_seen():
    model, (text, length) = build(rows=2, columns=3), texts(5)
    before = generate_images(model, text, length, keep_hidden="predicting").hidden.numpy()
    model.stack.blocks[0].fc1.weight.set_value(model.stack.blocks[0].fc1.weight + 1)
    assert np.abs(generate_images(model, text, length, keep_hidden="predicting").hidden.numpy() - before).max() > 1e-3


@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(5)], ids=lambda pattern: pattern.name)
@pytest.mark.parametrize("rows,columns", [(4, 4), (9, 2), (12, 5)])
def test_steps_of_one_phase_see_the_same_entries(pattern, rows, columns):
    cache = LayerCache(pattern, Layout(0, rows, columns))
    seen = {}
    for step in range(rows * columns):
        now = cache.seen(step).tolist()
        assert seen.setdefault(cache.slots.phase(step), now) == now


@pytest.mark.parametrize("longest", [1024, 4])
def test_a_sample_has_the_same_bits_alone_and_among_others(monkeypatch, longest):
    monkeypatch.setattr("vilg.nn.attention.cached_host._LONGEST_SUM", longest)
    model, (text, length) = build(width=64, heads=4), texts(5, 3)
    alone = generate_images(model, text[:1], length[:1], seeds=3, keep_hidden="predicting").hidden.numpy()
    many = generate_images(model, text, length, num_images=9, seeds=3, keep_hidden="predicting").hidden.numpy()
    np.testing.assert_array_equal(alone[0], many[0])


@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(3)], ids=lambda pattern: pattern.name)
def test_stock_operators_decode_in_numpy(pattern):
    model = build(5, 7, layers=2)
    model.patterns = [pattern] * 2
    with stock_operators():
        assert_cached_equals_full(model, *texts(5, 2, 3), samples=2)


def with_program(program) -> BidirectionalTransformer:
    model = build(layers=3)
    paddle.seed(1)
    model.stack = Stack(3, program)
    for parameter in model.stack.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    model.eval()
    return model


ATTENTION = Map("qkv", 16, 48), Attend(2, 16), Map("proj", 16, 16)
FEED_FORWARD = Map("fc1", 16, 40), Activation("gelu", 40), Map("fc2", 40, 16)
PROGRAMS = {
    "norms behind the sums": (Fork(), *ATTENTION, Add(), Norm("norm1", 16),
                              Fork(), *FEED_FORWARD, Add(), Norm("norm2", 16)),
    "feed-forward first": (Fork(), Norm("norm1", 16), *FEED_FORWARD, Add(),
                           Fork(), Norm("norm2", 16), *ATTENTION, Add()),
    "norms before the sums": (Fork(), *ATTENTION, Norm("norm1", 16), Add(),
                              Fork(), *FEED_FORWARD, Norm("norm2", 16), Add()),
    "no map behind attention": (Fork(), *ATTENTION[:2], Add(), Fork(), *FEED_FORWARD, Add()),
}
UNCOMPILED = ("norms before the sums", "no map behind attention")


@pytest.mark.parametrize("name", PROGRAMS)
def test_blocks_of_other_programs_decode_as_their_full_forward(name):
    model = with_program(PROGRAMS[name])
    one = decoder.image_decoder(model, source.prefill_text(model, *texts(5)))
    assert (one._compiled is not None) == (active() and name not in UNCOMPILED)
    assert_cached_equals_full(model, *texts(5, 2, 3), samples=2)


def test_every_activation_can_be_compiled():
    assert set(ACTIVATIONS) == set(ACTIVATION_STEPS)
