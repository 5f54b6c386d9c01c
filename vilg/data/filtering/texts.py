"""Rules about captions one by one: the paper's (ERNIE-ViLG, section 3: data), scripts, and words that nobody wants."""
import unicodedata
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vilg.config import configclass
from vilg.errors import DataError

# Punctuation of ordinary sentences; any other symbol makes a text "special".
PLAIN_MARKS = frozenset("，。、！？；：“”‘’（）《》—…·,.!?;:'\"()-% ")
MEANING = {
    "special": "special characters", "words": "too long", "noun": "no noun", "script": "other scripts",
    "blocked": "a blocked word", "similarity": "not like the image", "unread": "cannot be read",
    "sides": "a side too short or too long", "aspect": "too narrow", "pixels": "too few or too many pixels",
    "damaged": "cannot be used", "translation": "not translated", "frequency": "a caption of too many images",
    "same_bytes": "the same file again", "same_pixels": "the same pixels again",
    "near_images": "nearly the same image again", "near_texts": "nearly the same caption again",
}
"""What each rule holds against what it drops, for people."""
SCRIPTS = {"han": "CJK"}
"""Names of scripts that Unicode calls otherwise; all others go by the first word of their letters' names (latin)."""


class Reason(NamedTuple):
    """Why something is dropped: the name of the rule, and what it measured or found."""

    rule: str
    value: str


@configclass
class ScriptConfig:
    """Of a caption's letters at least the share ``least`` is of the scripts ``names`` (han, latin, hiragana, hangul …),
    and none of ``never``: Han without kana or Hangul is Chinese."""

    names: list[str] = field(default_factory=lambda: ["han"])
    least: float = 0.5
    never: list[str] = field(default_factory=list)

    def __post_init__(self):
        if not 0 < self.least <= 1:
            raise ValueError("least is a share above 0, at most 1")
        if not self.names:
            raise ValueError("names: name at least one script, such as han")
        for name in (*self.names, *self.never):
            if not _is_script(name):
                raise ValueError(f"{name} is no script; there are han, latin, hiragana, katakana, hangul, cyrillic, "
                                 "arabic, thai, greek, hebrew, devanagari and whatever else Unicode's names begin with")


@configclass
class TextRulesConfig:
    """Which rules captions must pass; ``words``: how many of jieba's words at most (None: any number); ``blocked``:
    files of words, one a line, none of which a caption may hold, whatever its case and width."""

    special: bool = True
    words: int | None = 14
    noun: bool = True
    script: ScriptConfig | None = None
    blocked: list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.words is not None and self.words < 1:
            raise ValueError("words is at least 1, or null for any number")


class TextRules:
    """The rules of a :class:`TextRulesConfig`, in its order. Words and their kinds are jieba's; raises DataError when
    it is not installed and a rule wants it, and for a file of words that cannot be read."""

    def __init__(self, config: TextRulesConfig):
        self.config = config
        self._cut = _jieba() if config.noun or config.words is not None else None
        words = {word for path in config.blocked for word in read_words(path)}
        self._blocked = sorted(words, key=lambda word: (len(word), word))

    def reason(self, text: str) -> Reason | None:
        """The first reason against a caption, or None."""
        if self.config.special and (found := special_characters(text)):
            return Reason("special", found)
        if self._cut is not None and (reason := self._of_words(text)):
            return reason
        if self.config.script and (reason := _of_script(text, self.config.script)):
            return reason
        if self._blocked:
            plain = plain_text(text)
            word = next((word for word in self._blocked if word in plain), None)
            if word is not None:
                return Reason("blocked", word)
        return None

    def _of_words(self, text: str) -> Reason | None:
        words = [(pair.word, pair.flag) for pair in self._cut(text) if any(map(str.isalnum, pair.word))]
        if self.config.words is not None and len(words) > self.config.words:
            return Reason("words", str(len(words)))
        if self.config.noun and not any(kind.startswith("n") for _, kind in words):
            return Reason("noun", " ".join(f"{word}/{kind}" for word, kind in words[:8]))
        return None


def has_special_characters(text: str) -> bool:
    """Whether a text holds anything but letters, digits and the marks of ordinary sentences: emoji,
    URLs' signs, control codes."""
    return bool(special_characters(text))


def special_characters(text: str) -> str:
    """The first special character of a text, as itself or, where it shows nothing, by its number; "" for none."""
    found = next((letter for letter in text if unicodedata.category(letter)[0] not in "LN"
                  and letter not in PLAIN_MARKS), "")
    return found if not found or found.isprintable() else f"U+{ord(found):04X}"


def plain_text(text: str) -> str:
    """A text as it is compared: full width as half width, small letters."""
    return unicodedata.normalize("NFKC", text).casefold()


def read_words(path: str) -> list[str]:
    """The words of a file, one a line, in the form in which texts are compared; lines that begin with # are notes.
    Raises DataError when it cannot be read or holds none."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as blocked words, one a line ({error}); rules.texts.blocked names "
                        "it") from None
    words = [plain_text(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise DataError(f"{path}: holds no blocked word; write one a line, or take it out of rules.texts.blocked")
    return words


@lru_cache(maxsize=1 << 16)
def script_of(letter: str) -> str:
    """The script of a letter as the first word of its Unicode name, "" for what has none (CJK for Han)."""
    name = unicodedata.name(letter, "").split(" ", 1)[0]
    return name.removesuffix("-")


def _of_script(text: str, config: ScriptConfig) -> Reason | None:
    scripts = [script_of(letter) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()]
    never = next((name for name in config.never if _unicode_name(name) in scripts), None)
    if never is not None:
        return Reason("script", never)
    wanted = {_unicode_name(name) for name in config.names}
    share = sum(script in wanted for script in scripts) / len(scripts) if scripts else 0.0
    return Reason("script", f"{share:.2f}") if share < config.least else None


def _unicode_name(script: str) -> str:
    return SCRIPTS.get(script.lower(), script.upper())


@lru_cache(maxsize=256)
def _is_script(name: str) -> bool:
    return any(script_of(chr(code)) == _unicode_name(name) and chr(code).isalpha() for code in range(0x20000))


def _jieba():
    try:
        import jieba
        from jieba import posseg
    except ImportError:
        raise DataError("filtering captions needs jieba; install it with `pip install jieba`") from None
    jieba.setLogLevel("WARNING")
    return posseg.cut
