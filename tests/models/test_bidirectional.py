import math
from pathlib import Path

import numpy as np
import paddle
import pytest

from vilg import config as configs
from vilg.errors import ConfigError, ShapeError
from vilg.losses.sequence import image_to_text_loss, text_nll, text_targets, text_to_image_loss
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.nn import functional
from vilg.nn.attention.patterns import Convolution, Dense
from vilg.yaml_files import read_chain

SMALL = dict(layers=4, width=16, heads=2, vocab_size=20, codebook_size=12, text_length=5, rows=3, columns=4)


@pytest.fixture
def model():
    paddle.seed(0)
    model = BidirectionalTransformer(BidirectionalConfig(**SMALL))
    for parameter in model.parameters():  # far from the initial near-uniform predictions
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    model.eval()
    return model


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    draw = lambda high, shape: paddle.to_tensor(rng.integers(0, high, shape))
    return {"text": draw(20, (3, 5)), "length": paddle.to_tensor([5, 3, 2]), "codes": draw(12, (3, 12)),
            "target": draw(20, (3, 5)), "target_length": paddle.to_tensor([4, 5, 5]),
            "prefix": paddle.to_tensor([0, 2, 3])}


def hidden(model, batch):
    drawn = model.text_to_image_hidden(batch["text"], batch["length"], batch["codes"])
    told = model.image_to_text_hidden(batch["codes"], batch["target"], batch["target_length"], batch["prefix"])
    return drawn.numpy(), told.numpy()


def changed(before, after):
    return np.abs(before - after).max(axis=-1) > 1e-4


def test_one_pass_over_both_streams_equals_two(model, batch):
    both = model.both_hidden(*batch.values())
    for together, apart in zip(both, hidden(model, batch)):
        np.testing.assert_allclose(together.numpy(), apart, atol=1e-5)


def test_a_drawn_token_depends_on_the_text_and_on_tokens_before_it(model, batch):
    before, _ = hidden(model, batch)
    batch["codes"][:, 6] = (batch["codes"][:, 6] + 1) % 12
    after, _ = hidden(model, batch)
    differs = changed(before, after)
    assert not differs[:, :7].any() and differs[:, 7:].all(), "slot 7 is the first to hold token 6, and sees it onwards"
    batch["text"][1, 2] = (batch["text"][1, 2] + 1) % 20
    again, _ = hidden(model, batch)
    assert (changed(after, again) == [[False], [True], [False]]).all()
    batch["text"][1, 3] = (batch["text"][1, 3] + 1) % 20
    assert not changed(again, hidden(model, batch)[0]).any(), "padding was read"


def test_a_written_token_depends_on_the_picture_the_question_and_tokens_before_it(model, batch):
    _, before = hidden(model, batch)
    real = np.arange(5) < batch["target_length"].numpy()[:, None]
    batch["target"][:, 3] = (batch["target"][:, 3] + 1) % 20
    _, after = hidden(model, batch)
    assert (changed(before, after) == (real & (np.arange(5) >= 3))).all()
    batch["target"][2, 2] = (batch["target"][2, 2] + 1) % 20  # the question's last token: all of sample 2 sees it
    _, again = hidden(model, batch)
    assert (changed(after, again)[2] == real[2]).all() and not changed(after, again)[:2].any()
    batch["codes"][:, 11] = (batch["codes"][:, 11] + 1) % 12
    assert (changed(again, hidden(model, batch)[1]) == real).all()


def test_targets_are_what_follows_the_question():
    text = paddle.full([4, 6], 9, "int64")
    chosen = text_targets(text, paddle.to_tensor([6, 4, 6, 3]), paddle.to_tensor([0, 2, 5, 3])).numpy()
    wanted = ["#####", ".##..", "....#", "....."]  # token 0 is never predicted; columns are tokens 1 … 5
    assert ["".join("#" if one else "." for one in row) for row in chosen] == wanted


def test_an_unknown_word_is_no_target(model, batch):
    text = batch["target"]
    length, prefix = batch["target_length"], batch["prefix"]
    text[0, 2] = text[2, 4] = 7
    text[1, 0] = 7  # before the targets
    every, without = (text_targets(text, length, prefix, unk_id).numpy() for unk_id in (None, 7))
    assert np.argwhere(every != without).tolist() == [[0, 1], [2, 3]]
    told = paddle.to_tensor(hidden(model, batch)[1])
    nll, kept = (text_nll(model, told, text, length, prefix, unk_id).numpy() for unk_id in (None, 7))
    np.testing.assert_allclose(kept, np.where(without, nll, 0), rtol=1e-5)
    loss = float(image_to_text_loss(model, told, text, length, prefix, 7))
    assert loss == pytest.approx(float(kept.sum() / without.sum()), rel=1e-5)


def test_losses_are_mean_negative_log_likelihoods(model, batch):
    drawn, told = (paddle.to_tensor(part) for part in hidden(model, batch))
    logits, codes = model.image_logits(drawn).numpy(), batch["codes"].numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -np.take_along_axis(log_p, codes[..., None], -1).mean()
    np.testing.assert_allclose(float(text_to_image_loss(model, drawn, batch["codes"])), wanted, rtol=1e-5)

    logits, target = model.text_logits(told).numpy(), batch["target"].numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    pairs = [(b, j) for b, (length, prefix) in enumerate([(4, 0), (5, 2), (5, 3)])
             for j in range(4) if prefix <= j + 1 < length]
    wanted = np.mean([-log_p[b, j, target[b, j + 1]] for b, j in pairs])
    labels = batch["target"], batch["target_length"], batch["prefix"]
    np.testing.assert_allclose(float(image_to_text_loss(model, told, *labels)), wanted, rtol=1e-5)
    assert (text_nll(model, told, *labels).numpy() > 0).sum() == len(pairs)


