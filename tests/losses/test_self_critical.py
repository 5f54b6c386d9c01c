"""The self-critical loss and its reward: weights of the corpus, the end token, the policy gradient."""
import itertools

import numpy as np
import paddle
import pytest

from vilg.errors import DataError
from vilg.losses.self_critical import CaptionReward, self_critical_loss, up_to_end
from vilg.metrics.captions.cider import cider
from vilg.metrics.captions.ngrams import count_ngrams

END = 3
CORPUS = [[[5, 6, 7, END], [5, 6, END]], [[5, 8, 9, END]], [[5, 10, END]]]


def test_the_reward_weighs_by_the_corpus_and_not_by_the_batch():
    reward = CaptionReward(CORPUS)
    once = reward([[5, 6, 7, END]], [CORPUS[0]])
    twice = reward([[5, 6, 7, END]] * 2, [CORPUS[0]] * 2)
    np.testing.assert_array_equal(twice, np.repeat(once, 2))
    counted = [[count_ngrams(caption) for caption in given] for given in CORPUS]
    same = cider([count_ngrams([5, 6, 7, END]), *(given[0] for given in counted[1:])], counted)
    np.testing.assert_allclose(once[0], same.clipped[0], rtol=1e-12)


def test_a_caption_that_does_not_end_earns_less():
    reward = CaptionReward(CORPUS)
    ends, open_ended = reward([[5, 8, 9, END], [5, 8, 9]], [CORPUS[1]] * 2)
    assert ends > open_ended


def test_a_word_that_every_image_has_earns_nothing():
    assert CaptionReward(CORPUS)([[5]], [CORPUS[0]])[0] == 0


def test_a_corpus_of_one_image_is_refused():
    with pytest.raises(DataError, match="has 1 images with captions.*at least 2"):
        CaptionReward([*CORPUS[:1], []])


def test_rows_end_with_their_first_end_token():
    assert up_to_end(np.array([[4, END, END], [4, 5, 6], [END, 1, END]]), END) == [[4, END], [4, 5, 6], [END]]


def test_the_expected_gradient_is_that_of_the_expected_reward():
    """Over all sequences of 2 tokens out of 3, weighed by their probability, against finite differences."""
    rng = np.random.default_rng(0)
    start, rewards = rng.normal(size=(2, 3)), rng.normal(size=(3, 3))
    pairs = list(itertools.product(range(3), range(3)))

    def expected(logits):
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return sum(p[0, a] * p[1, b] * rewards[a, b] for a, b in pairs)

    logits = paddle.to_tensor(start, stop_gradient=False)
    log_p = paddle.nn.functional.log_softmax(logits)
    nll = paddle.stack([paddle.stack([-log_p[0, a], -log_p[1, b]]) for a, b in pairs])  # [9, 2]
    weight = np.exp(-nll.numpy().sum(axis=1))
    gained = np.array([rewards[a, b] for a, b in pairs])
    baseline = np.full(9, 0.7)  # any baseline: its part has expectation zero
    self_critical_loss(nll, len(pairs) * weight * gained, len(pairs) * weight * baseline).backward()
    eps = 1e-5
    for place in itertools.product(range(2), range(3)):
        step = np.zeros((2, 3))
        step[place] = eps
        slope = (expected(start + step) - expected(start - step)) / (2 * eps)
        assert abs(-logits.grad.numpy()[place] - slope) < 1e-5, "descending the loss does not climb the reward"
