import numpy as np
import pytest

from vilg.data.worlds import scenes
from vilg.evaluation.scenes import Model, evaluate_scenes

COUNT, SEED = 12, 3
ANSWERS = sorted({answer for seed in range(60) for _, answer in
                  scenes.questions(scenes.sample_scene(seed, "train"), np.random.default_rng(seed))})


def truths(split):
    return [scenes.sample_scene(SEED * 1_000_003 + index, split) for index in range(COUNT)]


class Knowing:
    """Draws, describes and answers from the truth; the first ``wrong`` samples of a text are blank pictures."""

    def __init__(self, split, wrong=0):
        self.scenes, self.wrong = truths(split), wrong
        self.pictures = [scenes.render(scene, 64) for scene in self.scenes]
        self.blank = np.full((64, 64, 3), 250, dtype="uint8")

    def model(self):
        return Model(self.draw, self.rank, self.describe, self.answer)

    def draw(self, texts, num_images, seed):
        return [[self.blank] * self.wrong + [picture] * (num_images - self.wrong) for picture in self.pictures]

    def rank(self, text, pictures):
        return [float(picture.std()) for picture in pictures]

    def describe(self, pictures):
        return [scenes.captions(scene, np.random.default_rng(9))[0] for scene in self.scenes]

    def answer(self, pictures, questions):
        return [next((answer for answer in ANSWERS if scenes.answer_is_right(question, answer, scene)), "不知道")
                for scene, question in zip(self.scenes, questions)]


def figures(model, split):
    return dict(evaluate_scenes(model, COUNT, SEED, 64, best_of=4, splits=(split,)))


@pytest.mark.parametrize("split, suffix", [("test", ""), ("unseen", "_unseen")])
def test_the_truth_scores_one(split, suffix):
    found = figures(Knowing(split).model(), split)
    assert found.keys() == {f"{name}{suffix}" for name in ("t2i_single", "t2i_best_of_4", "i2t", "vqa")}
    assert found[f"t2i_single{suffix}"] >= 0.9 and found[f"i2t{suffix}"] == 1 and found[f"vqa{suffix}"] >= 0.9


def test_ranking_saves_what_the_first_sample_misses():
    found = figures(Knowing("test", wrong=1).model(), "test")
    assert found["t2i_single"] == 0 and found["t2i_best_of_4"] >= 0.9


def test_other_scenes_score_low():
    knowing = Knowing("test")
    knowing.pictures.reverse()
    knowing.scenes.reverse()
    ignorant = Model(knowing.draw, knowing.rank, knowing.describe, lambda pictures, questions: ["不知道"] * COUNT)
    found = figures(ignorant, "test")
    assert found["t2i_single"] < 0.5 and found["i2t"] < 0.5 and found["vqa"] == 0


def test_scenes_that_training_showed_are_told_apart():
    knowing = Knowing("test")
    right = knowing.scenes
    knowing.scenes = [*right[:6], *right[:6]]  # wrong about the last six
    found = dict(evaluate_scenes(knowing.model(), COUNT, SEED, 64, best_of=4, splits=("test",), trained=set(right[:6])))
    assert found["scenes_new"] == 0.5 and found["i2t"] >= 0.5
    assert found["i2t_new"] == pytest.approx(2 * found["i2t"] - 1)
    assert dict(evaluate_scenes(knowing.model(), COUNT, SEED, 64, best_of=4, splits=("test",), trained=set()))[
        "i2t_new"] == found["i2t"]
