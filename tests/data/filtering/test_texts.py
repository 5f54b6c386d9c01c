"""Rules about captions one by one."""
import pytest

from vilg.config import from_dict
from vilg.data.filtering.texts import MEANING, TextRules, TextRulesConfig, read_words
from vilg.errors import ConfigError, DataError


def rules(**values):
    return TextRules(from_dict(TextRulesConfig, {"words": None, "noun": False, "special": False} | values))


def test_each_rule_says_what_it_found(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("# note\nＡＤ\n广告\n", encoding="utf-8")
    pytest.importorskip("jieba")
    every = rules(special=True, words=14, noun=True, script={"names": ["han"], "never": ["hiragana"]},
                  blocked=[str(words)])
    assert every.reason("一只小猫坐在草地上") is None
    assert every.reason("小猫\x07") == ("special", "U+0007") and every.reason("小猫★") == ("special", "★")
    assert every.reason("小猫在草地上" * 6)[0] == "words"
    assert every.reason("快跑") == ("noun", "快/a 跑/v")
    assert every.reason("照片 a red circle") == ("script", "0.17")
    assert every.reason("小猫の照片") == ("script", "hiragana")
    assert every.reason("小猫的广告照片") == ("blocked", "广告") and every.reason("小猫照片ad") == ("blocked", "ad")
    assert {"special", "words", "noun", "script", "blocked"} <= MEANING.keys()


@pytest.mark.parametrize("script, text, kept", [
    ("han", "小猫", True), ("han", "12", False), ("latin", "ａ小猫", False), ("latin", "ａb", True),
    ("hangul", "고양이", True), ("cyrillic", "кот", True), ("katakana", "ネコ猫", True)])
def test_scripts(script, text, kept):
    assert (rules(script={"names": [script]}).reason(text) is None) == kept


def test_rules_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="klingon is no script"):
        rules(script={"names": ["klingon"]})
    with pytest.raises(ConfigError, match="did you mean noun"):
        rules(nouns=True)
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(DataError, match="holds no blocked word"):
        read_words(str(tmp_path / "empty.txt"))
