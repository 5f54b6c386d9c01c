"""What drawings and answers are worth in the world of styles: models that know all, a part, or nothing of it."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vilg.errors import DataError
from vilg.evaluation import styles

NAMES = [f"东西{letter}" for letter in "甲乙丙丁戊己"]
STYLES = {"noto": "渐变风格", "openmoji": "线描风格", "twemoji": "简洁风格"}
SIDE = 32


def shown(name, style):
    """Red says the thing, green the style, both plain to a distance of pixels."""
    image = np.zeros([SIDE, SIDE, 3], np.uint8)
    image[..., 0], image[..., 1] = 40 * NAMES.index(name), 80 * list(STYLES.values()).index(style)
    return image


@pytest.fixture
def world(tmp_path):
    """Every thing in every style, of which one each is a cell that was not trained."""
    lines = {"train": [], "cells": []}
    for number, name in enumerate(NAMES):
        for place, (style, said) in enumerate(STYLES.items()):
            split = "cells" if place == number % 3 else "train"
            picture = f"{style}_{number}.png"
            Image.fromarray(shown(name, said)).save(tmp_path / picture)
            lines[split].append({"picture": picture, "captions": [name], "name": name, "style": style,
                                 "style_name": said, "split": split, "tags": ["好"]})
    for split, rows in lines.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
                                                 encoding="utf-8")
    return str(tmp_path)


class Drawer:
    """Draws and tells what ``sees`` makes of a name and a style."""

    def __init__(self, sees=lambda name, style: (name, style), wording="一张{style}的{name}图"):
        self.sees, self.wording = sees, wording
        self.model = SimpleNamespace(config=SimpleNamespace(text_length=20))
        self.text_tokenizer = SimpleNamespace(
            normalise=str, encode_batch=lambda texts, room: SimpleNamespace(cut=[len(text) > room for text in texts]))

    def text_to_image(self, texts, seed, progress):
        parts = [text.split("的") for text in texts]
        return [[Image.fromarray(shown(*self.sees(name, style)))] for style, name in parts]

    def _told(self, picture):
        name, style = NAMES[round(picture[0, 0, 0] / 40)], list(STYLES.values())[round(picture[0, 0, 1] / 80)]
        return self.sees(name, style)

    def answer(self, pictures, questions):
        assert len(pictures) == len(questions)
        return [self._told(picture)[question == styles.STYLE] for picture, question in zip(pictures, questions)]

    def image_to_text(self, pictures):
        return [self.wording.format(name=name, style=style) for name, style in map(self._told, pictures)]

    def encode(self, pictures):
        return pictures

    def decode(self, codes):
        return [np.zeros_like(code) for code in codes]  # an image tokenizer that loses all


def figures_of(model, world, **settings):
    return dict(styles.drawn_figures(model, world, **settings))


def test_who_knows_all_is_always_right_and_chance_is_said(world):
    figures = figures_of(Drawer(), world)
    for name, value in figures.items():
        if not name.endswith(("_chance", "_ceiling")):
            assert value == 1, name
    assert figures["t2i_cell_seen_chance"] == pytest.approx(1 / 18)
    assert figures["t2i_concept_unseen_chance"] == pytest.approx(3 / 18)
    assert figures["t2i_style_unseen_chance"] == pytest.approx(6 / 18)
    assert figures["i2t_name_unseen_chance"] == pytest.approx(1 / 6)
    assert figures["i2t_style_seen_chance"] == pytest.approx(1 / 3)
    assert figures["t2i_concept_seen_ceiling"] == pytest.approx(1 / 6)  # black is the first thing in the first style


def test_the_thing_and_the_style_are_told_apart(world):
    one_style = figures_of(Drawer(lambda name, style: (name, "线描风格")), world)
    assert one_style["t2i_concept_unseen"] == 1 and one_style["i2t_name_unseen"] == 1
    assert one_style["t2i_style_unseen"] == one_style["i2t_style"] == one_style["t2i_cell_unseen"] == (
        pytest.approx(1 / 3))
    one_thing = figures_of(Drawer(lambda name, style: (NAMES[2], style)), world)
    assert one_thing["t2i_style_seen"] == one_thing["i2t_style"] == 1
    assert one_thing["t2i_concept_unseen"] == one_thing["i2t_name_seen"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("wording, true", [("{name}", 1), ("{style}的{name}", 1), ("{name}，好", 1), ("{name}好", 0),
                                           ("{style}", 0)])
def test_sentences_are_the_worlds_own(world, wording, true):
    assert figures_of(Drawer(wording=wording), world)["i2t_caption_unseen"] == true


def test_an_encoder_judges_beside_the_pixels(world):
    def embed(pictures):
        rows = np.array([[np.cos(picture[0, 0, 1] / 80), np.sin(picture[0, 0, 1] / 80)] for picture in pictures])
        return rows.astype("float32")

    figures = figures_of(Drawer(), world, encoder=SimpleNamespace(embed_image=embed))
    assert figures["t2i_style_seen_encoder"] == 1 and figures["t2i_style_unseen_encoder"] == 1
    assert figures["t2i_concept_seen_encoder"] < 0.5 and figures["t2i_concept_seen"] == 1


def test_cells_are_chosen_by_the_seed_and_long_texts_left_out(world, caplog):
    asked = [styles.choose(styles.StylesWorld(world), "train", 4, seed, lambda text: True).texts for seed in (0, 0, 1)]
    assert asked[0] == asked[1] != asked[2] and len(set(asked[0])) == 4
    kept = styles.choose(styles.StylesWorld(world), "train", 99, 0, lambda text: "甲" not in text)
    assert len(kept.texts) == 10 and "2 of 12 cells of train are left out" in caplog.text
    with pytest.raises(DataError, match="no picture of the split 'cells'"):
        styles.choose(styles.StylesWorld(world), "cells", 4, 0, lambda text: False)


def test_the_sheet_shows_right_and_wrong_drawings(world, tmp_path):
    figures_of(Drawer(lambda name, style: (name, "线描风格")), world, sheet=tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height == 8 + (12 + 6) * (2 * SIDE + 8)  # 4 right and 8 wrong, then 2 right and 4 wrong


def test_a_damaged_picture_is_named(world, tmp_path):
    (tmp_path / "noto_3.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="noto_3.png.*write the folder again"):
        figures_of(Drawer(), world)
