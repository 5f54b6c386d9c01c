"""Quantizers against their formulas in numpy: codes, both terms of the loss, averages, revival, Gumbel-softmax."""
import numpy as np
import paddle
import pytest

from vilg.tokenizers.image.quantize import (
    GumbelQuantizer, QuantizerConfig, VectorQuantizer, cosine_schedule, gumbel_softmax, usage_figures,
)


def quantizer(**settings) -> VectorQuantizer:
    paddle.seed(3)
    layer = VectorQuantizer(QuantizerConfig(**{"codebook_size": 12, **settings}), code_dim=4)
    layer.codebook.set_value(paddle.randn([12, 4]))
    return layer


def vectors(batch: int = 2, side: int = 3) -> paddle.Tensor:
    paddle.seed(4)
    return paddle.randn([batch, 4, side, side])


def rows(z: np.ndarray) -> np.ndarray:
    return z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1])


def nearest(z: np.ndarray, table: np.ndarray) -> np.ndarray:
    return ((rows(z)[:, None] - table[None]) ** 2).sum(-1).argmin(-1)


@pytest.mark.parametrize("kind", ["ema", "straight_through"])
def test_codes_are_the_nearest_in_raster_order(kind):
    layer, z = quantizer(kind=kind), vectors()
    expected = nearest(z.numpy(), layer.codebook.numpy())
    assert (layer.encode(z).numpy().ravel() == expected).all()
    found = layer(z)
    assert (found.codes.numpy().ravel() == expected).all()
    np.testing.assert_allclose(rows(found.z.numpy()), layer.codebook.numpy()[expected], atol=1e-6)


def test_beta_weighs_the_commitment_and_not_the_codebook_term():
    losses = {}
    for beta in (0.0, 0.25, 1.0):
        layer, z = quantizer(kind="straight_through", beta=beta), vectors()
        z.stop_gradient = False
        found = layer(z)
        found.loss.backward()
        distance = ((rows(z.numpy()) - layer.codebook.numpy()[nearest(z.numpy(), layer.codebook.numpy())]) ** 2).mean()
        assert float(found.loss) == pytest.approx((1 + beta) * distance, rel=1e-5)
        losses[beta] = (z.grad.numpy(), layer.codebook.grad.numpy())
    assert np.abs(losses[0.0][0]).max() == 0
    np.testing.assert_allclose(losses[1.0][0], 4 * losses[0.25][0], rtol=1e-5)
    np.testing.assert_allclose(losses[1.0][1], losses[0.0][1], rtol=1e-6)


def test_the_gradient_passes_straight_through():
    layer, z = quantizer(beta=0.0), vectors()
    z.stop_gradient = False
    upstream = paddle.randn(z.shape)
    (layer(z).z * upstream).sum().backward()
    np.testing.assert_allclose(z.grad.numpy(), upstream.numpy(), rtol=1e-6)


def test_moving_averages_follow_their_formula_and_leave_unused_codes_alone():
    layer = quantizer(kind="ema", decay=0.9, revive_every=0)
    before, z = layer.codebook.numpy(), vectors()
    codes = nearest(z.numpy(), before)
    layer(z)
    layer.update(1)
    for code in range(12):
        members = rows(z.numpy())[codes == code]
        expected = members.mean(0) if len(members) else before[code]
        np.testing.assert_allclose(layer.codebook.numpy()[code], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.counts.numpy(), 0.1 * np.bincount(codes, minlength=12), rtol=1e-5)


def test_dead_codes_move_to_encoder_outputs_the_same_way_each_time():
    books = []
    for _ in range(2):
        layer = quantizer(kind="ema", revive_every=1)
        layer.codebook.set_value(paddle.full([12, 4], 50.0))
        z = vectors(batch=4)
        layer(z)
        layer.update(7)
        books.append(layer.codebook.numpy())
    distance = np.sqrt(((books[0][:, None] - rows(z.numpy())[None]) ** 2).sum(-1)).min(-1)
    # One of the equal codes took every vector and is their mean; the others were dead.
    assert np.sort(distance)[-2] < 0.05, "every revived code lies on an output of the encoder"
    assert (books[0] == books[1]).all()


def test_revival_brings_usage_up():
    layer = quantizer(kind="ema", revive_every=5)
    layer.codebook.set_value(paddle.full([12, 4], 50.0) + paddle.randn([12, 4]))
    for step in range(1, 40):
        paddle.seed(step)
        layer(paddle.randn([4, 4, 3, 3]))
        figures = layer.update(step)
    assert figures["codebook_usage"] == 1.0
    assert figures["perplexity"] > 6


