"""Recall with ties at chance, checked by drawing orders and by counting by hand."""
import itertools

import numpy as np
import pytest

from vilg.errors import DataError
from vilg.metrics.calibration import calibration_error, refused_share
from vilg.metrics.retrieval import Standing, best_scores, joined, standing, standing_of_vectors


def by_all_orders(row, true, k):
    """Recall of one query by trying every order of its candidates, sorted stably by score."""
    hits = [bool(set(sorted(order, key=lambda column: -row[column])[:k]) & set(true))
            for order in itertools.permutations(range(len(row)))]
    return np.mean(hits)


@pytest.mark.parametrize("seed", range(6))
def test_ties_count_as_the_mean_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, [4, 6]).astype(float)
    positives = [rng.choice(6, size, replace=False).tolist() for size in (1, 2, 3, 1)]
    stand = standing(scores, positives)
    for k in (1, 2, 5):
        assert stand.recall(k) == pytest.approx(
            np.mean([by_all_orders(row, true, k) for row, true in zip(scores, positives)]))


@pytest.mark.parametrize("count", [7, 23, 1000])
def test_a_collapsed_model_scores_chance(count):
    same = np.ones([count, 8]) / np.sqrt(8)
    noisy = (same + np.random.default_rng(0).normal(0, 1e-8, same.shape)).astype("float32")
    stand = standing_of_vectors(noisy, noisy, [[number] for number in range(count)])
    assert stand.recall(1) == pytest.approx(1 / count) == stand.chance(1)
    assert stand.recall(10) == pytest.approx(min(1, 10 / count))


def test_several_positives_make_the_best_of_them_count():
    scores = np.array([[0.1, 0.9, 0.8, 0.7], [0.9, 0.1, 0.2, 0.3]])
    stand = standing(scores, [[0, 2], [1, 2]])
    assert (stand.above.tolist(), stand.tied.tolist()) == ([1, 2], [1, 1])
    assert [stand.recall(k) for k in (1, 2, 3, 9)] == [0, 0.5, 1, 1]
    assert stand.chance(1) == 0.5 and stand.chance(2) == pytest.approx(1 - 1 / 6)


def test_directions_differ():
    """Queries are rows: a matrix and its transpose have other recalls."""
    vectors = np.array([[1.0, 0], [0.9, 0.1], [0, 1]]), np.array([[1.0, 0], [0.99, 0.05], [-1, 0]])
    own = [[0], [1], [2]]
    there, back = standing_of_vectors(*vectors, own), standing_of_vectors(*vectors[::-1], own)
    assert (there.recall(1), back.recall(1)) == (1 / 3, 2 / 3)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    queries, candidates = rng.normal(size=[50, 4]), rng.normal(size=[31, 4])
    positives = [rng.choice(31, 2, replace=False).tolist() for _ in range(50)]
    whole = standing_of_vectors(queries, candidates, positives), best_scores(queries, candidates, positives)
    monkeypatch.setattr("vilg.metrics.retrieval._BLOCK_SCORES", 100)
    parts = standing_of_vectors(queries, candidates, positives), best_scores(queries, candidates, positives)
    assert np.array_equal(whole[0].above, parts[0].above) and np.allclose(whole[1], parts[1])
    plain = standing(queries @ candidates.T, positives)
    assert np.array_equal(whole[0].above, plain.above) and whole[0].recall(5) == plain.recall(5)


def test_best_scores_leave_out_what_is_named():
    queries, candidates = np.eye(2), np.array([[1.0, 0], [0.5, 0.2], [0, 1]])
    assert best_scores(queries, candidates, [[0], []]).tolist() == [0.5, 1]
    assert best_scores(queries, candidates, [[0, 1, 2], [2]])[0] == -np.inf


def test_searches_of_their_own_are_weighed_by_queries():
    one = standing(np.array([[1.0, 0]]), [[0]])
    three = standing(np.array([[1.0, 0, 0]] * 3), [[1], [1], [0]])
    assert joined([one, three]) == pytest.approx([2 / 4, (1 / 2 + 3 * 1 / 3) / 4])


def test_figures_are_named():
    figures = standing(np.eye(20), [[number] for number in range(20)]).figures("scenes_t2i")
    assert figures == pytest.approx({"scenes_t2i_r1": 1, "scenes_t2i_r5": 1, "scenes_t2i_r10": 1,
                                     "scenes_t2i_mean_recall": 1, "scenes_t2i_chance": 0.05})


@pytest.mark.parametrize("scores, positives, sentence", [
    (np.zeros([0, 3]), [], "0 queries"), (np.zeros([2, 3]), [[0]], "2 queries and true candidates of 1"),
    (np.zeros([1, 3]), [[]], "query 0"), (np.zeros([1, 3]), [[3]], "from 0 to 2"), (np.zeros([1, 3]), [[1, 1]], "1, 1"),
    (np.full([1, 3], np.nan), [[0]], "not finite")])
def test_what_is_no_retrieval_task_is_refused(scores, positives, sentence):
    with pytest.raises(DataError, match=sentence):
        standing(scores, positives)


def test_calibration_error():
    rng = np.random.default_rng(0)
    similarities = rng.uniform(size=200_000)
    assert calibration_error(similarities, rng.uniform(size=200_000) < similarities) < 0.01
    assert calibration_error(similarities, rng.uniform(size=200_000) < similarities ** 2) == pytest.approx(1 / 6, 0.05)
    assert calibration_error(np.array([0.9, 0.9, 1.0, 0.0]), [True, False, True, False]) == pytest.approx(0.2)
    with pytest.raises(DataError, match="from 0 to 1.2"):
        calibration_error(np.array([0, 1.2]), [True, False])
    with pytest.raises(DataError, match="do not make pairs"):
        calibration_error(np.array([]), [])


def test_refusals_at_a_share_of_false_ones():
    matching, without = np.arange(100) / 100, np.array([0.01, 0.04, 0.049, 0.05, 0.9])
    share, threshold = refused_share(matching, without)
    assert threshold == 0.05 and np.mean(matching < threshold) == 0.05 and share == 0.6
    assert refused_share(np.ones(10), np.ones(10))[0] == 0, "a collapsed model refuses nothing"


def test_a_standing_of_one_true_candidate_far_down():
    stand = Standing(np.array([40]), np.array([1]), np.array([1]), np.array([1]), 50)
    assert (stand.recall(10), stand.recall(41), stand.mean_recall) == (0, 1, 0)