@pytest.mark.parametrize("count", [63, 64, 65])
def test_however_many_targets_go_through_the_head_in_few_shapes_and_nothing_else_counts(model, monkeypatch, count):
    rows = []

    operator = functional.linear_cross_entropy

    def counted(x, weight, bias, labels):
        rows.append(len(x))
        return operator(x, weight, bias, labels)

    monkeypatch.setattr(functional, "linear_cross_entropy", counted)
    paddle.seed(1)
    told, text = paddle.randn([count, 2, 16]), paddle.randint(0, 20, [count, 2])
    told.stop_gradient = False
    loss = image_to_text_loss(model, told, text, paddle.full([count], 2, "int64"), paddle.zeros([count], "int64"))
    loss.backward()
    assert rows == [128 if count == 65 else 64]
    plain = told.detach()
    plain.stop_gradient = False
    wanted = paddle.nn.functional.cross_entropy(model.text_logits(plain)[:, 0], text[:, 1])
    weight_gradient = model.text_head.weight.grad.numpy().copy()
    model.clear_gradients()
    wanted.backward()
    np.testing.assert_allclose(float(loss), float(wanted), rtol=1e-5)
    np.testing.assert_allclose(told.grad.numpy(), plain.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(weight_gradient, model.text_head.weight.grad.numpy(), atol=1e-6)


def test_a_batch_without_targets_has_no_loss(model, batch):
    _, told = hidden(model, batch)
    told = paddle.to_tensor(told, stop_gradient=False)
    length = paddle.to_tensor([2, 2, 2])
    loss = image_to_text_loss(model, told, batch["target"], length, length)
    loss.backward()
    assert float(loss) == 0 and float(told.grad.abs().max()) == 0


def test_every_parameter_learns(model, batch):
    model.train()
    drawn, told = model.both_hidden(*batch.values())
    labels = batch["target"], batch["target_length"], batch["prefix"]
    (text_to_image_loss(model, drawn, batch["codes"]) + image_to_text_loss(model, told, *labels)).backward()
    assert [name for name, parameter in model.named_parameters()
            if parameter.grad is None or not float(parameter.grad.abs().max())] == []


def test_both_losses_fall(batch):
    paddle.seed(1)
    model = BidirectionalTransformer(BidirectionalConfig(**SMALL, dropout=0.0))
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=model.parameters())
    history = []
    for _ in range(30):
        drawn, told = model.both_hidden(*batch.values())
        labels = batch["target"], batch["target_length"], batch["prefix"]
        losses = text_to_image_loss(model, drawn, batch["codes"]), image_to_text_loss(model, told, *labels)
        (losses[0] + losses[1]).backward()
        optimizer.step()
        optimizer.clear_grad()
        history.append([float(loss) for loss in losses])
    assert (np.array(history[-1]) < 0.5 * np.array(history[0])).all(), history[-1]


def test_shapes_that_do_not_fit_are_refused_with_both_numbers(model, batch):
    with pytest.raises(ShapeError, match="11 tokens .* 3×4 = 12"):
        model.text_to_image_hidden(batch["text"], batch["length"], batch["codes"][:, :11])
    with pytest.raises(ShapeError, match="text of 6 tokens .* 5"):
        model.image_to_text_hidden(batch["codes"], paddle.zeros([3, 6], "int64"), batch["length"], batch["prefix"])


@pytest.mark.parametrize("key,value,says", [
    ("heads", 3, "multiple of heads 3"), ("conv_window", 4, "odd"), ("dropout", 1.0, "dropout"), ("rows", 0, "rows"),
    ("text_length", 1, "text_length"),
])
def test_contradictions_in_the_config_are_refused(key, value, says):
    with pytest.raises(ConfigError, match=says):
        configs.from_dict(BidirectionalConfig, SMALL | {key: value})


def test_the_configs_window_is_the_last_layers():
    config = configs.from_dict(BidirectionalConfig, SMALL | {"conv_window": 5, "sparse": True})
    assert BidirectionalTransformer(config).patterns[-1] == Convolution(5)
    dense = configs.from_dict(BidirectionalConfig, SMALL | {"sparse": False})
    assert dense.patterns == [Dense()] * dense.layers


@pytest.mark.parametrize("name,least,most", [("10b", 9.6e9, 10.2e9), ("300m", 0.30e9, 0.36e9)])
def test_the_papers_sizes_are_built_without_being_allocated(name, least, most):
    path = Path(__file__).resolve().parents[2] / "configs" / "vilg" / f"{name}.yaml"
    config = configs.from_dict(BidirectionalConfig, read_chain(path)["task"]["model"])
    with paddle.LazyGuard():
        model = BidirectionalTransformer(config)
    assert least < sum(math.prod(parameter.shape) for parameter in model.parameters()) < most
    assert [pattern.name for pattern in model.patterns[:3]] == ["row", "column", "row"]
