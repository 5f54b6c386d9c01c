import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vilg.data.worlds import scenes
from vilg.data.worlds.scenes.constraints import Constraints, Description, Relation
from vilg.data.worlds.scenes.lexicon import COLOURS, MORE_SHAPES, SHAPES
from vilg.data.worlds.scenes.renderer import coverage
from vilg.data.worlds.scenes.scene import held_out_kinds, held_out_pairs, wide_kinds
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

VOCABULARY = Path(__file__).resolve().parents[3] / "configs" / "vilg" / "vocabulary"


def kinds_and_pairs(scene):
    kinds = {item.kind for item in scene.objects}
    return kinds, {frozenset((one, other)) for one in kinds for other in kinds if one != other}


def test_a_scene_is_a_pure_function_of_split_and_seed():
    first, again = scenes.sample_scene(7, "train"), scenes.sample_scene(7, "train")
    assert first == again
    np.testing.assert_array_equal(scenes.render(first), scenes.render(again))
    assert scenes.sample_scene(7, "test") != first
    with pytest.raises(ValueError, match="train, test, unseen"):
        scenes.sample_scene(0, "validation")


def test_scenes_cover_the_lexicon_and_keep_objects_apart():
    drawn = [scenes.sample_scene(seed, "train") for seed in range(1500)]
    items = [item for scene in drawn for item in scene.objects]
    assert len(COLOURS) >= 8 and len(SHAPES) >= 8
    assert {item.kind for item in items} == {(c, s) for c in COLOURS for s in SHAPES} - held_out_kinds()
    assert {item.size for item in items} == {"small", "large"}
    assert {item.cell for item in items} == {(row, column) for row in range(3) for column in range(3)}
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3}
    graded = sum(scene.background.start != scene.background.end for scene in drawn)
    assert 0.3 < graded / len(drawn) < 0.7
    for scene in drawn:
        for i, one in enumerate(scene.objects):
            for other in scene.objects[:i]:
                gap = max(abs(one.x - other.x), abs(one.y - other.y)) - (one.extent + other.extent) / 2
                assert gap >= 3


def test_wide_scenes_add_colours_and_shapes_and_show_nothing_held_out():
    shown = set()
    for seed in range(4000):
        scene = scenes.sample_scene(seed, "train", wide=True)
        kinds, pairs = kinds_and_pairs(scene)
        assert kinds & set(wide_kinds()), seed
        assert not kinds & held_out_kinds() and not pairs & held_out_pairs()
        shown |= kinds
    assert shown >= set(wide_kinds()) and len(wide_kinds()) > 300
    # Every colour and shape of the tested world goes with new ones.
    assert {colour for colour, _ in wide_kinds()} >= set(COLOURS)
    assert {shape for _, shape in wide_kinds()} >= set(SHAPES)
    with pytest.raises(ValueError, match="wide scenes are for split train, not test"):
        scenes.sample_scene(0, "test", wide=True)


def test_captions_and_questions_of_wide_scenes_are_true_and_in_the_vocabulary():
    words = WordPieceTokenizer.from_folder(VOCABULARY)
    for seed in range(300):
        scene, rng = scenes.sample_scene(seed, "train", wide=True), np.random.default_rng(seed)
        for caption in scenes.captions(scene, rng, 3):
            assert scenes.parse_caption(caption).hold(scene), caption
            assert words.unk_id not in words.encode(caption, 28), caption
        for question, answer in scenes.questions(scene, rng, 4):
            assert scenes.answer_is_right(question, answer, scene), (question, answer)


@pytest.mark.parametrize("shape", MORE_SHAPES)
def test_shapes_of_wide_scenes_differ_from_all_others(shape):
    cover = {name: coverage(name, 32.0, 32.0, 23.0, 64)[0] for name in SHAPES + MORE_SHAPES}
    assert 0.2 < cover[shape].mean() < 0.95
    assert min(np.abs(cover[shape] - other).mean() for name, other in cover.items() if name != shape) > 0.05


@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_scenes_of_several_kinds_when_asked(split):
    for seed in range(100):
        assert len(kinds_and_pairs(scenes.sample_scene(seed, split, kinds=2))[0]) >= 2
        assert scenes.sample_scene(seed, split, kinds=1) == scenes.sample_scene(seed, split)


def test_held_out_combinations_are_never_seen():
    assert {colour for colour, _ in held_out_kinds()} == set(COLOURS)
    assert {shape for _, shape in held_out_kinds()} == set(SHAPES)
    assert 0.05 < len(held_out_pairs()) / (56 * 55 / 2) < 0.15
    for split in ("train", "test"):
        for seed in range(1000):
            kinds, pairs = kinds_and_pairs(scenes.sample_scene(seed, split))
            assert not kinds & held_out_kinds() and not pairs & held_out_pairs()
    for seed in range(500):
        kinds, pairs = kinds_and_pairs(scenes.sample_scene(seed, "unseen"))
        assert pairs & held_out_pairs() if seed % 2 else kinds & held_out_kinds()