def test_revived_codes_that_nothing_chose_are_not_in_use():
    layer = quantizer(kind="ema", revive_every=1)
    z = paddle.ones([4, 4, 3, 3])
    for step in range(1, 130):
        layer.codebook.set_value(paddle.concat([paddle.ones([1, 4]), paddle.full([11, 4], 50.0)]))
        layer(z)
        figures = layer.update(step)
    assert (layer.counts.numpy() > 0.05).all(), "all others were revived in every step"
    assert figures == pytest.approx({"codebook_usage": 1 / 12, "perplexity": 1.0})


def test_usage_forgets_choices_of_long_ago():
    layer = quantizer(kind="straight_through", revive_every=0)
    book = paddle.eye(12)[:, :4] * 9 + paddle.arange(12, dtype="float32").unsqueeze(-1)
    layer.codebook.set_value(book)
    used = []
    for step in range(900):
        code = 3 if step < 100 else 7
        layer(book[code].reshape([1, 4, 1, 1]).tile([2, 1, 3, 3]))
        used.append(layer.update(step)["codebook_usage"] * 12)
    assert used[99] == pytest.approx(1) and used[150] == pytest.approx(2) and used[-1] == pytest.approx(1)


def test_straight_through_codes_are_revived_too():
    layer = quantizer(kind="straight_through", revive_every=1)
    layer.codebook.set_value(paddle.full([12, 4], 50.0))
    layer(vectors(batch=4))
    layer.update(1)
    assert np.sort(np.abs(layer.codebook.numpy()).max(-1))[-2] < 10, "all but the one that took every vector"


def test_nothing_is_noted_outside_training():
    layer = quantizer()
    layer.eval()
    layer(vectors())
    assert layer.update(1) == {}


def test_every_rank_makes_the_same_update_from_what_all_saw():
    halves = [vectors()[:1], vectors()[1:]]
    whole, part = quantizer(revive_every=0), quantizer(revive_every=0)
    whole(vectors())
    whole.update(1)
    part(halves[0])
    others = {2: rows(halves[1].numpy()), 1: nearest(halves[1].numpy(), part.codebook.numpy())}
    part.gather = lambda tensor: paddle.concat([tensor, paddle.to_tensor(others[tensor.ndim]).astype(tensor.dtype)])
    part.update(1)
    np.testing.assert_allclose(part.codebook.numpy(), whole.codebook.numpy(), rtol=1e-5, atol=1e-6)


def test_normalised_codes_lie_on_the_unit_sphere():
    layer, z = quantizer(normalize=True), vectors()
    found = rows(layer(z).z.numpy())
    np.testing.assert_allclose((found ** 2).sum(-1), 1.0, rtol=1e-5)
    unit = layer.codebook.numpy() / np.linalg.norm(layer.codebook.numpy(), axis=-1, keepdims=True)
    cosine = rows(z.numpy()) @ unit.T
    assert (layer.encode(z).numpy().ravel() == cosine.argmax(-1)).all()


def gumbel(**settings) -> GumbelQuantizer:
    paddle.seed(5)
    return GumbelQuantizer(QuantizerConfig(kind="gumbel", codebook_size=12, **settings), in_channels=4, code_dim=6)


def test_gumbel_quantizer_takes_the_likeliest_code_outside_training():
    layer, z = gumbel(kl_weight=0.5), vectors()
    layer.eval()
    weight, bias = layer.project.weight.numpy()[:, :, 0, 0], layer.project.bias.numpy()
    logits = rows(z.numpy()) @ weight.T + bias
    found = layer(z)
    assert (found.codes.numpy().ravel() == logits.argmax(-1)).all()
    assert (layer.encode(z).numpy() == found.codes.numpy()).all()
    np.testing.assert_allclose(rows(found.z.numpy()), layer.codebook.weight.numpy()[logits.argmax(-1)], rtol=1e-5)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert float(found.loss) == pytest.approx(0.5 * (share * np.log(share * 12)).sum(-1).mean(), rel=1e-4)


def test_gumbel_quantizer_trains_projection_and_codes():
    layer, z = gumbel(), vectors()
    found = layer(z, step=10)
    (found.z ** 2).sum().backward()
    assert np.abs(layer.project.weight.grad.numpy()).max() > 0
    assert np.abs(layer.codebook.weight.grad.numpy()).max() > 0
    assert 0 < layer.update(1)["codebook_usage"] <= 1


