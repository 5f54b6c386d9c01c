"""A model for a wider vocabulary: which rows its tokens get."""
import numpy as np
import pytest

from vilg.errors import CheckpointError
from vilg.release.widening import widen
from vilg.tokenizers.text.vocab_file import write_vocab
from vilg.tokenizers.text.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer

OLD = [*SPECIAL_TOKENS.values(), "红", "蓝", "？", "，", "a", "b", "##a", "1"]


@pytest.fixture
def words(tmp_path):
    def build(name, tokens, lowercase=True, **special):
        write_vocab(tmp_path / name, tokens, lowercase, {**SPECIAL_TOKENS, **special})
        return WordPieceTokenizer.from_folder(tmp_path / name)
    return build


def weights(size, width=3):
    rng = np.random.default_rng(0)
    return {"text_embedding.weight": rng.normal(size=[size, width]).astype("float32"),
            "text_head.weight": rng.normal(size=[width, size]).astype("float32"),
            "text_head.bias": rng.normal(size=[size]).astype("float32"), "norm.bias": np.ones(width, "float32")}


def rows(found):
    """Embedding, head and bias of every token side by side: [V, 2 D + 1]."""
    return np.concatenate([found["text_embedding.weight"], found["text_head.weight"].T,
                           found["text_head.bias"][:, None]], axis=1)


def test_shared_tokens_keep_their_rows_and_new_ones_are_the_mean_of_their_kind(words):
    new = ["绿", *OLD[5:], "#", "c", "##z", "?", "2", "☆", *SPECIAL_TOKENS.values()]
    before = weights(len(OLD))
    after = widen(before, words("old", OLD), words("new", new), "old")
    old, found = rows(before), rows(after)
    assert found.shape[0] == len(new) and found.dtype == np.float32 and after["norm.bias"] is before["norm.bias"]
    row = dict(zip(new, found, strict=True))
    for token, kept in zip(OLD, old, strict=True):
        np.testing.assert_array_equal(row[token], kept)
    place = OLD.index
    for token, like in {"绿": ["红", "蓝"], "#": ["？", "，"], "c": ["a", "b"], "##z": ["##a"], "2": ["1"], "?": ["？"],
                        "☆": OLD[5:]}.items():
        np.testing.assert_allclose(row[token], old[[place(one) for one in like]].mean(0), rtol=1e-6, err_msg=token)


def test_special_tokens_are_paired_by_what_they_do(words):
    renamed = ["<s>" if token == "[CLS]" else token for token in OLD] + ["[CLS]"]
    before = weights(len(OLD))
    found = rows(widen(before, words("old", OLD), words("new", renamed, cls="<s>"), "old"))
    np.testing.assert_array_equal(found[:len(OLD)], rows(before))


def test_a_vocabulary_that_is_not_wider_is_refused(words):
    with pytest.raises(CheckpointError, match="zoo/x: .* lacks 2 .红 1 ….; .*build_vocab.py --extend zoo/x"):
        widen({}, words("old", OLD), words("new", [token for token in OLD if token not in ("红", "1")]), "zoo/x")
    with pytest.raises(CheckpointError, match="do_lower_case True, and the vocabulary in use says False"):
        widen({}, words("old", OLD), words("new", [*OLD, "绿"], lowercase=False), "zoo/x")
