"""Weights of a model for a wider vocabulary than the one it was trained with: fine-tuning on texts with new words."""
import unicodedata

import numpy as np

from vilg.errors import CheckpointError
from vilg.tokenizers.text.characters import is_chinese
from vilg.tokenizers.text.wordpiece import CONTINUATION, SPECIAL_TOKENS, WordPieceTokenizer

# Where a token has a row of its own: name → the axis along which the vocabulary lies.
ROWS = {"text_embedding.weight": 0, "text_head.weight": 1, "text_head.bias": 0}


def widen(weights: dict[str, np.ndarray], old: WordPieceTokenizer, new: WordPieceTokenizer,
          source: str) -> dict[str, np.ndarray]:
    """The weights with a row for every token of ``new``, in embedding and text head.

    Tokens of ``old`` keep their rows wherever their ids have gone. A token that ``old`` read as another one (``?`` as
    ``？``) starts as that one, any other as the mean of its kind: Chinese characters, punctuation, digits, letters,
    continuations. Raises CheckpointError, naming ``source``, when ``new`` lacks a token of ``old`` or reads text
    another way.
    """
    ids = {token: index for index, token in enumerate(new.tokens)}
    # Special tokens are paired by what they do, whatever they are called.
    moved = {old.special[kind]: ids[new.special[kind]] for kind in SPECIAL_TOKENS}
    homes = [moved.get(token, ids.get(token)) for token in old.tokens]
    lacking = [token for token, home in zip(old.tokens, homes, strict=True) if home is None]
    if lacking:
        raise CheckpointError(f"{source}: was trained with a vocabulary of {old.vocab_size} tokens, of which the one "
                              f"in use lacks {len(lacking)} ({' '.join(lacking[:5])} …); use that vocabulary, or a "
                              f"wider one by tools/build_vocab.py --extend {source}")
    if old.lowercase != new.lowercase:
        raise CheckpointError(f"{source}: was trained with do_lower_case {old.lowercase}, and the vocabulary in use "
                              f"says {new.lowercase} in its tokenizer_config.json; make them alike")
    rows = {home: np.array([index]) for index, home in enumerate(homes)}
    kinds: dict[str, list[int]] = {}
    for index in old.ordinary_ids.tolist():
        kinds.setdefault(_kind(old.tokens[index]), []).append(index)
    for index, token in enumerate(new.tokens):
        if index not in rows:
            rows[index] = np.array(_like(token, old) or kinds.get(_kind(token)) or old.ordinary_ids)
    return weights | {name: _gathered(weights[name], rows, axis) for name, axis in ROWS.items() if name in weights}


def _like(token: str, old: WordPieceTokenizer) -> list[int]:
    """The one known token as which ``old`` reads this one, if it does."""
    read = [] if token.startswith(CONTINUATION) else old.encode(token, len(token) + 2)[1:-1]
    return read if len(read) == 1 and read[0] != old.unk_id else []


def _kind(token: str) -> str:
    letters = token.removeprefix(CONTINUATION) or token
    first = letters[:1]
    kind = ("chinese" if first and is_chinese(first) else "digit" if first.isdigit() else
            "letter" if first.isalpha() else unicodedata.category(first)[:1] if first else "")
    return kind if letters == token else CONTINUATION + kind


def _gathered(array: np.ndarray, rows: dict[int, np.ndarray], axis: int) -> np.ndarray:
    parts = [np.take(array, rows[index], axis).mean(axis, keepdims=True) for index in range(len(rows))]
    return np.concatenate(parts, axis)
