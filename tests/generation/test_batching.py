"""Rows that come and go draw what they would draw alone, to the bit."""
import numpy as np
import paddle
import pytest
from test_decoding import build, texts

from vilg import runtime
from vilg.app.pipeline import load
from vilg.errors import ShapeError, VilgError
from vilg.generation.autoregressive import generate_images
from vilg.generation.batching import DrawingBatch
from vilg.generation.sampling import SamplingConfig
from vilg.runtime import CPU_MATHS

PLAIN = SamplingConfig(temperature=1.0)
SETTINGS = [PLAIN, SamplingConfig(temperature=0.7, guidance=2.5), SamplingConfig(temperature=0.0),
            SamplingConfig(temperature=1.3, top_k=5, top_p=0.8), SamplingConfig(guidance=3.0, guidance_min_p=0.2)]


@pytest.fixture(scope="module")
def model():
    return build(rows=4, columns=5)


@pytest.fixture(scope="module")
def prompts():
    return texts(5, 2, 3, 4)


def alone(model, prompts, which, seed, samples, sampling, **known):
    ids, length = prompts
    return generate_images(model, ids[which:which + 1], length[which:which + 1], num_images=len(samples), seeds=seed,
                           sampling=sampling, first_sample=samples.start, **known).codes.numpy()


def put(batch, prompts, which, seed, samples, sampling, **known):
    ids, length = prompts
    return batch.add(ids[which].numpy(), int(length[which]), seed, samples, sampling, **known)


def finish(batch):
    while batch.live:
        batch.step()


def codes(rows):
    assert all(row.done for row in rows)
    return np.stack([row.codes for row in rows])


def test_settings_seeds_and_samples_differ_by_row(model, prompts):
    batch = DrawingBatch(model, 40)
    asked = [(which, 10 + number, range(number, number + 1 + number % 3), sampling)
             for number, (which, sampling) in enumerate(zip([0, 1, 2, 3, 0], SETTINGS))]
    rows = [put(batch, prompts, *one) for one in asked]
    finish(batch)
    drawn = [codes(each) for each in rows]
    for one, got in zip(asked, drawn):
        np.testing.assert_array_equal(got, alone(model, prompts, *one))
    assert len({got[0].tobytes() for got in drawn}) == len(asked)  # the rows are told apart


@pytest.mark.parametrize("late", [1, 7, 19])
def test_a_newcomer_draws_the_same_and_changes_nobody(model, prompts, late):
    batch = DrawingBatch(model, 8)
    first = put(batch, prompts, 0, 5, range(3), SETTINGS[1])
    for _ in range(late):
        batch.step()
    second = put(batch, prompts, 1, 6, range(2), PLAIN)
    assert batch.live == 5
    finish(batch)
    np.testing.assert_array_equal(codes(first), alone(model, prompts, 0, 5, range(3), SETTINGS[1]))
    np.testing.assert_array_equal(codes(second), alone(model, prompts, 1, 6, range(2), PLAIN))


def test_who_leaves_disturbs_nobody_and_makes_room(model, prompts):
    batch = DrawingBatch(model, 3)
    gone, stays = put(batch, prompts, 0, 1, range(2), PLAIN), put(batch, prompts, 1, 2, range(1), PLAIN)
    for _ in range(6):
        batch.step()
    batch.cancel(gone)
    assert batch.live == 1
    new = put(batch, prompts, 2, 3, range(2), PLAIN)
    told = []
    while batch.live:
        told += batch.step()
    assert not set(map(id, told)) & set(map(id, gone))
    np.testing.assert_array_equal(codes(stays), alone(model, prompts, 1, 2, range(1), PLAIN))
    np.testing.assert_array_equal(codes(new), alone(model, prompts, 2, 3, range(2), PLAIN))


def test_nothing_is_drawn_for_those_who_left(model, prompts):
    batch = DrawingBatch(model, 4)
    rows = put(batch, prompts, 0, 1, range(2), PLAIN)
    waiting = put(batch, prompts, 1, 1, range(2), PLAIN)
    batch.cancel(waiting)
    batch.step()
    assert not any(row.drawn for row in waiting) and batch.live == 2
    batch.cancel(rows)
    assert batch.live == 0 and batch.step() == [] and rows[0].drawn == 1


