"""Drawing by mask-predict: counts of both schedules, an oracle, known tokens, seeds, guidance, refusals."""
import numpy as np
import paddle
import pytest

from test_decoding import texts
from vilg.errors import ConfigError, ShapeError
from vilg.generation.mask_predict import masked_counts, predict_images, predict_softly
from vilg.generation.sampling import MaskPredictConfig, SamplingConfig, uniforms
from vilg.models.two_level.model import TwoLevelConfig, TwoLevelTransformer

ROWS, COLUMNS, CODES = 4, 5, 12
TOKENS = ROWS * COLUMNS


def build(**changes):
    paddle.seed(3)
    shape = dict(layers=2, width=16, heads=2, vocab_size=20, codebook_size=CODES, text_length=5, rows=ROWS,
                 columns=COLUMNS)
    model = TwoLevelTransformer(TwoLevelConfig(**shape | changes))
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        if len(parameter.shape) == 2:  # large enough for text, place and neighbours to matter
            scale = 2.0 if name.startswith("text_") else 1.0 if "embedding" in name else 2 / parameter.shape[0] ** 0.5
            parameter.set_value(rng.normal(0, scale, parameter.shape).astype("float32"))
    model.eval()
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def draw(model, lengths=(5, 2, 4), given=None, **settings):
    text, length = texts(*lengths)
    return predict_images(model, text, length, sampling=MaskPredictConfig(**settings), **(given or {})).numpy()


def test_the_papers_linear_counts():
    assert masked_counts(64, 4, "linear") == [64, 48, 32, 16]
    assert masked_counts(64, 1, "linear") == [64]
    assert masked_counts(5, 4, "linear") == [5, 3, 2, 1]


def test_maskgits_counts():
    assert masked_counts(64, 4, "cosine") == [64, 59, 45, 24]
    assert masked_counts(64, 8, "cosine") == [64, 62, 59, 53, 45, 35, 24, 12]
    assert masked_counts(1024, 8, "cosine") == [1024, 1004, 946, 851, 724, 568, 391, 199]
    assert masked_counts(4, 4, "cosine") == [4, 3, 2, 1]
    assert masked_counts(0, 3, "cosine") == [0, 0, 0]


class Oracle:
    """Knows one picture a text, and is surer of a token the more of its neighbours in raster order it sees."""

    def __init__(self, model, truth):
        self.config, self.layout, self.training, self.truth = model.config, model.layout, False, truth
        self.entered = []

    def eval(self):
        pass

    def text_to_image_hidden(self, text, length, codes, masked):
        hidden = masked.numpy()
        self.entered.append(hidden.sum(axis=1).tolist())
        seen = codes.numpy()
        rows = self.truth[:len(text)]
        assert (seen[~hidden] == rows[~hidden]).all(), "a token that is not the truth was shown"
        near = sum(np.roll(~hidden, shift, axis=1) for shift in (-1, 1))
        return paddle.to_tensor(np.stack([rows, near], axis=-1).astype("float32"))

    def image_logits(self, hidden):
        code, near = hidden.numpy().astype(int).T
        logits = np.zeros((len(code), CODES), dtype="float32")
        logits[np.arange(len(code)), code] = 30 + near
        return paddle.to_tensor(logits)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, TOKENS])
def test_an_oracle_draws_exactly_in_any_number_of_steps(model, steps, schedule):
    truth = np.random.default_rng(0).integers(0, CODES, (3, TOKENS))
    oracle = Oracle(model, truth)
    for temperature in (0.0, 1.0):
        oracle.entered = []
        drawn = draw(oracle, steps=steps, schedule=schedule, temperature=temperature)
        np.testing.assert_array_equal(drawn, truth)
        assert [counts[0] for counts in oracle.entered] == masked_counts(TOKENS, steps, schedule)


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0, "schedule": "linear"}, {"temperature": 0.0}])
def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(model, settings):
    lengths, seeds = (5, 2, 3, 4, 5, 5, 3, 2), list(range(8))
    together = draw(model, lengths, {"num_images": 2, "seeds": seeds}, steps=6, **settings)
    text, length = texts(*lengths)
    for row in (0, 3, 7):
        alone = predict_images(model, text[row:row + 1], length[row:row + 1], seeds=seeds[row],
                               sampling=MaskPredictConfig(steps=6, **settings)).numpy()
        np.testing.assert_array_equal(alone[0], together[2 * row])
    part = predict_images(model, text[:2], length[:2], seeds=seeds[:2], first_sample=1,
                          sampling=MaskPredictConfig(steps=6, **settings)).numpy()
    np.testing.assert_array_equal(part, together[[1, 3]])
    if settings.get("temperature") != 0:
        assert len({tuple(row) for row in together}) == 16


