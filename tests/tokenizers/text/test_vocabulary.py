"""The vocabulary builder: order, limits, word pieces, and the same bytes whatever the order of the texts."""
import random
import subprocess
import sys
from pathlib import Path

import pytest

from vilg.errors import VilgError
from vilg.tokenizers.text.characters import common_characters
from vilg.tokenizers.text.vocabulary import build_vocab, extend_vocab, vocab_hash, vocab_text
from vilg.tokenizers.text.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

ROOT = Path(__file__).resolve().parents[3]
BASE = 5 + 2 * 36


def test_special_tokens_then_ascii_then_characters_by_count_and_code_point():
    tokens = build_vocab(["红红红蓝蓝绿绿黄", "红。"], 300)
    assert tokens[:5] == list(SPECIAL_TOKENS.values())
    assert tokens[5:7] == ["0", "1"] and tokens[BASE - 1] == "##z"
    assert tokens[BASE:] == ["红", "绿", "蓝", "。", "黄"]


def test_the_rarest_characters_give_way_to_the_size():
    assert build_vocab(["红红红蓝蓝绿绿黄"], BASE + 2)[BASE:] == ["红", "绿"]


def test_pieces_merge_the_commonest_pair_and_leave_digits_alone():
    pieces = build_vocab(["low lower lowest 2022 2022 2022 x1"] * 3, 200)[BASE:]
    assert pieces == ["##ow", "low", "lowe", "##st", "lower", "lowest"]
    assert build_vocab(["low lower lowest"] * 3, 200, min_count=7)[BASE:] == ["##ow", "low"]


def test_no_token_comes_twice_and_every_text_has_ids(tmp_path):
    draw = random.Random(3)
    texts = ["".join(draw.choice("abcdefghij 红蓝绿12，") for _ in range(30)) for _ in range(200)]
    tokens = build_vocab(texts, 300)
    assert len(tokens) == len(set(tokens)) == 300
    (tmp_path / "vocab.txt").write_text(vocab_text(tokens), encoding="utf-8")
    tokenizer = WordPieceTokenizer(tmp_path / "vocab.txt")
    assert not any(tokenizer.unk_id in tokenizer.encode(text, 100) for text in texts)


def test_order_of_the_texts_leaves_no_trace():
    texts = [f"{first}{second} {first * 2}" for first in "abcdefgh" for second in "ijklmnop红蓝"]
    shuffled = texts[:]
    random.Random(1).shuffle(shuffled)
    assert vocab_hash(build_vocab(texts, 260, min_count=1)) == vocab_hash(build_vocab(shuffled, 260, min_count=1))


def test_sizes_and_texts_that_cannot_be_used():
    with pytest.raises(VilgError, match="too small"):
        build_vocab(["红"], 30)
    with pytest.raises(VilgError, match="no text"):
        build_vocab(["", " "], 300)


def run_tool(*arguments, seed="0"):
    return subprocess.run([sys.executable, "tools/build_vocab.py", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)})


def test_two_runs_of_the_tool_write_the_same_bytes(tmp_path):
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/a.txt").write_text("红色的猫 cat\n蓝色的狗\n", encoding="utf-8")
    (tmp_path / "table.tsv").write_text("a.png\t绿色的圆\nb.png\t黄色的方 catalog\n", encoding="utf-8")
    (tmp_path / "table.jsonl").write_text('{"path": "c.png", "captions": ["紫色的星"]}\n', encoding="utf-8")
    sources = [tmp_path / "captions", tmp_path / "table.tsv", tmp_path / "table.jsonl"]
    outputs = []
    for seed in ("1", "2"):
        result = run_tool(*sources, "--size", 200, "--no-common", "--output", tmp_path / f"vocab{seed}.txt", seed=seed)
        assert result.returncode == 0, result.stderr
        outputs.append((tmp_path / f"vocab{seed}.txt").read_bytes())
    assert outputs[0] == outputs[1]
    assert all(character in outputs[0].decode() for character in "猫狗圆方星")
    assert "png" not in outputs[0].decode()


def test_characters_that_are_always_in_stand_before_those_of_the_texts():
    tokens = build_vocab(["红红蓝"], 300, always=["。", "蓝"])
    assert tokens[BASE:] == ["。", "蓝", "红"]
    with pytest.raises(VilgError, match=f"common characters alone take {BASE + 2}"):
        build_vocab(["红"], BASE + 1, always=["。", "蓝"])


def test_an_extension_keeps_ids_and_adds_characters_but_no_pieces():
    tokens = build_vocab(["红色 low low low"], 200)
    longer = extend_vocab(tokens, ["貓貓狗 lower lower lower ß", "红貓"], always=["？", "。"])
    assert longer[:len(tokens)] == tokens and longer[len(tokens):] == ["？", "。", "貓", "ß", "狗"]
    assert extend_vocab(longer, ["红色"], always=["。"]) == longer
    assert extend_vocab(tokens, ["貓貓狗"], size=len(tokens) + 1)[len(tokens):] == ["貓"]
    bare = extend_vocab([*SPECIAL_TOKENS.values()], ["红"], lowercase=False)
    assert bare[5:7] == ["0", "1"] and bare[-2:] == ["##Z", "红"] and len(bare) == 5 + 2 * 62 + 1
    with pytest.raises(VilgError, match="the one to extend has"):
        extend_vocab(tokens, ["貓"], size=10)
    with pytest.raises(VilgError, match="no text"):
        extend_vocab(tokens, [""])


def test_the_tool_puts_common_characters_into_every_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text("一隻貓坐在草地上\n", encoding="utf-8")
    done = run_tool(tmp_path / "a.txt", "--output", tmp_path / "whole/vocab.txt")
    assert done.returncode == 0, done.stderr
    words = WordPieceTokenizer.from_folder(tmp_path / "whole")
    assert set(common_characters()) | set("隻貓") <= set(words.tokens)
    cased = run_tool(tmp_path / "a.txt", "--cased", "--no-common", "--output", tmp_path / "cased/vocab.txt")
    assert cased.returncode == 0, cased.stderr
    cased = WordPieceTokenizer.from_folder(tmp_path / "cased")
    assert not cased.lowercase and "A" in cased.tokens and "猫" not in cased.tokens


def test_the_tool_extends_a_folder_or_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("一隻貓坐在草地上\n", encoding="utf-8")
    base = ROOT / "model_zoo/ernie_vilg_tiny"
    for number, given in enumerate((base, base / "vocab.txt")):
        done = run_tool(tmp_path / "a.txt", "--extend", given, "--output", tmp_path / f"{number}/vocab.txt")
        assert done.returncode == 0, done.stderr
        old, new = (WordPieceTokenizer.from_folder(folder) for folder in (base, tmp_path / str(number)))
        assert new.tokens[:old.vocab_size] == old.tokens and set(common_characters()) | set("隻貓") <= set(new.tokens)
        assert f"task.model.vocab_size={new.vocab_size}" in done.stdout
        assert (new.special, new.lowercase) == (old.special, old.lowercase)
    assert "there is no such folder" in run_tool(tmp_path / "a.txt", "--extend", tmp_path / "none").stderr