def test_known_codes_are_kept_and_drawn_around(model, prompts):
    rng = np.random.default_rng(0)
    known, mask = rng.integers(0, 12, 20), rng.random(20) < 0.5
    batch = DrawingBatch(model, 8)
    rows = put(batch, prompts, 0, 4, range(2), SETTINGS[1], known_codes=known, known_mask=mask)
    others = put(batch, prompts, 0, 4, range(2), SETTINGS[1])
    finish(batch)
    np.testing.assert_array_equal(codes(rows), alone(model, prompts, 0, 4, range(2), SETTINGS[1],
                                                     known_codes=paddle.to_tensor(known),
                                                     known_mask=paddle.to_tensor(mask)))
    assert (codes(rows)[:, mask] == known[mask]).all() and (codes(others) != codes(rows)).any()


def test_newcomers_gather_while_there_are_as_many_cohorts_as_may_be(model, prompts):
    batch = DrawingBatch(model, 8, cohorts=2)
    asked = [(0, 1, range(1), PLAIN), (1, 2, range(2), SETTINGS[1]), (2, 3, range(1), PLAIN), (0, 4, range(1), PLAIN)]
    rows = []
    for one in asked:
        rows += put(batch, prompts, *one)
        batch.step()
    assert batch.live == 5 and [row.drawn for row in rows] == [4, 3, 3, 0, 0]
    while not rows[0].done:
        batch.step()
    batch.step()
    assert [row.drawn for row in rows] == [20, 20, 20, 1, 1]  # rows[1:3] were done with the last step
    finish(batch)
    drawn = iter(rows)
    for one in asked:
        np.testing.assert_array_equal(np.stack([next(drawn).codes for _ in one[2]]), alone(model, prompts, *one))


def test_rows_tell_of_every_row_of_the_grid(model, prompts):
    batch = DrawingBatch(model, 8)
    row, = put(batch, prompts, 0, 4, range(1), PLAIN)
    told = []
    while batch.live:
        told += [(one.drawn, one.codes[:one.drawn].copy()) for one in batch.step()]
    assert [drawn for drawn, _ in told] == [5, 10, 15, 20]
    for drawn, so_far in told:
        np.testing.assert_array_equal(so_far, row.codes[:drawn])


def test_what_does_not_fit_is_refused(model, prompts):
    batch = DrawingBatch(model, 2)
    put(batch, prompts, 0, 1, range(2), PLAIN)
    with pytest.raises(VilgError, match="2 rows are drawn and 1 more came, but the batch holds 2"):
        put(batch, prompts, 0, 1, range(1), PLAIN)
    with pytest.raises(ShapeError, match=r"known codes \[7\].*20 tokens"):
        put(DrawingBatch(model, 2), prompts, 0, 1, range(1), PLAIN, known_codes=np.zeros(7), known_mask=np.zeros(20))
    for sizes in ((0,), (1, 0)):
        with pytest.raises(VilgError, match="at least 1"):
            DrawingBatch(model, *sizes)


@pytest.mark.parametrize("cpu_math", CPU_MATHS)
def test_the_shipped_model_draws_its_bits_in_every_precision(cpu_math):
    pipeline = load("ernie_vilg_tiny", cpu_math=cpu_math)
    try:
        words = pipeline.text_tokenizer.encode_prompts(["一个红色的圆形", "左边是蓝色的方块，右边是黄色的星星", "猫脸"],
                                                       pipeline.model.config.text_length, strict=True)
        prompts = paddle.to_tensor(words.ids), paddle.to_tensor(words.length)
        batch, rows = DrawingBatch(pipeline.model, 40), []
        # From 3 rows to 32 and back, so that stacks of 8, 16, 32 and 64 rows have their turn; half are guided.
        asked = [(number % 3, number, range(1 + 2 * number), SETTINGS[number % 2]) for number in range(5)]
        for one in asked:
            rows.append(put(batch, prompts, *one))
            for _ in range(5):
                batch.step()
        finish(batch)
        for one, got in zip(asked, rows):
            np.testing.assert_array_equal(codes(got), alone(pipeline.model, prompts, *one))
    finally:
        runtime.configure(runtime.RuntimeConfig())
