"""What counts as text, how it is cleaned up, and the characters that every Chinese vocabulary should hold."""
import string
import unicodedata
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from vilg.errors import VilgError

NO_INK = {ord(letter): None for letter in "\u115f\u1160\u2800\u3164\uffa0"}  # letters and symbols that are drawn blank
CHINESE_PUNCTUATION = "，。、；：？！…—·～“”‘’（）《》〈〉「」『』【】〔〕％￥℃°×÷"
PUNCTUATION = CHINESE_PUNCTUATION + string.punctuation
PAUSES = frozenset("，。、；：？！…—·～“”‘’（）《》〈〉「」『』【】〔〕" + ",.;:?!~-'\"()[]｡､｢｣")
"""Marks that part or close words: a text without them says the same things."""
_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_NARROW = {wide: narrow for narrow, wide in _WIDE.items()}


def common_characters() -> list[str]:
    """Chinese and ASCII punctuation, then the 3755 characters of GB 2312's first level, those in daily use."""
    level = [bytes([row, cell]) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)]
    return [*PUNCTUATION, *(code.decode("gb2312") for code in level if code <= b"\xd7\xf9")]


def stand_ins(word: str) -> list[str]:
    """Other spellings of a word: its half-width and full-width forms where they differ from it."""
    return [form for form in (word.translate(_NARROW), word.translate(_WIDE)) if form != word]


def check_text(text: Any, kind: str) -> None:
    """Raise VilgError, naming ``kind``, unless this is text that every encoding of Unicode can hold."""
    if not isinstance(text, str):
        raise VilgError(f"the {kind} {text!r} is not text but {type(text).__name__}; give a str")
    try:
        text.encode()
    except UnicodeEncodeError:  # Python keeps bytes that a terminal sent and it could not read as lone surrogates
        raise VilgError(f"the {kind} {shorten(text)!r} has parts that cannot be read as characters; set the terminal "
                        "to UTF-8 and type it again") from None


def mend(text: str) -> str:
    """The text with ``?`` for every half of a character, such as is left of an emoji that JSON escapes were cut in;
    neither Rust nor a file takes one."""
    return text.encode("utf-8", "replace").decode("utf-8")


def shorten(text: str, limit: int = 40) -> str:
    """The text, cut to ``limit`` characters with an ellipsis, for a message."""
    return text if len(text) <= limit else text[:limit - 1] + "…"


def bert_normalizer(lowercase: bool = True) -> normalizers.Normalizer:
    """BERT's clean-up: control characters out, Chinese characters apart, and when ``lowercase`` accents off as well."""
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=lowercase,
                                      lowercase=lowercase)


_CLEAN = bert_normalizer()


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only spaces, control characters, accents without a letter, characters of no width
    or of no ink. Such a caption or question is none."""
    if text[:1].isalnum() and ord(text[0]) not in NO_INK:  # nearly always
        return False
    return not _CLEAN.normalize_str(mend(text)).translate(NO_INK).strip()


def word_splitter() -> pre_tokenizers.PreTokenizer:
    """ERNIE's words: BERT's (spaces and punctuation part them), and every symbol or emoji alone as well."""
    symbols = pre_tokenizers.Split(Regex(r"[\p{S}\u00AD\u00B2\u00B5\u00BA\u00D8\u014B\u01B1\u3007]"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), symbols])


def is_chinese(character: str) -> bool:
    """Whether BERT makes a word of its own of the character: the CJK ideograph blocks."""
    code = ord(character)
    return (0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2CEAF
            or 0xF900 <= code <= 0xFAFF or 0x2F800 <= code <= 0x2FA1F)


def is_spaced(left: str, right: str) -> bool:
    """Whether a space stands between two tokens that end and begin with these characters."""
    if _is_word(left):
        return _is_word(right)
    return left in ",.;:!?" and right.isalpha() and _is_word(right)


def _is_word(character: str) -> bool:
    return character.isalnum() and unicodedata.east_asian_width(character) not in ("W", "F")
