"""A vocabulary from texts, the same for the same texts on every machine and every run.

Characters are ranked by count, then by code point. Latin (and other spaced) words are put together from their letters
by merging the most frequent pair, ties broken by spelling; digits stay single, so that numbers share their pieces.
"""
import hashlib
import heapq
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from vilg.errors import VilgError
from vilg.tokenizers.text.characters import bert_normalizer, is_chinese, word_splitter
from vilg.tokenizers.text.vocab_file import vocab_text
from vilg.tokenizers.text.wordpiece import CONTINUATION, SPECIAL_TOKENS

Pair = tuple[str, str]


def build_vocab(texts: Iterable[str], size: int, lowercase: bool = True, min_count: int = 2,
                always: Sequence[str] = ()) -> list[str]:
    """The tokens of a ``vocab.txt``, ``size`` at most: special tokens, digits and Latin letters, characters, pieces.

    Every ASCII digit and letter is in, as a word and as a continuation, so that any Latin prompt has ids, and so are
    the characters of ``always`` (:func:`~vilg.tokenizers.text.characters.common_characters`) whether the texts hold
    them or not. Pieces of two and more letters fill the room that is left, as long as they occur ``min_count`` times.
    Raises VilgError for a size too small for what is always in, and for texts that hold no character.
    """
    counts = _counted(texts, lowercase)
    tokens = [*SPECIAL_TOKENS.values(), *_ascii(lowercase), *always]
    if size < len(tokens):
        raise VilgError(f"a vocabulary of {size} tokens is too small; the special tokens, digits, letters and common "
                        f"characters alone take {len(tokens)}")
    _append(tokens, _ranked(_count_characters(counts)), size)
    tokens += _merged_pieces(counts, size - len(tokens), min_count)
    return tokens


def extend_vocab(tokens: Sequence[str], texts: Iterable[str], lowercase: bool = True, always: Sequence[str] = (),
                 size: int | None = None) -> list[str]:
    """``tokens`` with their ids, and behind them what they lack: digits and letters, ``always``, and the characters of
    the texts, the commonest first, up to ``size`` tokens (None: all).

    No piece of several letters is added, so that texts which were read whole keep their ids, and a model's rows their
    meaning. Raises VilgError for a size below what is there already, and for texts that hold no character.
    """
    if size is not None and size < len(tokens):
        raise VilgError(f"a vocabulary of {size} tokens is too small; the one to extend has {len(tokens)}")
    counts = _counted(texts, lowercase)
    longer = list(tokens)
    _append(longer, [*_ascii(lowercase), *always, *_ranked(_count_characters(counts))], size)
    return longer


def vocab_hash(tokens: list[str]) -> str:
    """SHA-256 of the file :func:`~vilg.tokenizers.text.vocab_file.vocab_text` makes, in hexadecimal."""
    return hashlib.sha256(vocab_text(tokens).encode()).hexdigest()


def _ascii(lowercase: bool) -> list[str]:
    letters = string.digits + (string.ascii_lowercase if lowercase else string.ascii_letters)
    return [*letters, *(CONTINUATION + character for character in letters)]


def _append(tokens: list[str], more: Iterable[str], size: int | None) -> None:
    """Add those of ``more`` that are new, in their order, until there are ``size``."""
    known = set(tokens)
    for token in more:
        if len(tokens) == size:
            return
        if token not in known:
            tokens.append(token)
            known.add(token)


def _counted(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    counts = _count_words(texts, lowercase)
    if not counts:
        raise VilgError("there is no text to build a vocabulary from; name files that hold captions")
    return counts


def _count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    normalizer, splitter = bert_normalizer(lowercase), word_splitter()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return counts


def _count_characters(words: Counter[str]) -> Counter[str]:
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for token in _spell(word):
            characters[token] += count
    return characters


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda token: (-counts[token], token))


def _spell(word: str) -> list[str]:
    return [word[0], *(CONTINUATION + character for character in word[1:])]


def _merged_pieces(words: Counter[str], room: int, min_count: int) -> list[str]:
    """Up to ``room`` pieces of several letters, in the order in which merging the commonest pair makes them."""
    spelled = [(_spell(word), count) for word, count in sorted(words.items()) if len(word) > 1]
    pair_counts: Counter[Pair] = Counter()
    places: dict[Pair, set[int]] = defaultdict(set)
    for index, (tokens, count) in enumerate(spelled):
        _tally(tokens, count, index, pair_counts, places)
    # The smaller spelling wins among equals, so that the order of the texts leaves no trace.
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    pieces: dict[str, None] = {}
    while len(pieces) < room and queue:
        count, best = heapq.heappop(queue)
        if -count != pair_counts[best] or -count < min_count:
            continue  # an entry from before another merge changed the count, or a pair too rare
        merged = best[0] + best[1].removeprefix(CONTINUATION)
        pieces[merged] = None
        touched: set[Pair] = set()
        for index in places[best].copy():
            tokens, count = spelled[index]
            touched.update(_tally(tokens, -count, index, pair_counts, places))
            spelled[index] = (_merge(tokens, best, merged), count)
            touched.update(_tally(spelled[index][0], count, index, pair_counts, places))
        for pair in touched:
            heapq.heappush(queue, (-pair_counts[pair], pair))
    return list(pieces)


def _tally(tokens: list[str], count: int, index: int, pair_counts: Counter[Pair],
           places: dict[Pair, set[int]]) -> list[Pair]:
    """Add ``count`` (negative: take away) for the mergeable pairs of word ``index``; returns those pairs."""
    pairs = [pair for pair in zip(tokens, tokens[1:], strict=False) if all(map(_mergeable, pair))]
    for pair in pairs:
        pair_counts[pair] += count
        if count > 0:
            places[pair].add(index)
        else:
            places[pair].discard(index)
    return pairs


def _mergeable(token: str) -> bool:
    letters = token.removeprefix(CONTINUATION)
    return letters.isalpha() and not any(is_chinese(letter) for letter in letters)


def _merge(tokens: list[str], pair: Pair, merged: str) -> list[str]:
    result: list[str] = []
    position = 0
    while position < len(tokens):
        if tuple(tokens[position:position + 2]) == pair:
            result.append(merged)
            position += 2
        else:
            result.append(tokens[position])
            position += 1
    return result
