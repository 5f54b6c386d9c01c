"""WordPiece over Chinese text: every Chinese character is a word of its own (ERNIE-ViLG, section 3.1).

Normalisation and splitting follow PaddleNLP's ERNIE tokenizer (BERT's rules, symbols and emoji parted too), so that a
``vocab.txt`` of ERNIE gives the ids its own tokenizer gives, with two deliberate differences. The names of special
tokens written in a text ("[SEP]") are plain text here, because a prompt must not be able to end its own sentence. A
word that the vocabulary lacks is read by its half-width or full-width form where that is there (？ for ?), and a pause
or a quotation mark that is not there in any form is passed over, before anything becomes [UNK].
"""
import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models

from vilg.errors import VilgError
from vilg.tokenizers.text.characters import (
    PAUSES, bert_normalizer, check_text, is_blank, is_spaced, mend, shorten, stand_ins, word_splitter)
from vilg.tokenizers.text.vocab_file import read_settings, read_vocab, write_vocab

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUATION = "##"
LONGEST_WORD = 100  # letters; BERT reads a longer unbroken word as unknown
ANSWER_ROOM = 1  # tokens kept free behind a question that is still to be answered, as behind one with a short answer


@dataclass
class TextBatch:
    """Texts as ids, padded to one length.

    ``ids`` [B, M] int64; ``length`` [B] int64 counts the tokens before the padding, [CLS] and [SEP] included; ``cut``
    [B] int64 counts the tokens that did not fit and were left out; ``prefix`` [B] int64 counts the tokens through the
    [SEP] of a question, 0 for a caption. ``unknown``: of every text the words that became [UNK], each once.
    """

    ids: np.ndarray
    length: np.ndarray
    cut: np.ndarray
    prefix: np.ndarray
    unknown: list[list[str]]


@dataclass
class Tally:
    """How many ``words`` (a Chinese character is one) texts have, and how often each ``unknown`` one occurs."""

    words: int = 0
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def unknown_share(self) -> float:
        """Unknown words among all words, 0 to 1."""
        return self.unknown.total() / max(self.words, 1)


@dataclass
class Pieces:
    """A text's ``ids``, uncut, and its ``unknown`` words, each once, in order."""

    ids: list[int]
    unknown: list[str]


