"""WordPiece: ids, limits that report what they cut, decoding, folders, and equality with ERNIE's own tokenizer."""
import json
import random

import numpy as np
import pytest

from vilg.errors import VilgError
from vilg.tokenizers.text.vocabulary import build_vocab, vocab_text
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

TEXTS = ["左边有一个红色的大圆形，右边有一个蓝色的小三角形。", "图中有几个绿色的星星？", "两个", "hello world, T恤 2022",
         "the cat and the dog.", "笑脸"]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text(vocab_text(build_vocab(TEXTS, 400, min_count=1)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(vocab_file):
    return WordPieceTokenizer(vocab_file)


def test_every_chinese_character_is_a_token(tokenizer):
    ids = tokenizer.encode("红色的圆形", 20)
    assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
    assert [tokenizer.tokens[index] for index in ids[1:-1]] == list("红色的圆形")


@pytest.mark.parametrize("text, expected", [
    ("左边有一个红色的大圆形，", "左边有一个红色的大圆形，"),
    ("红色 的\t圆 形\u200b", "红色的圆形"),
    ("Hello   WORLD", "hello world"),
    ("the cat, the dog. the cat", "the cat, the dog. the cat"),
    ("T恤 2022", "t恤2022"),
    ("3.5", "3.5"),
    ("café", "cafe"),
])
def test_decode_joins_chinese_and_spaces_latin(tokenizer, text, expected):
    assert tokenizer.decode(tokenizer.encode(text, 40)) == expected
    assert tokenizer.normalise(text) == expected


def test_decode_stops_at_the_first_separator(tokenizer):
    red, blue = tokenizer.encode("红蓝", 8)[1:3]
    assert tokenizer.decode([tokenizer.cls_id, red, tokenizer.sep_id, blue]) == "红"
    assert tokenizer.decode(np.array([red, tokenizer.mask_id, blue, tokenizer.pad_id])) == "红蓝"


def test_a_batch_is_padded_and_reports_what_it_cuts(tokenizer):
    batch = tokenizer.encode_batch(["红色", "左边有一个红色的大圆形", ""], 8)
    assert batch.ids.shape == (3, 8) and batch.ids.dtype == np.int64
    assert batch.length.tolist() == [4, 8, 2]
    assert batch.cut.tolist() == [0, 5, 0]
    assert batch.prefix.tolist() == [0, 0, 0]
    assert batch.ids[1, -1] == tokenizer.sep_id
    assert (batch.ids[0, 4:] == tokenizer.pad_id).all()
    assert batch.ids[2, :2].tolist() == [tokenizer.cls_id, tokenizer.sep_id]
    for row, text in zip(batch.ids, ["红色", "左边有一个红色的大圆形", ""], strict=True):
        assert row[row != tokenizer.pad_id].tolist() == tokenizer.encode(text, 8)


def test_half_a_character_is_read_as_a_question_mark(tokenizer):
    assert tokenizer.encode("红\ud83d", 9) == tokenizer.encode("红?", 9)
    assert tokenizer.unknown("龘\ud83d") == ["龘"]


def test_names_of_special_tokens_in_a_text_are_text(tokenizer):
    ids = tokenizer.encode("红[SEP]蓝[PAD]", 30)
    assert ids.count(tokenizer.sep_id) == 1 and tokenizer.pad_id not in ids


def test_questions_count_their_prefix(tokenizer):
    batch = tokenizer.encode_questions(["几个星星？", "几个"], ["两个", "一个大的"], 12)
    for row, length, prefix, answer in zip(batch.ids, batch.length, batch.prefix, ["两个", "一个大的"], strict=True):
        assert row[prefix - 1] == tokenizer.sep_id and row[length - 1] == tokenizer.sep_id
        assert tokenizer.decode(row[prefix:]) == answer
    assert batch.cut.tolist() == [0, 0]
    asked = tokenizer.encode_questions(["几个星星？"], None, 12)
    assert asked.prefix.tolist() == asked.length.tolist() == [7]
    assert asked.ids[0, :7].tolist() == batch.ids[0, :7].tolist()


def test_a_question_is_cut_before_its_answer(tokenizer):
    batch = tokenizer.encode_questions(["左边有一个红色的大圆形"], ["两个"], 12)
    assert tokenizer.decode(batch.ids[0, batch.prefix[0]:]) == "两个"
    assert batch.length.tolist() == [12] and batch.cut.tolist() == [4]
    both = tokenizer.encode_questions(["左边有一个红色的大圆形"], ["左边有一个红色的大圆形"], 13)
    assert both.length.tolist() == [13] and both.cut.tolist() == [12] and both.prefix.tolist() == [7]


def test_long_prompts_are_warned_about_or_refused_with_both_lengths(tokenizer, caplog):
    batch = tokenizer.encode_prompts(["左边有一个红色的大圆形"], 8)
    assert batch.cut.tolist() == [5]
    assert "has 11 tokens and this model reads 6" in caplog.text
    with pytest.raises(VilgError, match="has 11 tokens and this model reads 6"):
        tokenizer.encode_prompts(["左边有一个红色的大圆形"], 8, strict=True)
    with pytest.raises(VilgError, match="11 tokens"):
        tokenizer.encode_questions(["左边有一个红色的大圆形"], None, 8, strict=True)


def test_unknown_characters_of_a_prompt_are_named(tokenizer, caplog):
    assert tokenizer.unknown("红色的龙和龙") == ["龙", "和"]
    tokenizer.encode_prompts(["红色的龙"], 16)
    assert "lacks 龙 of the prompt" in caplog.text


def test_unknown_words_of_questions_are_named_and_every_batch_tells_its_own(tokenizer, caplog):
    asked = tokenizer.encode_questions(["红色的龙？", "几个星星？"], None, 16)
    assert "lacks 龙 of the question '红色的龙？'" in caplog.text and asked.unknown == [["龙"], []]
    caplog.clear()
    assert tokenizer.encode_questions(["红色的龙？"], ["龙和龙"], 16).unknown == [["龙", "和"]]
    assert tokenizer.encode_batch(["龙和龙", "红", "红色的色龙色的色龙"], 6).unknown == [["龙", "和"], [], ["龙"]]
    assert not caplog.text  # of a data set the run itself tells


@pytest.mark.parametrize("empty", ["", "  \n", "\u200b\x00", "\u3164"], ids=ascii)
def test_empty_prompts_and_questions_are_refused(tokenizer, empty):
    with pytest.raises(VilgError, match="is empty"):
        tokenizer.encode_prompts(["红色", empty], 16)
    with pytest.raises(VilgError, match="is empty"):
        tokenizer.encode_questions([empty], None, 16)


@pytest.mark.parametrize("given, sentence", [
    ("红\udcba\udcec", r"'红\\udcba\\udcec' has parts that cannot be read as characters"),
    (b"abc", "b'abc' is not text but bytes"), (3, "3 is not text but int"), (None, "None is not text but NoneType")])
def test_prompts_and_questions_that_are_no_text_are_refused(tokenizer, given, sentence):
    with pytest.raises(VilgError, match=f"the prompt {sentence}"):
        tokenizer.encode_prompts(["红色", given], 16)
    with pytest.raises(VilgError, match=f"the question {sentence}"):
        tokenizer.encode_questions([given], None, 16)


def test_a_pair_of_a_data_set_may_hold_half_a_character(tokenizer):
    batch = tokenizer.encode_questions(["红\ud83d"], ["蓝"], 16)
    assert np.array_equal(batch.ids, tokenizer.encode_questions(["红?"], ["蓝"], 16).ids)


def test_text_lengths_without_room_are_refused(tokenizer):
    with pytest.raises(VilgError, match="text length of 1 "):
        tokenizer.encode_batch(["红"], 1)


def test_the_fingerprint_follows_all_that_decides_ids(tokenizer, vocab_file, tmp_path):
    assert WordPieceTokenizer(vocab_file).fingerprint() == tokenizer.fingerprint()
    assert WordPieceTokenizer(vocab_file, lowercase=False).fingerprint() != tokenizer.fingerprint()
    lines = vocab_file.read_text(encoding="utf-8").split("\n")
    lines[5], lines[6] = lines[6], lines[5]
    (tmp_path / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
    assert WordPieceTokenizer(tmp_path / "vocab.txt").fingerprint() != tokenizer.fingerprint()


def test_a_folder_is_written_and_read_back(tokenizer, vocab_file, tmp_path):
    tokenizer.save(tmp_path / "folder")
    assert (tmp_path / "folder/vocab.txt").read_bytes() == vocab_file.read_bytes()
    assert WordPieceTokenizer.from_folder(tmp_path / "folder").fingerprint() == tokenizer.fingerprint()


def test_a_folder_with_other_special_tokens_and_odd_lines(tmp_path):
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "\u2028", "红", "A", "", "蓝", "", ""]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8-sig")
    names = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": {"content": "<unk>"}, "mask": "<mask>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"do_lower_case": False, "tokenizer_class": "ErnieTokenizer", **{f"{key}_token": names[key] for key in names}}))
    tokenizer = WordPieceTokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 10 and tokenizer.tokens[0] == "<pad>" and tokenizer.decode([7, 8, 9]) == "A蓝"
    assert tokenizer.encode("A红a", 8) == [1, 7, 6, 3, 2]


