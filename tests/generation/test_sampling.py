import numpy as np
import pytest

from vilg import config as configs
from vilg.errors import ConfigError
from vilg.generation.sampling import SamplingConfig, candidates, guide, sample_token, uniforms

LOGITS = np.log(np.array([[0.4, 0.1, 0.3, 0.15, 0.05]]))


def kept(**settings) -> list[int]:
    tokens, weights = candidates(LOGITS, SamplingConfig(**settings))
    return tokens[0, weights[0] > 0].tolist()


def test_filters_keep_what_they_say():
    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [0, 2]
    assert kept(top_k=99) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.5) == [0, 2]  # 0.4 alone is too little
    assert kept(top_p=0.39) == [0]
    assert kept(top_p=1e-9) == [0], "the likeliest token always stays"


def test_top_k_is_a_number_of_tokens_even_when_all_are_alike():
    tokens, weights = candidates(np.zeros((2, 50)), SamplingConfig(top_k=7))
    assert tokens.shape == (2, 7) and (weights == 1).all()


@pytest.mark.parametrize("alike", [False, True])
def test_top_k_keeps_the_likeliest_of_every_row_in_order(alike):
    logits = np.random.default_rng(0).standard_normal((5, 300)).astype("float32")
    if alike:
        logits[2, 50:60] = np.sort(logits[2])[-7]  # several tokens are the last that is kept
    tokens, weights = candidates(logits, SamplingConfig(top_k=7))
    best = np.sort(logits, axis=-1)[:, :-8:-1]
    np.testing.assert_array_equal(np.sort(np.take_along_axis(logits, tokens, -1), axis=-1)[:, ::-1], best)
    np.testing.assert_allclose(np.sort(weights, axis=-1)[:, ::-1], np.exp(best - best[:, :1]), rtol=1e-6)
    assert (np.diff(tokens, axis=-1) > 0).all()


def test_filters_apply_together_and_in_order():
    assert kept(top_k=3, top_p=0.8) == [0, 2], "of the three kept, the first two hold 0.82"
    assert kept(top_k=1, top_p=0.99) == [0]
    assert kept(temperature=0.25, top_p=0.7) == [0], "a low temperature sharpens before top_p counts"
    assert kept(temperature=4.0, top_p=0.7) == [0, 1, 2, 3]


def test_tokens_are_drawn_as_often_as_likely():
    config = SamplingConfig(temperature=0.5, top_k=3)
    wanted = np.array([0.4, 0, 0.3, 0.15, 0]) ** 2
    rows = 20000
    tokens = sample_token(np.repeat(LOGITS, rows, axis=0), config, np.random.default_rng(0).random(rows))
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / rows, wanted / wanted.sum(), atol=0.015)


def test_the_ends_of_the_unit_interval_draw_tokens_that_are_allowed():
    logits = np.array([[-np.inf, 0.0, 0.0, -np.inf]] * 2)
    assert sample_token(logits, SamplingConfig(), np.array([0.0, np.nextafter(1.0, 0)])).tolist() == [1, 2]


def test_temperature_zero_takes_the_likeliest():
    logits = np.array([[0.1, 3.0, 2.0], [1.0, 0.0, 0.5]])
    assert sample_token(logits, SamplingConfig(temperature=0.0), np.array([0.99, 0.99])).tolist() == [1, 0]


def test_the_callers_logits_are_left_alone():
    logits = LOGITS.copy()
    sample_token(logits, SamplingConfig(top_k=2, top_p=0.5), np.array([0.3]))
    np.testing.assert_array_equal(logits, LOGITS)


def test_random_numbers_belong_to_seed_and_sample():
    assert np.array_equal(uniforms(7, 3, 10)[:4], uniforms(7, 3, 4))
    streams = {tuple(uniforms(seed, sample, 3)) for seed in (0, 1, -1, 2 ** 63) for sample in range(4)}
    assert len(streams) == 16
    assert abs(uniforms(0, 0, 10000).mean() - 0.5) < 0.02


@pytest.mark.parametrize("key,value", [
    ("temperature", -1), ("temperature", 1e-38), ("temperature", 1e39), ("top_k", -1), ("top_p", 0), ("top_p", 1.5),
    ("guidance", -0.1), ("guidance", 1e38), ("guidance_min_p", -0.1), ("guidance_min_p", 1.1)])
def test_senseless_settings_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        configs.from_dict(SamplingConfig, {key: value})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [{"temperature": 1e-6, "guidance": 1e6}, {"temperature": 1e6}])
def test_the_most_extreme_settings_still_draw(settings):
    config = SamplingConfig(**settings)
    told, free = np.random.default_rng(0).normal(0, 20, (2, 64, 300)).astype("float32")
    tokens, weights = candidates(guide(told, free, config), config)
    assert tokens.shape == weights.shape == (64, 300)
    assert np.isfinite(weights).all() and (weights.max(axis=-1) == 1).all()


def test_guidance_chooses_among_plausible_tokens_only():
    told = np.log(np.array([[0.6, 0.3, 0.06, 0.04]], dtype="float32"))
    free = np.log(np.array([[0.6, 0.38, 0.0001, 0.0199]], dtype="float32"))
    # The third token is far likelier with the text than without it, and still unlikely.
    plain = guide(told, free, SamplingConfig(guidance=4.0))
    assert plain.argmax() == 2 and np.allclose(plain, free + 4 * (told - free))
    guarded = guide(told, free, SamplingConfig(guidance=4.0, guidance_min_p=0.2))
    assert guarded.argmax() == 0 and np.isneginf(guarded[0, 2:]).all() and np.array_equal(guarded[0, :2], plain[0, :2])
    drawn = sample_token(np.repeat(guarded, 64, axis=0), SamplingConfig(), np.linspace(0, 0.999, 64))
    assert set(drawn.tolist()) == {0, 1}