def test_text_seed_and_settings_matter(model):
    base = draw(model)
    for changed in (draw(model, (5, 3, 4)), draw(model, given={"seeds": 1}), draw(model, steps=3),
                    draw(model, schedule="linear"), draw(model, choice_temperature=0.0), draw(model, guidance=3.0),
                    draw(model, temperature=0.3)):
        assert (changed != base).any()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_known_tokens_stay_wherever_they_are(model, schedule):
    codes = np.random.default_rng(4).integers(0, CODES, (3, TOKENS))
    mask = np.zeros((3, TOKENS), dtype=bool)
    mask[0, [1, 7, 19]], mask[1, ::2], mask[2] = True, True, True
    entered = []

    def watch(step, drawn, masked):
        entered.append(masked.sum(axis=1).tolist())
        assert not (masked & mask).any()
        assert (drawn[mask] == codes[mask]).all()

    given = {"known_codes": paddle.to_tensor(codes), "known_mask": paddle.to_tensor(mask), "after_step": watch}
    drawn = draw(model, given=given, steps=4, schedule=schedule, choice_temperature=50.0)
    np.testing.assert_array_equal(drawn[mask], codes[mask])
    wanted = np.array([masked_counts(unknown, 4, schedule) + [0] for unknown in (TOKENS - 3, TOKENS // 2, 0)])
    np.testing.assert_array_equal(entered, wanted.T[1:])
    elsewhere = draw(model, steps=4, schedule=schedule, choice_temperature=50.0)
    assert (drawn[0][~mask[0]] != elsewhere[0][~mask[0]]).any(), "what is known must be read"


def test_what_the_cosine_schedule_keeps_stays_and_the_linear_one_may_take_it_back(model):
    def taken_back(schedule):
        states = []
        draw(model, given={"after_step": lambda _, codes, masked: states.append(masked)}, steps=10, schedule=schedule)
        return sum(int((later & ~earlier).sum()) for earlier, later in zip(states, states[1:]))

    assert taken_back("cosine") == 0
    assert taken_back("linear") > 0


def test_one_step_takes_the_likeliest_of_a_whole_forward(model):
    text, length = texts(5, 2, 4)
    blank = paddle.zeros([3, TOKENS], "int64"), paddle.ones([3, TOKENS], "bool")
    wanted = model.image_logits(model.text_to_image_hidden(text, length, *blank)).numpy().argmax(-1)
    np.testing.assert_array_equal(draw(model, steps=1, temperature=0.0), wanted)


def test_what_is_kept_is_chosen_by_log_probability_and_fading_noise(model):
    (text, length), states = texts(5, 2, 4), []
    blank = paddle.zeros([3, TOKENS], "int64"), paddle.ones([3, TOKENS], "bool")
    logits = model.image_logits(model.text_to_image_hidden(text, length, *blank)).numpy().astype("float64")
    likeliest = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).max(-1)
    gumbel = -np.log(-np.log(uniforms(6, 0, 2 * 2 * TOKENS).reshape(2, 2, TOKENS)[0, 1]))
    for strength in (0.0, 3.0):
        draw(model, given={"seeds": 6, "after_step": lambda _, codes, masked: states.append(masked)}, steps=2,
             temperature=0.0, choice_temperature=strength)
        wanted = np.argsort(likeliest + strength * (1 - 1 / 2) * gumbel)[:, :masked_counts(TOKENS, 2, "cosine")[1]]
        assert [sorted(np.flatnonzero(row)) for row in states[-2]] == [sorted(row) for row in wanted.tolist()]
        assert not states[-1].any()
    assert (states[0] != states[2]).any()


def test_guidance_mixes_the_logits_of_the_text_and_of_no_text(model):
    (text, length), strength = texts(5, 4), 3.0
    empty = paddle.to_tensor([[1, 2, 0, 0, 0]]).tile([2, 1]), paddle.to_tensor([2, 2])
    blank = paddle.zeros([2, TOKENS], "int64"), paddle.ones([2, TOKENS], "bool")
    told, free = (model.image_logits(model.text_to_image_hidden(*side, *blank)).numpy()
                  for side in ((text, length), empty))
    drawn = draw(model, (5, 4), steps=1, temperature=0.0, guidance=strength)
    np.testing.assert_array_equal(drawn, (free + strength * (told - free)).argmax(-1))
    assert (drawn != told.argmax(-1)).any()


def test_logits_are_taken_in_parts_that_change_nothing(model, monkeypatch):
    whole = draw(model)
    monkeypatch.setattr("vilg.generation.mask_predict.LOGITS_AT_A_TIME", 7 * CODES)
    np.testing.assert_array_equal(draw(model), whole)


def test_more_steps_than_tokens_are_refused_with_both_numbers(model):
    with pytest.raises(ShapeError, match=r"steps is 21, .*4×5 has 20 tokens"):
        draw(model, steps=TOKENS + 1)


@pytest.mark.parametrize("name,value", [("steps", 0), ("temperature", -1), ("choice_temperature", -0.1),
                                        ("schedule", "square"), ("guidance", -1), ("steps", 2.5)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        MaskPredictConfig().over({name: value})


@pytest.mark.parametrize("own,given", [(MaskPredictConfig(), {"top_k": 5}), (SamplingConfig(), {"steps": 4}),
                                       (SamplingConfig(), {"choice_temperature": 1.0}),
                                       (MaskPredictConfig(), {"top_p": 0.5, "steps": 3})])
def test_settings_of_the_other_kind_of_model_are_refused_naming_both(own, given):
    with pytest.raises(ConfigError, match="token by token.*by mask-predict|by mask-predict.*token by token") as refused:
        own.over(given, "some_model")
    assert "some_model" in str(refused.value) and sorted(given)[-1] in str(refused.value)


def test_settings_left_out_stay_the_models_own():
    own = MaskPredictConfig(steps=5, guidance=2.0)
    assert own.over({"guidance": None, "temperature": 0.5}) == MaskPredictConfig(steps=5, guidance=2.0, temperature=0.5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_soft_drawing_draws_the_same_and_keeps_the_last_prediction(model, schedule):
    sampling = MaskPredictConfig(steps=4, schedule=schedule, temperature=0.7, choice_temperature=1.0)
    text, length = texts(5, 2, 4)
    hard = predict_images(model, text, length, seeds=[4, 5, 6], sampling=sampling)
    logits, codes = predict_softly(model, text, length, [4, 5, 6], sampling)
    np.testing.assert_array_equal(codes.numpy(), hard.numpy())
    entered = []
    predict_images(model, text, length, seeds=[4, 5, 6], sampling=sampling,
                   after_step=lambda step, codes, masked: entered.append((codes, masked)))
    shown, masked, kept = codes.numpy() * 0, np.ones([3, TOKENS], bool), np.zeros([3, TOKENS, CODES], "float32")
    for after, again in entered:  # plainly: the whole model again, logits copied where a token was masked
        hidden = model.text_to_image_hidden(text, length, paddle.to_tensor(shown), paddle.to_tensor(masked))
        kept[masked] = model.image_logits(hidden).numpy()[masked]
        shown, masked = after, again
    np.testing.assert_allclose(logits.numpy(), kept, atol=1e-5)
    assert logits.numpy().std() > 0.1


def test_soft_drawing_passes_gradients_of_every_step():
    model = build()
    text, length = texts(5, 2)
    logits, _ = predict_softly(model, text, length, [1, 2], MaskPredictConfig(steps=3, schedule="cosine"))
    weight = paddle.to_tensor(np.random.default_rng(0).normal(size=logits.shape).astype("float32"))
    (logits * weight).sum().backward()
    gradient = model.image_head.bias.grad.numpy()
    np.testing.assert_allclose(gradient, weight.numpy().sum(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    assert (np.abs(model.mask_vector.weight.grad.numpy()) > 0).all()
