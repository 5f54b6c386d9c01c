import sys

import numpy as np
import pytest

from vilg.data.filtering.rules import PaperFilter, SimilarityFilter, keep_similar
from vilg.data.filtering.texts import has_special_characters
from vilg.data.packing import Packing, write_folder
from vilg.data.sample import Sample
from vilg.errors import DataError


def test_paper_filter():
    pytest.importorskip("jieba")
    words = PaperFilter()
    assert words.keeps("一只可爱的小猫坐在草地上") and words.keeps("2022年北京冬奥会")
    assert words.reason("快跑") == "no noun"
    assert words.reason("点击www.abc.com/x查看#热门") == "special characters"
    assert words.reason("今天天气不错我们一起去公园里面散步然后去吃饭再去看电影最后回家睡觉休息吧") == "too long"
    assert not words.keeps("快跑") and not words.keeps("小猫😀")
    assert words.dropped == {"no noun": 1, "special characters": 1}


def test_jieba_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(DataError, match="pip install jieba"):
        PaperFilter()


@pytest.mark.parametrize("text, special", [("小猫，坐在“草地”上。", False), ("A cat's 5 toys", False), ("a_b", True),
                                           ("<b>", True), ("小猫★", True), ("a\tb", True)])
def test_special_characters(text, special):
    assert has_special_characters(text) is special


def by_level(texts, images):
    """Texts are levels; an image fits its own level best, and the text "unread" cannot be read."""
    return np.array([np.nan if text == "unread" else 1 - abs(float(text) - image.mean()) / 10
                     for text, image in zip(texts, images)])


def level(number):
    return np.full((2, 2, 3), number, np.uint8)


def test_captions_like_their_image_are_kept():
    samples = [Sample("a", level(9), ["9", "2", "8"], [("q", "r")]), Sample("b", level(2), ["9"]),
               Sample("c", level(2), ["unread", "3"])]
    rule = SimilarityFilter(by_level)
    kept = keep_similar(samples, rule)
    assert [(sample.key, sample.captions, sample.questions) for sample in kept] == [
        ("a", ["9", "8"], [("q", "r")]), ("c", ["3"], [])]
    assert rule.dropped == {"not like the image": 2, "cannot be read": 1}
    assert keep_similar([], rule) == [] == rule.kept([], level(1))


def test_the_threshold_itself_is_not_above_it():
    assert SimilarityFilter(by_level).kept(["5", "4"], level(9)) == ["5"]
    assert SimilarityFilter(by_level, 0.6).kept(["5", "4"], level(9)) == []
    with pytest.raises(DataError, match="a threshold of 1.5"):
        SimilarityFilter(by_level, 1.5)


def test_packing_leaves_out_what_does_not_fit(tmp_path):
    samples = [Sample("a", level(9), ["9", "1"]), Sample("b", level(2), ["9"])]
    report = write_folder(tmp_path, samples, Packing("png", similarity_filter=SimilarityFilter(by_level)))
    assert (report.written, report.filtered) == (1, 1)
    assert (tmp_path / "0000000.txt").read_text() == "9\n"