def test_the_text_of_training_never_names_a_held_out_kind():
    for seed in range(300):
        scene, rng = scenes.sample_scene(seed, "train"), np.random.default_rng(seed)
        claims = [scenes.parse_caption(text) for text in scenes.captions(scene, rng)]
        asked = [scenes.parse_question(question) for question, _ in scenes.questions(scene, rng)]
        named = {(group.colour, group.shape) for claim in claims for group in claim.groups}
        named |= {(part.colour, part.shape) for question in asked for part in (question.about, question.other) if part}
        named |= {(question.colour, question.about.shape) for question in asked if question.colour}
        assert not named & held_out_kinds()


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_captions_parse_back_and_are_true(split):
    letters, lengths = set(), []
    for seed in range(300):
        scene = scenes.sample_scene(seed, split)
        texts = scenes.captions(scene, np.random.default_rng(seed), 4)
        if seed < 20:
            assert scenes.satisfies(scenes.render(scene), texts[0])
        assert len(texts) == len(set(texts)) >= 2
        for text in texts:
            assert scenes.describes(text, scene), text
            letters.update(text)
            lengths.append(len(text))
    assert max(lengths) <= 24 and np.mean(lengths) < 15 and len(letters) <= 120


def test_captions_of_unseen_scenes_name_what_is_unseen():
    for seed in range(200):
        scene = scenes.sample_scene(seed, "unseen")
        for text in scenes.captions(scene, np.random.default_rng(seed)):
            assert all(group.colour and group.shape for group in scenes.parse_caption(text).groups), text


@pytest.mark.parametrize("text, constraints", [
    ("两个红色的圆形", Constraints((Description(2, "red", "circle"),))),
    ("左上角有一个大的蓝色方块", Constraints((Description(1, "blue", "square", "large", (0, 0)),))),
    ("红色的小圆形在蓝色方块的左边", Constraints(
        (Description(1, "red", "circle", "small"), Description(1, "blue", "square")), (Relation(0, "left", 1),))),
    ("蓝色方块的上面有两颗星星，还有一个黑色十字", Constraints(
        (Description(2, None, "star"), Description(1, "blue", "square"), Description(1, "black", "cross")),
        (Relation(0, "above", 1),))),
    ("绿色菱形在右边。", Constraints((Description(1, "green", "diamond", None, (1, 2)),))),
])
def test_parse(text, constraints):
    assert scenes.parse_caption(text) == constraints


@pytest.mark.parametrize("text", ["", "一只猫", "红色", "红色圆形和", "红色圆形在", "大的小圆形", "左边"])
def test_text_outside_the_grammar_is_refused(text):
    assert scenes.parse_caption(text) is None
    assert not scenes.satisfies(scenes.render(scenes.sample_scene(0, "train")), text)


def test_false_captions_are_found_out():
    wrong = total = 0
    for seed in range(200):
        scene, other = scenes.sample_scene(seed, "test"), scenes.sample_scene(seed + 10_000, "test")
        for text in scenes.captions(other, np.random.default_rng(seed)):
            total += 1
            wrong += scenes.describes(text, scene)
    assert wrong / total < 0.02


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_questions_have_right_answers_only(split):
    kinds = set()
    for seed in range(300):
        scene, other = scenes.sample_scene(seed, split), scenes.sample_scene(seed + 10_000, split)
        for question, answer in scenes.questions(scene, np.random.default_rng(seed)):
            kinds.add(scenes.parse_question(question).kind)
            assert scenes.answer_is_right(question, answer, scene), (question, answer)
            assert not scenes.answer_is_right(question, "不知道", other)
    assert kinds == set(scenes.KINDS)


@pytest.mark.parametrize("seed", range(40))
def test_wrong_answers_are_wrong(seed):
    scene = scenes.sample_scene(seed, "test")
    asked = dict(scenes.questions(scene, np.random.default_rng(seed), 8))
    for question in asked:
        right = [answer for answer in ("有", "没有", "是", "不是", "红色", "蓝色", "圆形", "心形", "一个", "两个", "左上角", "中间")
                 if scenes.answer_is_right(question, answer, scene)]
        assert len(right) <= 2, (question, right)


def test_the_reader_agrees_with_the_truth():
    wrong = [(split, seed) for split in ("train", "unseen") for seed in range(250)
             if scenes.read(scenes.render(scene := scenes.sample_scene(seed, split))).facts() != scene.facts()]
    assert len(wrong) <= 0.005 * 500, wrong


def blurred(picture, rng):
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1)))


def noisy(picture, rng):
    return np.clip(picture + rng.normal(0, 15, picture.shape), 0, 255).astype(np.uint8)


def compressed(picture, rng):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer).convert("RGB"))


def tinted(picture, rng):
    return np.clip(picture + rng.uniform(-15, 15, 3), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("damage", [blurred, noisy, compressed, tinted])
def test_the_reader_bears_damage(damage):
    right = 0
    for seed in range(60):
        scene = scenes.sample_scene(seed, "test")
        damaged = damage(scenes.render(scene), np.random.default_rng(seed))
        right += scenes.read(damaged).facts() == scene.facts()
    assert right >= 58


def test_the_reader_reads_other_sizes_and_empty_pictures():
    scene = scenes.sample_scene(3, "train")
    assert scenes.read(scenes.render(scene, 256)).facts() == scene.facts()
    assert scenes.read(np.full((64, 64, 3), 240, np.uint8)).objects == ()


def test_the_reader_does_not_take_any_blot_for_a_shape():
    picture = np.full((64, 64, 3), 250, np.uint8)
    picture[20:26, 10:50] = (220, 40, 45)  # a bar
    assert [item.shape for item in scenes.read(picture).objects] == ["unknown"]
    assert not scenes.satisfies(picture, "一个红色的图形")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not scenes.satisfies(noise, "一个红色的圆形")
