"""WordPiece over Chinese text: every Chinese character is a word of its own (ERNIE-ViLG, section 3.1).

Normalisation and splitting follow PaddleNLP's ERNIE tokenizer (BERT's rules, symbols and emoji parted too), so that a
``vocab.txt`` of ERNIE gives the ids its own tokenizer gives, with one deliberate difference: the names of special
tokens written in a text ("[SEP]") are plain text here, because a prompt must not be able to end its own sentence.
"""
import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from vilg.errors import VilgError

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
CONTINUATION = "##"
_NUMBERED = re.compile(r"([^\t]+)\t(\d{1,9})\r?", re.ASCII)  # a line that names its token's id
LONGEST_WORD = 100  # letters; BERT reads a longer unbroken word as unknown
NO_INK = {ord(letter): None for letter in "\u115f\u1160\u2800\u3164\uffa0"}  # letters and symbols that are drawn blank
ANSWER_ROOM = 1  # tokens kept free behind a question that is still to be answered, as behind one with a short answer


@dataclass
class TextBatch:
    """Texts as ids, padded to one length.

    ``ids`` [B, M] int64; ``length`` [B] int64 counts the tokens before the padding, [CLS] and [SEP] included; ``cut``
    [B] int64 counts the tokens that did not fit and were left out; ``prefix`` [B] int64 counts the tokens through the
    [SEP] of a question, 0 for a caption.
    """

    ids: np.ndarray
    length: np.ndarray
    cut: np.ndarray
    prefix: np.ndarray