def test_folders_and_vocabularies_that_cannot_be_used(tmp_path):
    with pytest.raises(VilgError, match="no such folder"):
        WordPieceTokenizer.from_folder(tmp_path / "nowhere")
    with pytest.raises(VilgError, match="no such vocabulary"):
        WordPieceTokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n红\n", encoding="utf-8")
    with pytest.raises(VilgError, match=r"\[CLS\] \[SEP\] \[MASK\]"):
        WordPieceTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(VilgError, match="not a JSON file"):
        WordPieceTokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VilgError, match="UTF-8"):
        WordPieceTokenizer(tmp_path / "vocab.txt")


def random_lines(count: int) -> list[str]:
    """Lines over Chinese, Latin, digits, accents, other scripts, punctuation and control characters."""
    draw = random.Random(7)
    pools = ["红蓝绿黄左右上下圆形三角星星的一二三个有在大小", "abcdefghijklmnopqrstuvwxyzABCXYZ", "0123456789", "àéîöüÅŞñ",
             "，。！？、；：“”（）《》", ",.!?;:'\"()[]-_/\\@#$%^&*+=~`|<>{}", " \t\u3000\u00a0", "ひらカタ한글אбвгΑΩßıİ",
             "😀🎨❤️👍🏽", "\u200b\u200d\ufeff\x07\ufffd", "龘𠮷㐀豈"]
    weights = [12, 10, 4, 2, 4, 3, 5, 2, 1, 1, 1]
    return ["".join(draw.choice(pool) for pool in draw.choices(pools, weights, k=draw.randrange(1, 40)))
            for _ in range(count)]


