"""Text that shows nothing, characters in daily use, and marks that a vocabulary lacks."""
import itertools
import string
from pathlib import Path

import numpy as np
import pytest

from vilg.data.worlds import scenes
from vilg.tokenizers.text.characters import NO_INK, common_characters, is_blank
from vilg.tokenizers.text.vocab_file import vocab_text
from vilg.tokenizers.text.vocabulary import build_vocab
from vilg.tokenizers.text.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

SHIPPED = Path(__file__).resolve().parents[3] / "model_zoo/ernie_vilg_tiny"
BLANK = ["", " \n\t", "\u200b", "\ufeff", "\u200d\u2060", "\u202a\u202e", "\u2066\u2069", "\ufe0f", "\ufe0e\U000e0100",
         "\u0301", "\x00\x07", "\ufffd", "\u3000\u00a0", "\u3164", "\u2800", "\ue000", "\U000e0041", "\u00ad"]


@pytest.fixture
def tokenizer(tmp_path):
    def build(*tokens):
        (tmp_path / "vocab.txt").write_text(vocab_text([*SPECIAL_TOKENS.values(), *tokens]), encoding="utf-8")
        return WordPieceTokenizer(tmp_path / "vocab.txt")
    return build


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_text_that_shows_nothing_is_blank(tokenizer, text):
    assert is_blank(text) and is_blank(f"{text} {text}") and not tokenizer().reads(text)
    assert not is_blank(f"{text}红{text}")


@pytest.mark.parametrize("text", ["红", "a", "1", "?", "。", "😀", "❤️", "½", "\ud83d"], ids=ascii)
def test_text_that_shows_something_is_not(text):
    assert not is_blank(text)


def test_blank_is_what_a_tokenizer_reads_nothing_of(tokenizer):
    words = tokenizer()
    letters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    plain = words._tokenizer
    differ = [letter for letter, read in zip(letters, plain.encode_batch(letters, add_special_tokens=False))
              if is_blank(letter) == bool(read.ids)]
    assert differ == [chr(code) for code in sorted(NO_INK)]


def test_the_common_characters_are_gb2312s_and_each_has_an_id(tokenizer):
    common = common_characters()
    chinese = [letter for letter in common if "\u4e00" <= letter <= "\u9fff"]
    assert len(chinese) == 3755 and (chinese[0], chinese[-1]) == ("啊", "座") and len(set(common)) == len(common)
    assert set("。！？，、；：“”‘’（）《》…—") | set(string.punctuation) <= set(common)
    words = tokenizer(*build_vocab(["红"], 5000, always=common)[5:])
    assert [letter for letter in common if words.encode(letter, 5)[1:-1] != [words.tokens.index(letter)]] == []


def test_a_mark_is_read_by_its_other_width_or_passed_over(tokenizer):
    words = tokenizer("红", "？", ",", "a", "##b", "1", "%")
    told = {text: [words.tokens[index] for index in words.encode(text, 12)[1:-1]]
            for text in ("红?", "红？", "红，", "红,", "红。", "《红》…", "ＡＢ", "１", "红％", "。", "红#", "红龙")}
    assert told == {"红?": ["红", "？"], "红？": ["红", "？"], "红，": ["红", ","], "红,": ["红", ","], "红。": ["红"],
                    "《红》…": ["红"], "ＡＢ": ["a", "##b"], "１": ["1"], "红％": ["红", "%"], "。": [],
                    "红#": ["红", "[UNK]"], "红龙": ["红", "[UNK]"]}
    assert words.unknown("红?。#龙，#") == ["#", "龙"] and not words.reads("。") and words.reads("#")


def test_a_vocabulary_with_the_mark_reads_the_mark(tokenizer):
    words = tokenizer("红", "?", "？", "。")
    assert [words.tokens[index] for index in words.encode("红?？。", 9)[1:-1]] == ["红", "?", "？", "。"]


def test_words_are_tallied_with_their_unknown_ones(tokenizer):
    tally = tokenizer("红", "##b", "a").tally(["红龙", "ab 龙。", ""])
    assert (tally.words, dict(tally.unknown)) == (5, {"龙": 2}) and tally.unknown_share == 0.4
    assert tokenizer().tally([]).unknown_share == 0


def test_the_shipped_vocabulary_reads_its_own_world_as_before():
    words = WordPieceTokenizer.from_folder(SHIPPED)
    assert words.fingerprint() == "734b4867ef92b041"
    rng, texts = np.random.default_rng(0), []
    for seed in range(300):
        for split in scenes.SPLITS:
            scene = scenes.sample_scene(seed, split)
            texts += [*scenes.captions(scene, rng), *itertools.chain(*scenes.questions(scene, rng))]
    plain = [read.ids for read in words._tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert len(texts) > 2000 and not any(words.unk_id in ids for ids in plain)
    assert [words.encode(text, 200)[1:-1] for text in texts] == plain


def test_the_shipped_vocabulary_reads_marks_that_it_lacks():
    words = WordPieceTokenizer.from_folder(SHIPPED)
    sentence = words.encode("一个红色的圆形", 28)
    assert sentence == words.encode("一个红色的圆形。", 28) == words.encode("「一个红色的圆形」", 28)
    assert words.encode("有几个圆形?", 28) == words.encode("有几个圆形？", 28)
    assert words.encode("红色,蓝色", 28) == words.encode("红色，蓝色", 28)
