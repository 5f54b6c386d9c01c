"""The protocols with encoders that know the answer, know nothing, or know one thing only."""
import json
import logging

import numpy as np
import pytest
from PIL import Image

from vilg.data.benchmarks.retrieval import Benchmark
from vilg.data.worlds import scenes
from vilg.errors import DataError
from vilg.evaluation import matching, retrieval, zero_shot

NAMES = ["红苹果", "猫脸", "火箭", "房子", "书"]
STYLES = {"noto": "渐变风格", "openmoji": "线描风格", "fxemoji": "卡通风格"}
SIDE = 8


def shown(name, style):
    """An image whose red level is the name's number and whose green level is the style's."""
    image = np.zeros([SIDE, SIDE, 3], np.uint8)
    image[..., 0], image[..., 1] = 40 * NAMES.index(name), 60 * list(STYLES).index(style)
    return image


class Knowing:
    """Embeds images of :func:`shown` and texts "X风格的Y" by name and style, or by one of the two alone."""

    name, fingerprint = "knowing", "0"

    def __init__(self, names=True, styles=True):
        self.weights = np.array([names] * len(NAMES) + [styles] * len(STYLES), float)
        self.asked = []

    def _vectors(self, pairs):
        rows = np.zeros([len(pairs), len(NAMES) + len(STYLES)])
        for row, (name, style) in zip(rows, pairs):
            row[name], row[len(NAMES) + style] = 1, 1
        rows = rows * self.weights + 1e-9
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("float32")

    def embed_text(self, texts, strict=True):
        self.asked += texts
        said = [text.split("的", 1) for text in texts]
        return self._vectors([(NAMES.index(name), list(STYLES.values()).index(style)) for style, name in said])

    def embed_image(self, images):
        return self._vectors([(int(image[0, 0, 0]) // 40, int(image[0, 0, 1]) // 60) for image in images])

    def calibrated(self, cosines):
        return np.clip(np.asarray(cosines), 0, 1)


@pytest.fixture
def world(tmp_path):
    """Style noto draws all, openmoji all but the last; (猫脸, openmoji) is a held-out cell, 火箭 a held-out concept, and
    fxemoji a held-out style of three."""
    tables = {}
    for style, names in (("noto", NAMES), ("openmoji", NAMES[:4]), ("fxemoji", NAMES[:3])):
        for name in names:
            split = ("both" if (style, name) == ("fxemoji", "火箭") else "styles" if style == "fxemoji" else
                     "concepts" if name == "火箭" else "cells" if (style, name) == ("openmoji", "猫脸") else "train")
            picture = f"{style}_{NAMES.index(name)}.png"
            Image.fromarray(shown(name, style)).save(tmp_path / picture)
            tables.setdefault(split, []).append({"picture": picture, "captions": [name], "name": name, "style": style,
                                                 "style_name": STYLES[style], "split": split})
    for split, rows in tables.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return str(tmp_path)


def test_styles_are_searched_within_a_style_among_all_concepts(world):
    model = Knowing()
    searches = retrieval.styles_searches(model, world)
    assert {key: [(len(one.queries), len(one.candidates)) for one in found] for key, found in searches.items()} == {
        ("cells", "t2i"): [(1, 4)], ("cells", "i2t"): [(1, 5)], ("styles", "t2i"): [(2, 3)],
        ("styles", "i2t"): [(2, 5)], ("concepts", "t2i"): [(1, 5), (1, 4)], ("concepts", "i2t"): [(1, 5), (1, 5)]}
    assert set(model.asked) == {f"{style}的{name}" for style in STYLES.values() for name in NAMES}
    figures = dict(retrieval.styles_figures(searches))
    assert figures == pytest.approx({
        "cells_t2i_r1": 1, "cells_t2i_chance": 1 / 4, "cells_i2t_r1": 1, "cells_i2t_chance": 1 / 5, "style_t2i_r1": 1,
        "style_t2i_chance": 1 / 3, "style_i2t_r1": 1, "style_i2t_chance": 1 / 5, "concepts_t2i_r1": 1,
        "concepts_t2i_chance": (1 / 4 + 1 / 5) / 2, "concepts_i2t_r1": 1, "concepts_i2t_chance": 1 / 5})


@pytest.mark.parametrize("model, known", [(Knowing(names=False), False), (Knowing(names=False, styles=False), False),
                                          (Knowing(styles=False), True)])
def test_the_concept_must_be_told_and_the_style_is_no_help(world, model, known):
    figures = dict(retrieval.styles_figures(retrieval.styles_searches(model, world)))
    for name, value in figures.items():
        if name.endswith("_r1"):
            assert value == pytest.approx(1 if known else figures[name.replace("_r1", "_chance")])


def test_folders_that_are_no_styles_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no tables of styles"):
        retrieval.styles_searches(Knowing(), str(tmp_path))
    Image.fromarray(shown("书", "noto")).save(tmp_path / "a.png")
    (tmp_path / "train.jsonl").write_text('{"picture": "a.png", "caption": "a"}\n')
    with pytest.raises(DataError, match="image 0 has no style or name"):
        retrieval.styles_searches(Knowing(), str(tmp_path))


def test_true_candidates_are_all_scenes_that_a_caption_describes(encoder):
    searches = retrieval.scenes_searches(encoder, 60, 0, "test", 16)
    world = [scenes.sample_scene(number, "test") for number in range(60)]
    rng = np.random.default_rng([0, 4, 2])
    captions = []
    for scene in world:
        said = scenes.captions(scene, rng)
        captions.append(said[rng.integers(len(said))])
    true = [[number for number, scene in enumerate(world) if scenes.describes(caption, scene)] for caption in captions]
    assert searches["t2i"].positives == true and max(map(len, true)) > 1
    assert searches["i2t"].positives == [[text for text in range(60) if image in true[text]] for image in range(60)]
    assert all(number in row for number, row in enumerate(true))
    np.testing.assert_allclose(searches["t2i"].queries, encoder.embed_text(captions), atol=1e-5)
    np.testing.assert_allclose(searches["i2t"].queries,
                               encoder.embed_image([scenes.render(scene, 16) for scene in world]), atol=1e-5)


def test_all_figures_of_the_worlds(encoder, world, caplog):
    caplog.set_level(logging.ERROR)
    figures = dict(matching.matching_figures(encoder, world, 40, 0))
    for name in ("scenes_t2i_r1", "scenes_i2t_r1", "scenes_unseen_t2i_r1", "cells_t2i_r1", "style_i2t_r1",
                 "concepts_t2i_r1", "scenes_calibration_error", "cells_no_match_refused", "calibration_error",
                 "no_match_refused", "no_match_threshold", "scenes_t2i_chance"):
        assert 0 <= figures[name] <= 1
    assert not [name for name in matching_names(encoder) if name.startswith("cells")], "no folder, no styles"


def matching_names(encoder):
    return [name for name, _ in matching.matching_figures(encoder, None, 10, 0)]


def test_calibration_and_refusals_are_those_of_the_cosines(world):
    sure = retrieval.styles_searches(Knowing(), world)["concepts", "t2i"]
    figures = dict(matching.calibration_figures(Knowing(), sure, 0, "x_"))
    # True pairs have cosine 1, others share the style alone and have 1/2; told apart they are, at any threshold above.
    assert figures == pytest.approx({"x_calibration_error": 0.25, "x_no_match_refused": 1, "x_no_match_threshold": 1},
                                    abs=1e-5)
    blind = retrieval.styles_searches(Knowing(names=False), world)["concepts", "t2i"]
    assert dict(matching.calibration_figures(Knowing(names=False), blind, 0))["no_match_refused"] == 0


@pytest.fixture
def public(tmp_path):
    from tests.data.benchmarks.test_retrieval_files import png, texts

    lines = [f"A{text}B\t{100 + number}\t{png(number)}\n" for number in range(12) for text in texts(number)]
    (tmp_path / "test.tsv").write_text("".join(lines), encoding="utf-8")
    return str(tmp_path)


def test_texts_are_embedded_as_the_published_numbers_have_them(public):
    class Listening(Knowing):
        def embed_text(self, texts, strict=True):
            self.asked += texts
            return np.eye(len(texts), 8, dtype="float32") + 0.1

        def embed_image(self, images):
            return np.ones([len(images), 8], "float32")

    model = Listening()
    dict(retrieval.public_figures(model, public, Benchmark("Scenes-CN", "test")))
    written = retrieval.read_retrieval(public, Benchmark("Scenes-CN", "test")).texts
    assert model.asked == [text.lower() for text in written] != written


def test_a_public_benchmark_and_its_predictions(encoder, public, tmp_path):
    file = str(tmp_path / "predictions.jsonl")
    benchmark = Benchmark("Scenes-CN", "test")
    figures = dict(retrieval.public_figures(encoder, public, benchmark, file))
    assert list(figures) == [f"{way}_{name}" for way in ("t2i", "i2t")
                             for name in ("r1", "r5", "r10", "mean_recall", "chance")]
    assert figures["t2i_chance"] == pytest.approx(1 / 12) and figures["i2t_chance"] == pytest.approx(2 / 24)
    again = dict(retrieval.prediction_figures(file, public, benchmark))
    assert again == pytest.approx({name: figures[name] for name in again}) and len(again) == 4
    assert figures["t2i_r5"] > figures["t2i_r1"] or figures["t2i_r10"] > figures["t2i_r5"]


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "label_cn.txt").write_text("红色\n\n绿色\n蓝色\n", encoding="utf-8")
    for number, count in ((0, 3), (2, 1)):
        folder = tmp_path / f"test/{number:03d}"
        folder.mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (9, 9), ["red", "lime", "blue"][number if image else 2]).save(folder / f"{image}.png")
    return tmp_path


class Colours:
    """Knows three colours."""

    name, fingerprint = "colours", "0"

    def embed_classes(self, labels, templates=("{}",)):
        self.templates = templates
        return np.eye(3, dtype="float32")[[["红色", "绿色", "蓝色"].index(label) for label in labels]]

    def embed_image(self, images):
        return np.stack([image[0, 0] / 255 for image in images]).astype("float32")


def test_zero_shot_classes(classes):
    model = Colours()
    figures = dict(zero_shot.zero_shot_figures(model, str(classes)))
    # Of the three red images one is blue.
    assert figures == pytest.approx({"accuracy": 3 / 4, "top5": 1, "mean_per_class": (2 / 3 + 1) / 2, "chance": 1 / 3})
    (classes / "prompts.txt").write_text("{}\n一张{}的图\n", encoding="utf-8")
    list(zero_shot.zero_shot_figures(model, str(classes), str(classes / "prompts.txt")))
    assert model.templates == ["{}", "一张{}的图"]


def test_damaged_classes_are_named(classes):
    def refused():
        with pytest.raises(DataError) as problem:
            list(zero_shot.zero_shot_figures(Colours(), str(classes)))
        return str(problem.value)

    (classes / "test/003").mkdir()
    assert "003: is not the number of a class; label_cn.txt names 3" in refused()
    (classes / "test/003").rmdir()
    (classes / "test/000/0.png").write_bytes(b"")
    assert "000/0.png" in refused() and "not a whole image" in refused()
    (classes / "label_cn.txt").write_text("\n")
    assert "label_cn.txt: is empty" in refused()
    (classes / "label_cn.txt").unlink()
    assert "label_cn.txt: cannot be read" in refused()
