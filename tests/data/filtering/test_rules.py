import sys

import numpy as np
import pytest

from vilg.data.filtering.rules import PaperFilter, has_special_characters, keep_similar
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


def test_similarity_keeps_what_is_above_the_threshold():
    samples = [Sample("a", np.full((2, 2, 3), 9, np.uint8), ["good", "bad"], [("q", "r")]),
               Sample("b", np.full((2, 2, 3), 3, np.uint8), ["bad"])]

    def similarity(texts, pictures):
        assert [int(picture[0, 0, 0]) for picture in pictures] == [9, 9, 3]
        return np.array([0.9 if text == "good" else 0.5 for text in texts])

    kept = keep_similar(samples, similarity)
    assert [(sample.key, sample.captions, sample.questions) for sample in kept] == [("a", ["good"], [("q", "r")])]
    assert keep_similar([], similarity) == []