@pytest.mark.extras
def test_ids_equal_those_of_paddlenlp_and_folders_go_both_ways(tmp_path):
    paddlenlp = pytest.importorskip("paddlenlp.transformers", reason="the nlp extra is not installed")
    lines = random_lines(4000) + TEXTS
    (tmp_path / "vocab.txt").write_text(vocab_text(build_vocab(lines[::2] + TEXTS, 700)), encoding="utf-8")
    theirs = paddlenlp.ErnieTokenizer(str(tmp_path / "vocab.txt"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = WordPieceTokenizer.from_folder(tmp_path / "theirs")
    expected = [theirs(line)["input_ids"] for line in lines]
    assert [line for line, ids in zip(lines, expected, strict=True) if ours.encode(line, 1000) != ids] == []
    ours.save(tmp_path / "ours")
    read_back = paddlenlp.ErnieTokenizer.from_pretrained(str(tmp_path / "ours"))
    assert [read_back(line)["input_ids"] for line in lines[:200]] == expected[:200]
    assert (read_back.pad_token_id, read_back.mask_token_id) == (ours.pad_id, ours.mask_id)


def test_a_vocabulary_may_name_its_ids(tokenizer, tmp_path):
    numbered = [f"{token}\t{index}" for index, token in enumerate(tokenizer.tokens)]
    path = tmp_path / "vocab.txt"
    for ending in ("\n", "\r\n"):
        path.write_bytes("".join(f"{line}{ending}" for line in numbered[::-1]).encode())
        found = WordPieceTokenizer(path)
        assert found.tokens == tokenizer.tokens and found.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("change, words", [
    (lambda lines: lines.__setitem__(3, "词"), "line 4 is no token, tab and id"),
    (lambda lines: lines.__setitem__(3, "词\t0"), "line 4 gives an id again"),
    (lambda lines: lines.__setitem__(3, "词\t-3"), "line 4 is no token, tab and id"),
    (lambda lines: lines.append("词\t5000"), "have ids up to 5000, so some ids have no token")])
def test_a_vocabulary_with_wrong_ids_is_refused_by_line(tokenizer, tmp_path, change, words):
    lines = [f"{token}\t{index}" for index, token in enumerate(tokenizer.tokens)]
    change(lines)
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(VilgError, match=f"vocab.txt: .*{words}"):
        WordPieceTokenizer(path)
