"""The pipeline keeps texts, images, questions, seeds and batches apart: with a model whose outputs differ for each."""
import numpy as np
import paddle
import pytest

from vilg.app import pipeline
from vilg.data.worlds import scenes

TEXTS = ["一个红色的圆形", "蓝色的方块在左边", "图里有几个方块", "圆形", "红色"]
QUESTIONS = ["图里有几个圆形？", "左边有蓝色的方块？", "红色？"]


@pytest.fixture(scope="module")
def model(released_model):
    return pipeline.load(released_model)


@pytest.fixture(scope="module")
def images():
    return [scenes.render(scenes.sample_scene(seed, "train"), 16) for seed in range(6)]


def pixels(rows):
    return [[np.asarray(image) for image in row] for row in rows]


def all_differ(items):
    return len({np.asarray(item).tobytes() for item in items}) == len(items)


def test_the_models_outputs_differ(model, images):
    """Without this the tests below could not fail."""
    assert all_differ([row[0] for row in pixels(model.text_to_image(TEXTS, temperature=0.0))])
    assert len(set(model.image_to_text(images))) == len(images)
    for image in images[:2]:
        assert len({model.answer(image, question)[0] for question in QUESTIONS}) == len(QUESTIONS)
    ranks = model.rank(TEXTS, images)
    assert all_differ(ranks.argsort(axis=1)) and all_differ(ranks) and all_differ(ranks.T)


def test_every_caption_is_of_its_own_image(model, images):
    together = model.image_to_text(images)
    assert together == [model.image_to_text(image)[0] for image in images]
    assert model.image_to_text(images[::-1]) == together[::-1]


def test_an_image_is_read_as_it_is_and_not_mirrored(model, images):
    turned = [np.ascontiguousarray(image[:, ::-1]) for image in images]
    assert model.image_to_text(turned) != model.image_to_text(images)
    tokenizer = model.image_tokenizer
    codes = model.encode(images).numpy().reshape([len(images), *tokenizer.grid])
    mirrored = model.encode(turned).numpy().reshape(codes.shape)
    assert (codes != mirrored).any()
    direct = tokenizer.encode(paddle.to_tensor(np.stack([np.transpose(image, (2, 0, 1)) for image in images])
                                               .astype("float32") / 127.5 - 1)).numpy()
    assert (direct.reshape(codes.shape) == codes).all()


def test_every_answer_is_to_its_own_question_and_image(model, images):
    together = model.answer(images[:3], QUESTIONS)
    assert together == [model.answer(image, question)[0] for image, question in zip(images, QUESTIONS)]
    assert model.answer(images[0], QUESTIONS) == [model.answer(images[0], question)[0] for question in QUESTIONS]
    assert model.answer(images[:3], QUESTIONS[0]) == [model.answer(image, QUESTIONS[0])[0] for image in images[:3]]
    assert len(set(model.answer(images, QUESTIONS[0]))) > 1


def test_rank_judges_every_image_by_every_text(model, images):
    ranks = model.rank(TEXTS, images)
    for row, text in enumerate(TEXTS):
        for column, image in enumerate(images):
            assert ranks[row, column] == pytest.approx(model.rank(text, image)[0, 0], abs=1e-4)


@pytest.mark.parametrize("text", range(3))
def test_best_of_keeps_the_likeliest_of_what_was_drawn_extra(text, model):
    drawn = model.text_to_image(TEXTS, num_images=6, seed=4, temperature=1.0)
    best = model.text_to_image(TEXTS, num_images=2, best_of=6, seed=4, temperature=1.0)
    scores = [image.info["log_p_text"] for image in best[text]]
    every = model.text_to_image(TEXTS, num_images=6, best_of=6, seed=4, temperature=1.0)[text]
    assert scores == sorted((image.info["log_p_text"] for image in every), reverse=True)[:2]
    picks = [image.info["sample"] for image in best[text]]
    assert all(np.array_equal(image, drawn[text][pick]) for image, pick in zip(best[text], picks))


def test_best_of_judges_by_the_texts_own_words_and_beyond_the_first(model):
    best = [row[0].info["sample"] for row in model.text_to_image(TEXTS, best_of=6, seed=4, temperature=1.0)]
    assert len(set(best)) > 1 and max(best) > 0  # not the first of every text
    for text, pick in zip(TEXTS, best):
        alone = model.text_to_image(text, best_of=6, seed=4, temperature=1.0)[0][0]
        assert alone.info["sample"] == pick


def test_later_batches_have_their_own_seeds_and_known_images(model, images, monkeypatch):
    seeds = [3, 4, 5, 6, 7]
    whole = pixels(model.text_to_image([TEXTS[0]] * 5, seed=seeds, temperature=1.0, known_image=images[:5],
                                       known_rows=2))
    assert all_differ([row[0] for row in whole])
    monkeypatch.setattr(pipeline, "DECODE_ROWS", 2)
    parts = pixels(model.text_to_image([TEXTS[0]] * 5, seed=seeds, temperature=1.0, known_image=images[:5],
                                       known_rows=2))
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(whole, parts))
    captions = model.image_to_text(images)
    assert len(set(captions[2:])) == 4 and captions == [model.image_to_text(image)[0] for image in images]


def test_drawing_and_scoring_are_done_in_eval_mode_and_leave_training_as_it_was(model, images):
    inner = model.model
    before = [np.asarray(model.text_to_image(TEXTS[0], seed=1)[0][0]), model.rank(TEXTS, images[:2])]
    inner.train()
    for block in inner.stack.blocks:
        block.dropout = 0.9
    try:
        assert np.array_equal(np.asarray(model.text_to_image(TEXTS[0], seed=1)[0][0]), before[0])
        assert np.allclose(model.rank(TEXTS, images[:2]), before[1])
        assert inner.training
    finally:
        inner.eval()
        for block in inner.stack.blocks:
            block.dropout = 0.0
