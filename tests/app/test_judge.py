"""best_of by a dual encoder: its choice, its name and score in the metadata, and what it cannot read told at once."""
import numpy as np
import pytest

from vilg.app import pipeline
from vilg.errors import CheckpointError, VilgError

TEXTS = ["一个红色的圆形", "蓝色的方块在左边"]


@pytest.fixture(scope="module")
def model(released_model):
    return pipeline.load(released_model)


def arrays(rows):
    return [[np.asarray(image) for image in row] for row in rows]


def test_the_judge_chooses(model, encoder):
    drawn = arrays(model.text_to_image(TEXTS, num_images=6, seed=1, temperature=1.0))
    chosen = model.text_to_image(TEXTS, num_images=2, best_of=6, seed=1, temperature=1.0, judge=encoder)
    other = model.text_to_image(TEXTS, num_images=2, best_of=6, seed=1, temperature=1.0)
    differs = False
    for text, all_drawn, row, plain in zip(TEXTS, drawn, chosen, other):
        similarities = encoder.similarity([text], all_drawn)[0]
        best = np.argsort(-similarities)[:2]
        assert [image.info["sample"] for image in row] == best.tolist()
        assert all(np.array_equal(np.asarray(image), all_drawn[place]) for image, place in zip(row, best))
        assert [image.info["similarity"] for image in row] == pytest.approx(similarities[best], abs=1e-5)
        assert {image.info["judge"] for image in row} == {encoder.name} and "log_p_text" not in row[0].info
        assert {image.info["judge"] for image in plain} == {"P(text | image)"} and "log_p_text" in plain[0].info
        differs |= [image.info["sample"] for image in plain] != best.tolist()
    assert differs, "the two judges agree on everything: the test tells nothing"


def test_any_object_with_similarities_judges(model):
    class Reddest:
        def similarity(self, texts, images):
            return [[np.asarray(image)[..., 0].mean() for image in images] for _ in texts]

    drawn = arrays(model.text_to_image(TEXTS[:1], num_images=5, seed=2, temperature=1.0))[0]
    [[best]] = model.text_to_image(TEXTS[:1], best_of=5, seed=2, temperature=1.0, judge=Reddest())
    assert np.array_equal(np.asarray(best), max(drawn, key=lambda image: image[..., 0].mean()))
    assert best.info["judge"] == "Reddest"


def test_a_judge_is_loaded_by_its_name(model, encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "load_any", lambda name, *_: asked.append(name) or encoder)
    model.text_to_image(TEXTS[:1], best_of=2, judge="some_name")
    assert asked == ["some_name"]


def test_what_cannot_judge_is_refused_before_drawing(model, encoder, released_model, monkeypatch):
    monkeypatch.setattr(model, "_draw", None)
    with pytest.raises(VilgError, match="say how many to draw for each text with best_of"):
        model.text_to_image(TEXTS, judge=encoder)
    with pytest.raises(VilgError, match="an object with similarity"):
        model.text_to_image(TEXTS, best_of=2, judge=3)
    with pytest.raises(CheckpointError, match="is no dual encoder"):
        model.text_to_image(TEXTS, best_of=2, judge=str(released_model))
    with pytest.raises(CheckpointError, match="nowhere: no such model"):
        model.text_to_image(TEXTS, best_of=2, judge="nowhere")
    with pytest.raises(VilgError, match="80 tokens and this model reads 38"):
        model.text_to_image(["红色" * 40], best_of=2, judge=encoder)