class WordPieceTokenizer:
    """Text ↔ ids by a ``vocab.txt`` (one token a line, the id is the line's number, or stands behind a tab).

    ``special`` renames special tokens: ``{"cls": "<s>"}``. Raises VilgError for a vocabulary that is missing, is not
    text, names a token twice, or lacks a special token.
    """

    def __init__(self, vocab_file: str | Path, *, lowercase: bool = True, special: dict[str, str] | None = None):
        self.tokens = read_vocab(Path(vocab_file))
        self.lowercase = lowercase
        self.special = {**SPECIAL_TOKENS, **(special or {})}
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        missing = [name for name in self.special.values() if name not in self._ids]
        if missing:
            raise VilgError(f"{vocab_file}: the vocabulary lacks the special tokens {' '.join(missing)}; "
                            "use a vocab.txt of BERT or ERNIE, or build one with tools/build_vocab.py")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self._ids[self.special[kind]] for kind in SPECIAL_TOKENS)
        named = {self._ids[name] for name in self.special.values()}
        self.ordinary_ids = np.array([index for index in range(len(self.tokens)) if index not in named])
        self._tokenizer = Tokenizer(models.WordPiece(
            self._ids, unk_token=self.special["unk"], max_input_chars_per_word=LONGEST_WORD,
            continuing_subword_prefix=CONTINUATION))
        self._tokenizer.normalizer = bert_normalizer(lowercase)
        self._tokenizer.pre_tokenizer = word_splitter()

    @classmethod
    def from_folder(cls, folder: str | Path) -> "WordPieceTokenizer":
        """Read a tokenizer folder of ours, ERNIE or BERT: ``vocab.txt``, and ``tokenizer_config.json`` if there."""
        folder = Path(folder)
        if not folder.is_dir():
            raise VilgError(f"{folder}: there is no such folder; name one that holds a vocab.txt")
        settings = read_settings(folder / "tokenizer_config.json")
        named = {kind: settings.get(f"{kind}_token") for kind in SPECIAL_TOKENS}
        special = {kind: token.get("content") if isinstance(token, dict) else token
                   for kind, token in named.items() if token}
        for odd in (kind for kind, token in special.items() if not isinstance(token, str)):
            raise VilgError(f"{folder / 'tokenizer_config.json'}: {odd}_token must be the token's text")
        return cls(folder / "vocab.txt", lowercase=bool(settings.get("do_lower_case", True)), special=special)

    @classmethod
    def from_path(cls, path: str | Path) -> "WordPieceTokenizer":
        """As :meth:`from_folder`, or a vocabulary file alone, lower-casing and with BERT's special tokens."""
        return cls(path) if Path(path).is_file() else cls.from_folder(path)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.tokens)

    def save(self, folder: str | Path) -> None:
        """Write ``vocab.txt`` and ``tokenizer_config.json``, which :meth:`from_folder` and ERNIE's tokenizers read."""
        write_vocab(Path(folder), self.tokens, self.lowercase, self.special)

    def fingerprint(self) -> str:
        """A short hash of all that decides the ids: tokens in order, special tokens and lower-casing."""
        content = json.dumps([self.tokens, self.special, self.lowercase], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def encode(self, text: str, max_length: int) -> list[int]:
        """One text → ``[CLS] … [SEP]``, cut to ``max_length`` ids at most; not padded."""
        kept, _ = _cut(self._pieces(text).ids, _checked(max_length, 2) - 2)
        return [self.cls_id, *kept, self.sep_id]

    def encode_batch(self, texts: Sequence[str], max_length: int) -> TextBatch:
        """Captions → ids [B, max_length], ``[CLS] … [SEP]`` each. An empty text is ``[CLS] [SEP]``."""
        room = _checked(max_length, 2) - 2
        pieces = [self._pieces(text) for text in texts]
        parts = [_cut(each.ids, room) for each in pieces]
        rows = [[self.cls_id, *kept, self.sep_id] for kept, _ in parts]
        return self._batch(rows, [cut for _, cut in parts], [0] * len(rows), max_length,
                           [each.unknown for each in pieces])

    def encode_prompts(self, prompts: Sequence[str], max_length: int, strict: bool = False) -> TextBatch:
        """What a user typed → ids, as :meth:`encode_batch`, but never silently bent.

        A prompt that is empty or no text is a VilgError. One that is longer than the model's text length is cut with a
        warning that names both lengths, or refused when ``strict``; characters that the vocabulary lacks are warned
        about by name.
        """
        for prompt in prompts:
            check_text(prompt, "prompt")
            if not self.reads(prompt):
                raise VilgError(f"the prompt {prompt!r} is empty; write at least one character")
        batch = self.encode_batch(prompts, max_length)
        for prompt, cut, unknown in zip(prompts, batch.cut.tolist(), batch.unknown, strict=True):
            if cut:
                self._report_long("prompt", prompt, max_length - 2 + cut, max_length - 2, strict)
            self._report_unknown("prompt", prompt, unknown)
        return batch

    def encode_questions(self, questions: Sequence[str], answers: Sequence[str] | None, max_length: int,
                         strict: bool = False) -> TextBatch:
        """``[CLS] question [SEP] answer [SEP]`` → ids [B, max_length]; ``prefix`` counts through the first [SEP].

        Of a pair that is too long the question is cut first, down to half the room, then the answer. Without answers
        a row ends behind its question, as a user asked it: a cut is warned about, or a VilgError when ``strict``,
        unknown words are warned about, and a question that is no text is a VilgError. An empty question is one in
        either case.
        """
        rows, cuts, prefixes, lacking = [], [], [], []
        room = _checked(max_length, 4) - 3
        for index, question in enumerate(questions):
            if answers is None:
                check_text(question, "question")
            asked = self._pieces(question)
            if not asked.ids or is_blank(question):
                raise VilgError(f"the question {question!r} is empty; ask at least one character")
            answered = self._pieces(answers[index]) if answers is not None else Pieces([], [])
            wanted = len(answered.ids) if answers is not None else ANSWER_ROOM
            limit = room - min(wanted, room // 2)
            kept, cut = _cut(asked.ids, limit)
            if cut and (strict or answers is None):
                self._report_long("question", question, len(asked.ids), limit, strict)
            if answers is None:
                self._report_unknown("question", question, asked.unknown)
            row = [self.cls_id, *kept, self.sep_id]
            prefixes.append(len(row))
            if answers is not None:
                said, more = _cut(answered.ids, max_length - len(row) - 1)
                row += [*said, self.sep_id]
                cut += more
            rows.append(row)
            cuts.append(cut)
            lacking.append(list(dict.fromkeys(asked.unknown + answered.unknown)))
        return self._batch(rows, cuts, prefixes, max_length, lacking)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, up to the first [SEP]; Chinese characters stand without spaces, Latin words with them."""
        text = ""
        for index in ids:
            if index == self.sep_id:
                break
            if index in (self.cls_id, self.pad_id, self.mask_id):
                continue
            token = self.tokens[index]
            if token.startswith(CONTINUATION) and len(token) > len(CONTINUATION):
                text += token[len(CONTINUATION):]
            else:
                text += (" " if text and is_spaced(text[-1], token[:1]) else "") + token
        return unicodedata.normalize("NFC", text)

    def normalise(self, text: str) -> str:
        """The text as :meth:`decode` would give it back, uncut: lower case, with the spaces that decoding sets."""
        return self.decode(self._pieces(text).ids)

    def reads(self, text: str) -> bool:
        """Whether the model is told anything by the text: it is not blank, and a word of it is more than a pause."""
        return not is_blank(text) and bool(self._pieces(text).ids)

    def unknown(self, text: str) -> list[str]:
        """The words of ``text`` (a Chinese character is a word) that the vocabulary lacks, each once, in order."""
        return self._pieces(text).unknown

    def tally(self, texts: Iterable[str]) -> Tally:
        """How many words the texts have, and which of them the vocabulary lacks how often."""
        tally = Tally()
        for text in texts:
            ids, words = self._encode(mend(text))
            tally.words += len(ids)
            tally.unknown.update(word for index, word in zip(ids, words) if index == self.unk_id)
        return tally

    def _pieces(self, text: str) -> "Pieces":
        ids, words = self._encode(mend(text))
        unknown = [word for index, word in zip(ids, words) if index == self.unk_id] if self.unk_id in ids else []
        return Pieces(ids, list(dict.fromkeys(unknown)))

    def _encode(self, text: str) -> tuple[list[int], Sequence[str]]:
        """The ids of a text, and what each stands for (nothing as long as all are known)."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self.unk_id not in encoding.ids:
            return encoding.ids, [""] * len(encoding.ids)
        ids, words = [], []
        for index, span in zip(encoding.ids, encoding.offsets, strict=True):
            word = text[slice(*span)]
            read = [index] if index != self.unk_id else self._other_forms(word)
            ids += read
            words += [word] * len(read)
        return ids, words

    def _other_forms(self, word: str) -> list[int]:
        """An unknown word's ids by its other forms; none for a pause that has no form here, else [UNK]."""
        for form in stand_ins(word):
            ids = self._tokenizer.encode(form, add_special_tokens=False).ids
            if ids and self.unk_id not in ids:
                return ids
        return [] if word in PAUSES else [self.unk_id]

    def _batch(self, rows: list[list[int]], cuts: list[int], prefixes: list[int], max_length: int,
               unknown: list[list[str]]) -> TextBatch:
        ids = np.full([len(rows), max_length], self.pad_id, dtype="int64")
        for index, row in enumerate(rows):
            ids[index, :len(row)] = row
        return TextBatch(ids=ids, length=np.array([len(row) for row in rows], dtype="int64"),
                         cut=np.array(cuts, dtype="int64"), prefix=np.array(prefixes, dtype="int64"), unknown=unknown)

    def _report_unknown(self, kind: str, text: str, unknown: list[str]) -> None:
        if unknown:
            logger.warning("the vocabulary lacks %s of the %s %r; the model reads each as %s", " ".join(unknown), kind,
                           shorten(text), self.special["unk"])

    @staticmethod
    def _report_long(kind: str, text: str, given: int, limit: int, strict: bool) -> None:
        sentence = f"the {kind} {shorten(text)!r} has {given} tokens and this model reads {limit}"
        if strict:
            raise VilgError(f"{sentence}; shorten it")
        logger.warning("%s: the last %d are left out; shorten it to be sure of what is read", sentence, given - limit)


def _cut(pieces: list[int], room: int) -> tuple[list[int], int]:
    return pieces[:room], max(0, len(pieces) - room)


def _checked(max_length: int, least: int) -> int:
    if max_length < least:
        raise VilgError(f"a text length of {max_length} has no room for the special tokens; set it to {least} or more")
    return max_length
