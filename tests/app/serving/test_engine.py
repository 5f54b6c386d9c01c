"""The engine: who draws with whom, who leaves, and whose fault is whose."""
import threading
import time

import numpy as np
import pytest

import vilg
from vilg.app.serving.engine import Busy, Drawing, Engine
from vilg.errors import VilgError

PROMPTS = ["一个红色的圆形", "圆形在左边", "图里有几个", "蓝色的方块"]


@pytest.fixture(scope="module")
def pipeline(released_model):
    return vilg.load(released_model)


@pytest.fixture
def engine(pipeline):
    one = Engine(lambda: {"untrained": pipeline}, rows=8, wait=0.2, queue=6)
    one.ready(60)
    yield one
    one.close()


def drawing(pipeline, prompt, count=1, seed=0, on_row=None, **settings):
    batch = pipeline.text_tokenizer.encode_prompts([prompt], pipeline.model.config.text_length, strict=True)
    return Drawing(pipeline, batch.ids[0], int(batch.length[0]), count, seed, pipeline.sampling.over(settings),
                   on_row=on_row)


def test_what_waits_is_drawn_side_by_side_and_is_the_same(engine, pipeline, block):
    let_go = block(engine)
    asked = [(PROMPTS[number], 1 + number % 2, number, {"temperature": 0.5 + number / 4}) for number in range(4)]
    tickets = [engine.draw(drawing(pipeline, text, count, seed, **settings)) for text, count, seed, settings in asked]
    let_go.set()
    drawn = [ticket.future.result(30) for ticket in tickets]
    for (text, count, seed, settings), got in zip(asked, drawn):
        own = pipeline.text_to_image(text, num_images=count, seed=seed, **settings)[0]
        np.testing.assert_array_equal(got, np.stack([np.asarray(one) for one in own]))
    assert engine.steps == 16 and engine.row_steps == 6 * 16 and engine.drawn == 6  # all six in one batch of 4×4 tokens
    assert len({one.tobytes() for got in drawn for one in got}) == 6


def test_who_leaves_is_not_drawn_on(engine, pipeline, block):
    started, ticket = threading.Event(), []

    def leave(codes):
        started.set()
        ticket[0].cancel()

    let_go = block(engine)
    ticket.append(engine.draw(drawing(pipeline, PROMPTS[0], 4, on_row=leave)))
    let_go.set()
    assert started.wait(30)
    assert engine.draw(drawing(pipeline, PROMPTS[1])).future.result(30).shape == (1, 16, 16, 3)
    assert engine.drawn == 1 and engine.busy_rows() == 0
    assert engine.row_steps == 4 * 4 + 16  # a row of the grid, no more
    assert ticket[0].future.cancelled()


def test_who_leaves_the_queue_costs_nothing(engine, pipeline, block):
    let_go = block(engine)
    engine.draw(drawing(pipeline, PROMPTS[0], 4)).cancel()
    let_go.set()
    engine.draw(drawing(pipeline, PROMPTS[1])).future.result(30)
    assert engine.row_steps == 16


def test_one_that_fails_does_not_spoil_the_others(engine, block):
    let_go = block(engine)

    def picky(items, _):
        if "bad" in items:
            raise VilgError("bad is bad")
        return [item.upper() for item in items]

    good, bad, also = (engine.call("picky", item, picky) for item in ("a", "bad", "b"))
    let_go.set()
    assert (good.future.result(30), also.future.result(30)) == ("A", "B")
    with pytest.raises(VilgError, match="bad is bad"):
        bad.future.result(30)


def test_a_drawing_that_fails_leaves_the_engine_at_work(engine, pipeline):
    broken = drawing(pipeline, PROMPTS[0])
    broken.keep = (np.zeros([16, 16, 3], "uint8"), np.zeros(3, bool))  # of no grid
    with pytest.raises(VilgError):
        engine.draw(broken).future.result(30)
    assert engine.draw(drawing(pipeline, PROMPTS[1])).future.result(30).shape == (1, 16, 16, 3)


def test_a_failing_step_is_told_to_those_concerned(engine, pipeline):
    def fail(codes):
        raise MemoryError

    with pytest.raises(MemoryError):
        engine.draw(drawing(pipeline, PROMPTS[0], on_row=fail)).future.result(30)
    assert engine.is_ready and engine.draw(drawing(pipeline, PROMPTS[1])).future.result(30).shape[0] == 1


def test_a_full_queue_and_too_many_pictures_are_refused(engine, pipeline, block):
    let_go = block(engine)
    waiting = [engine.draw(drawing(pipeline, PROMPTS[0])) for _ in range(6)]
    with pytest.raises(Busy, match="6 requests wait already"):
        engine.draw(drawing(pipeline, PROMPTS[0]))
    with pytest.raises(VilgError, match="more than the 8"):
        engine.draw(drawing(pipeline, PROMPTS[0], 9))
    let_go.set()
    assert all(one.future.result(30).shape[0] == 1 for one in waiting)


def test_texts_do_not_wait_for_pictures(engine, pipeline):
    order = []
    first = threading.Event()
    ticket = engine.draw(drawing(pipeline, PROMPTS[0], 2, on_row=lambda codes: (first.set(), time.sleep(0.2))))
    ticket.future.add_done_callback(lambda _: order.append("picture"))
    assert first.wait(30)
    said = engine.call("text", 1, lambda items, _: items)
    said.future.add_done_callback(lambda _: order.append("text"))
    ticket.future.result(30)
    assert order == ["text", "picture"]


def test_an_engine_that_ends_lets_everybody_go(pipeline, block):
    engine = Engine(lambda: {"untrained": pipeline}, rows=8, queue=6)
    engine.ready(60)
    let_go = block(engine)
    waiting = engine.draw(drawing(pipeline, PROMPTS[0]))
    let_go.set()
    engine.close()
    assert waiting.future.done() and not engine.is_ready
    with pytest.raises(Busy, match="ending"):
        engine.draw(drawing(pipeline, PROMPTS[0]))


def test_what_cannot_be_loaded_is_told():
    def load():
        raise VilgError("no such model")

    with pytest.raises(VilgError, match="no such model"):
        Engine(load).ready(30)