class WordPieceTokenizer:
    """Text ↔ ids by a ``vocab.txt`` (one token a line, the id is the line's number, or stands behind a tab).

    ``special`` renames special tokens: ``{"cls": "<s>"}``. Raises VilgError for a vocabulary that is missing, is not
    text, or lacks a special token.
    """

    def __init__(self, vocab_file: str | Path, *, lowercase: bool = True, special: dict[str, str] | None = None):
        self.tokens = _read_vocab(Path(vocab_file))
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
        settings = _read_settings(folder / "tokenizer_config.json")
        named = {kind: settings.get(f"{kind}_token") for kind in SPECIAL_TOKENS}
        special = {kind: token.get("content") if isinstance(token, dict) else token
                   for kind, token in named.items() if token}
        for odd in (kind for kind, token in special.items() if not isinstance(token, str)):
            raise VilgError(f"{folder / 'tokenizer_config.json'}: {odd}_token must be the token's text")
        return cls(folder / "vocab.txt", lowercase=bool(settings.get("do_lower_case", True)), special=special)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.tokens)

    def save(self, folder: str | Path) -> None:
        """Write ``vocab.txt`` and ``tokenizer_config.json``, which :meth:`from_folder` and ERNIE's tokenizers read."""
        (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
        settings = {"do_lower_case": self.lowercase, **{f"{kind}_token": name for kind, name in self.special.items()}}
        lines = "".join(f"{token}\n" for token in self.tokens)
        (folder / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
                                                      encoding="utf-8")

    def fingerprint(self) -> str:
        """A short hash of all that decides the ids: tokens in order, special tokens and lower-casing."""
        content = json.dumps([self.tokens, self.special, self.lowercase], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def encode(self, text: str, max_length: int) -> list[int]:
        """One text → ``[CLS] … [SEP]``, cut to ``max_length`` ids at most; not padded."""
        kept, _ = _cut(self._pieces(text), _checked(max_length, 2) - 2)
        return [self.cls_id, *kept, self.sep_id]

    def encode_batch(self, texts: Sequence[str], max_length: int) -> TextBatch:
        """Captions → ids [B, max_length], ``[CLS] … [SEP]`` each. An empty text is ``[CLS] [SEP]``."""
        room = _checked(max_length, 2) - 2
        parts = [_cut(self._pieces(text), room) for text in texts]
        rows = [[self.cls_id, *kept, self.sep_id] for kept, _ in parts]
        return self._batch(rows, [cut for _, cut in parts], [0] * len(rows), max_length)

    def encode_prompts(self, prompts: Sequence[str], max_length: int, strict: bool = False) -> TextBatch:
        """What a user typed → ids, as :meth:`encode_batch`, but never silently bent.

        A prompt that is empty or no text is a VilgError. One that is longer than the model's text length is cut with a
        warning that names both lengths, or refused when ``strict``; characters that the vocabulary lacks are warned
        about by name.
        """
        for prompt in prompts:
            check_text(prompt, "prompt")
            if not self.reads(prompt):
                raise VilgError(f"the prompt {prompt!r} is empty; write at least one character to draw or answer from")
        batch = self.encode_batch(prompts, max_length)
        for prompt, cut in zip(prompts, batch.cut.tolist(), strict=True):
            if cut:
                self._report_long("prompt", prompt, max_length - 2 + cut, max_length - 2, strict)
            unknown = self.unknown(prompt)
            if unknown:
                logger.warning("the vocabulary lacks %s of the prompt %r; the model reads each as %s",
                               " ".join(unknown), _short(prompt), self.special["unk"])
        return batch

    def encode_questions(self, questions: Sequence[str], answers: Sequence[str] | None, max_length: int,
                         strict: bool = False) -> TextBatch:
        """``[CLS] question [SEP] answer [SEP]`` → ids [B, max_length]; ``prefix`` counts through the first [SEP].

        Of a pair that is too long the question is cut first, down to half the room, then the answer. Without answers
        a row ends behind its question, as a user asked it: a cut is warned about, or a VilgError when ``strict``, and a
        question that is no text is a VilgError. An empty question is one in either case.
        """
        rows, cuts, prefixes = [], [], []
        room = _checked(max_length, 4) - 3
        for index, question in enumerate(questions):
            if answers is None:
                check_text(question, "question")
            asked = self._pieces(question)
            if not asked:
                raise VilgError(f"the question {question!r} is empty; ask at least one character")
            answered = self._pieces(answers[index]) if answers is not None else []
            wanted = len(answered) if answers is not None else ANSWER_ROOM
            limit = room - min(wanted, room // 2)
            kept, cut = _cut(asked, limit)
            if cut and (strict or answers is None):
                self._report_long("question", question, len(asked), limit, strict)
            row = [self.cls_id, *kept, self.sep_id]
            prefixes.append(len(row))
            if answers is not None:
                said, more = _cut(answered, max_length - len(row) - 1)
                row += [*said, self.sep_id]
                cut += more
            rows.append(row)
            cuts.append(cut)
        return self._batch(rows, cuts, prefixes, max_length)

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
                text += (" " if text and _spaced(text[-1], token[:1]) else "") + token
        return unicodedata.normalize("NFC", text)

    def normalise(self, text: str) -> str:
        """The text as :meth:`decode` would give it back, uncut: lower case, with the spaces that decoding sets."""
        return self.decode(self._pieces(text))

    def reads(self, text: str) -> bool:
        """Whether anything of the text is left when spaces, control characters and the like are taken out."""
        return not is_blank(text) and bool(self._pieces(text))

    def unknown(self, text: str) -> list[str]:
        """The words of ``text`` (a Chinese character is a word) that the vocabulary lacks, each once, in order."""
        text = mend(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        words = [text[slice(*span)] for index, span in zip(encoding.ids, encoding.offsets, strict=True)
                 if index == self.unk_id]
        return list(dict.fromkeys(words))

    def _pieces(self, text: str) -> list[int]:
        return self._tokenizer.encode(mend(text), add_special_tokens=False).ids

    def _batch(self, rows: list[list[int]], cuts: list[int], prefixes: list[int], max_length: int) -> TextBatch:
        ids = np.full([len(rows), max_length], self.pad_id, dtype="int64")
        for index, row in enumerate(rows):
            ids[index, :len(row)] = row
        return TextBatch(ids=ids, length=np.array([len(row) for row in rows], dtype="int64"),
                         cut=np.array(cuts, dtype="int64"), prefix=np.array(prefixes, dtype="int64"))

    @staticmethod
    def _report_long(kind: str, text: str, given: int, limit: int, strict: bool) -> None:
        sentence = f"the {kind} {_short(text)!r} has {given} tokens and this model reads {limit}"
        if strict:
            raise VilgError(f"{sentence}; shorten it")
        logger.warning("%s: the last %d are left out; shorten it to be sure of what is read", sentence, given - limit)


def check_text(text: Any, kind: str) -> None:
    """Raise VilgError, naming ``kind``, unless this is text that every encoding of Unicode can hold."""
    if not isinstance(text, str):
        raise VilgError(f"the {kind} {text!r} is not text but {type(text).__name__}; give a str")
    try:
        text.encode()
    except UnicodeEncodeError:  # Python keeps bytes that a terminal sent and it could not read as lone surrogates
        raise VilgError(f"the {kind} {_short(text)!r} has parts that cannot be read as characters; set the terminal to "
                        "UTF-8 and type it again") from None


def bert_normalizer(lowercase: bool = True) -> normalizers.Normalizer:
    """BERT's clean-up: control characters out, Chinese characters apart, and when ``lowercase`` accents off as well."""
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=lowercase,
                                      lowercase=lowercase)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only spaces, control characters, accents without a letter, characters of no width
    or of no ink. Such a caption or question is none."""
    if text[:1].isalnum() and ord(text[0]) not in NO_INK:  # nearly always
        return False
    return not bert_normalizer().normalize_str(mend(text)).translate(NO_INK).strip()


def word_splitter() -> pre_tokenizers.PreTokenizer:
    """ERNIE's words: BERT's (spaces and punctuation part them), and every symbol or emoji alone as well."""
    symbols = pre_tokenizers.Split(Regex(r"[\p{S}\u00AD\u00B2\u00B5\u00BA\u00D8\u014B\u01B1\u3007]"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), symbols])


def is_chinese(character: str) -> bool:
    """Whether BERT makes a word of its own of the character: the CJK ideograph blocks."""
    code = ord(character)
    return (0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2CEAF
            or 0xF900 <= code <= 0xFAFF or 0x2F800 <= code <= 0x2FA1F)


def _read_vocab(path: Path) -> list[str]:
    try:
        # Not splitlines(): vocabularies hold U+2028 and its like as tokens.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise VilgError(f"{path}: there is no such vocabulary; build one with tools/build_vocab.py, "
                        "or name the vocab.txt of a BERT or ERNIE tokenizer") from None
    except (OSError, UnicodeDecodeError) as error:
        raise VilgError(f"{path}: not a vocabulary of UTF-8 lines ({error})") from None
    while lines and not lines[-1]:  # an editor adds blank lines at the end; one further up is a token
        lines.pop()
    return _by_number(path, lines) if lines and _NUMBERED.fullmatch(lines[0]) else lines


def _by_number(path: Path, lines: list[str]) -> list[str]:
    """The tokens of lines ``token<TAB>id`` (as ERNIE-ViL 2.0's) in the order of their ids, which leave none out."""
    tokens: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        match = _NUMBERED.fullmatch(line)
        if not match or int(match[2]) in tokens:
            fault = "gives an id again" if match else "is no token, tab and id like the first"
            raise VilgError(f"{path}: line {number} {fault}; mend it, or fetch the file again")
        tokens[int(match[2])] = match[1]
    if max(tokens) != len(tokens) - 1:
        raise VilgError(f"{path}: its {len(tokens)} lines have ids up to {max(tokens)}, so some ids have no token; "
                        "fetch the file again")
    return [tokens[index] for index in range(len(tokens))]


def _read_settings(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VilgError(f"{path}: not a JSON file ({error}); mend it or leave it out") from None
    if not isinstance(settings, dict):
        raise VilgError(f"{path}: a mapping of settings is expected, found {type(settings).__name__}")
    return settings


def _cut(pieces: list[int], room: int) -> tuple[list[int], int]:
    return pieces[:room], max(0, len(pieces) - room)


def _checked(max_length: int, least: int) -> int:
    if max_length < least:
        raise VilgError(f"a text length of {max_length} has no room for the special tokens; set it to {least} or more")
    return max_length


def mend(text: str) -> str:
    """The text with ``?`` for every half of a character, such as is left of an emoji that JSON escapes were cut in;
    neither Rust nor a file takes one."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[:limit - 1] + "…"


def _spaced(left: str, right: str) -> bool:
    """Whether a space stands between two tokens that end and begin with these characters."""
    if _is_word(left):
        return _is_word(right)
    return left in ",.;:!?" and right.isalpha() and _is_word(right)


def _is_word(character: str) -> bool:
    return character.isalnum() and unicodedata.east_asian_width(character) not in ("W", "F")
