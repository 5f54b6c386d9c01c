"""Vocabulary files: ways to write one, and files that are none."""
import pytest

from vilg.errors import VilgError
from vilg.tokenizers.text.vocab_file import LARGEST_FILE, read_vocab, write_vocab
from vilg.tokenizers.text.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

TOKENS = [*SPECIAL_TOKENS.values(), "红", "\u2028", "色"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_endings_and_byte_order_marks_are_no_part_of_a_token(tmp_path, ending, mark):
    path = tmp_path / "vocab.txt"
    path.write_bytes(mark + ending.join([*TOKENS, "", ""]).encode())
    assert read_vocab(path) == TOKENS
    path.write_bytes(mark + ending.join(f"{token}\t{index}" for index, token in enumerate(TOKENS)).encode())
    assert read_vocab(path) == TOKENS


def test_a_token_that_stands_twice_is_refused_with_both_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*TOKENS, "红"]), encoding="utf-8")
    with pytest.raises(VilgError, match="vocab.txt: the token '红' has two ids, 5 and 8"):
        WordPieceTokenizer(path)
    path.write_text("\n".join(f"{token}\t{index}" for index, token in enumerate([*TOKENS, "红"])), encoding="utf-8")
    with pytest.raises(VilgError, match="vocab.txt: the token '红' has two ids, 5 and 8"):
        WordPieceTokenizer(path)


@pytest.mark.parametrize("content, says", [
    (b"x" * 10_000_000, "line 1 has more than 1000 bytes"),
    ("\n".join([*TOKENS, "红" * 4_000_000]).encode(), "line 9 has more than 1000 bytes"),
    (b"0123456789\n" * (LARGEST_FILE // 10), "is larger than 64 MB"),
])
def test_what_is_too_long_for_a_vocabulary_is_refused_at_once(tmp_path, content, says):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(VilgError, match=says) as refused:
        WordPieceTokenizer(path)
    assert len(str(refused.value)) < 300 + len(str(path))


def test_a_line_of_a_thousand_bytes_is_a_token(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*TOKENS, "a" * 1000, "b"]), encoding="utf-8")
    assert read_vocab(tmp_path / "vocab.txt")[-2:] == ["a" * 1000, "b"]


def test_settings_stand_beside_a_vocabulary_of_that_name_alone(tmp_path):
    write_vocab(tmp_path, TOKENS, False, SPECIAL_TOKENS, "other.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
    write_vocab(tmp_path, TOKENS, False, SPECIAL_TOKENS)
    assert not WordPieceTokenizer.from_folder(tmp_path).lowercase and read_vocab(tmp_path / "other.txt") == TOKENS