def test_gumbel_temperature_falls_while_training():
    layer, z = gumbel(temperature=2.0, temperature_end=0.01, temperature_steps=100), vectors()
    assert [layer.temperature_at(step) for step in (0, 50, 100)] == pytest.approx([2.0, 1.005, 0.01])
    steep = []
    for step in (0, 50, 100):
        paddle.seed(0)  # the same noise; a colder softmax is steeper or, far from a tie, flat
        layer.clear_gradients()
        (layer(z, step).z ** 2).sum().backward()
        steep.append(layer.project.weight.grad.numpy().copy())
    assert not np.allclose(steep[0], steep[1], rtol=1e-2) and not np.allclose(steep[1], steep[2], rtol=1e-2)


def test_gumbel_softmax_draws_codes_as_often_as_their_probability():
    paddle.seed(6)
    logits = paddle.to_tensor([0.0, 1.0, 2.0]).expand([20_000, 3])
    share = gumbel_softmax(logits, 1.0, hard=True).mean(0).numpy()
    np.testing.assert_allclose(share, np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum(), atol=0.02)
    soft = gumbel_softmax(logits, 0.5, hard=False)
    np.testing.assert_allclose(soft.sum(-1).numpy(), 1.0, rtol=1e-5)


def test_cosine_schedule_begins_ends_and_stays():
    assert [cosine_schedule(step, 0.9, 0.1, 10) for step in (0, 5, 10, 99)] == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_usage_and_perplexity_of_counts():
    assert usage_figures(np.array([5, 5, 0, 0])) == pytest.approx({"codebook_usage": 0.5, "perplexity": 2.0})


@pytest.mark.parametrize("settings, word", [
    ({"kind": "gumbel", "temperature_end": 0.0}, "temperature"), ({"beta": -1.0}, "beta"), ({"decay": 1.0}, "decay"),
    ({"codebook_size": 1}, "codebook_size"), ({"kind": "gumbel", "normalize": True}, "normalize")])
def test_contradictions_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        QuantizerConfig(**settings)


def test_dead_codes_move_to_what_is_quantized_badly():
    layer = VectorQuantizer(QuantizerConfig(kind="ema", codebook_size=8, revive_every=1), code_dim=2)
    layer.train()
    rng = np.random.default_rng(0)
    # 8 codes start far off, so that all but one are dead; 2 of 1000 vectors lie far from the rest.
    layer.codebook.set_value(paddle.full([8, 2], 100.0))
    common = rng.normal(0, 0.01, (998, 2))
    z = paddle.to_tensor(np.concatenate([common, [[5, 0], [0, 5]]]).astype("float32"))
    layer(z.T.reshape([1, 2, 4, 250]))
    layer.update(1)
    distance = np.linalg.norm(layer.table().numpy()[None] - np.array([[[5, 0]], [[0, 5]]]), axis=-1).min(1)
    assert (distance < 0.1).all()


@pytest.mark.parametrize("kind", ["ema", "straight_through"])
def test_vectors_that_are_not_finite_leave_the_codebook_alone(kind):
    layer, twin = (quantizer(kind=kind, revive_every=2) for _ in range(2))
    layer.train(), twin.train()
    layer(paddle.full([2, 4, 3, 3], float("nan")))  # a step that is skipped: nothing is called after it
    layer(vectors()), twin(vectors())
    assert layer.update(2) == twin.update(2)
    for name in ("codebook", "sums", "counts"):
        np.testing.assert_array_equal(getattr(layer, name).numpy(), getattr(twin, name).numpy())
    layer(paddle.full([2, 4, 3, 3], float("nan")))
    assert layer.update(4) == {}


def test_gumbel_noise_is_finite_in_half_precision(monkeypatch):
    monkeypatch.setattr(paddle, "rand", lambda shape, dtype: paddle.full(shape, 1.0 - 1e-4, "float32").astype(dtype))
    soft = gumbel_softmax(paddle.zeros([3, 8], "bfloat16"), 1.0, hard=False)
    assert np.isfinite(soft.astype("float32").numpy()).all()


def test_a_trained_codebook_is_moved_by_what_it_sees_and_not_replaced():
    """Training that begins from a released tokenizer: its codes keep their meaning."""
    moved = []
    for held in (True, False):
        layer = quantizer(kind="ema", decay=0.99, revive_every=1, revive_below=0.1)
        before = layer.codebook.numpy().copy()
        if held:
            layer.hold()
        layer(vectors())
        layer.update(1)
        moved.append(np.abs(layer.codebook.numpy() - before).max(-1))
    assert moved[0].max() < 0.1 and (moved[1] > 0.3).sum() >= 6
