"""Captions taken apart into the words or characters that are scored, by named protocols.

Which words a Chinese caption has is a choice that moves BLEU and CIDEr: every protocol therefore carries a signature.
The scores of papers come from coco-caption, whose tokenizer (the Penn Treebank's, made for English) is followed as far
as it acts on text that has been cut already: small letters, no English punctuation, Chinese ，and 。kept as words.
"""
import functools
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vilg.errors import DataError

IDEOGRAPH = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]")
LONGEST_WORD = 8
"""Ideographs that one word of a caption may have: a caption of more, without a space, was not cut."""
LONGEST_MEAN = 3.0
"""Ideographs a word of a whole set may have in the mean; words of cut Chinese text have about 1.6."""

# What stands alone: ideographs, kana, hangul, and their punctuation.
_ALONE = re.compile(r"([\u1100-\u11ff\u2e80-\ua4cf\ua840-\ua87f\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"
                    r"\U00020000-\U0002ffff])")

_BRACKETS = {"(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- "}
# Quotes, dashes and dots become English ones and are dropped; for brackets of Chinese print it has no token at all.
_GONE = re.compile("[\"“”‘’…—《》〈〉「」『』【】]")
_FULL_WIDTH = re.compile("([，。、；：？！（）［］｛｝％])")
_SIGN = re.compile(r"([%$])|(?<!\d)[,;:]|[,;:](?!\d)")
_NUMBER = re.compile(r"(\d+(?:[.,:]\d+)+)")
_DROPPED = frozenset(("'", "`", "``", "''", ".", "?", "!", ",", ":", "-", "--", "...", ";"))


@dataclass(frozen=True)
class Cut:
    """A protocol: how references and hypotheses become words, and whether they must come with spaces between words."""

    name: str
    reference: Callable[[str], list[str]]
    hypothesis: Callable[[str], list[str]]
    reference_comes_cut: bool
    hypothesis_comes_cut: bool

    @property
    def signature(self) -> str:
        """The protocol's name and, where jieba cuts, its version."""
        cuts = not (self.reference_comes_cut and self.hypothesis_comes_cut) and self.name != "characters"
        return f"{self.name} (jieba {importlib.metadata.version('jieba')})" if cuts else self.name


def characters(text: str) -> list[str]:
    """Single ideographs and their punctuation; words and numbers of other scripts whole, in small letters."""
    return _ALONE.sub(r" \1 ", text.lower()).split()


def treebank(text: str) -> list[str]:
    """The words that coco-caption's tokenizer leaves of a text that was cut: English punctuation goes, Chinese stays.

    Equal to that program on cut Chinese text with numbers; English contractions ("can't") are not taken apart.
    """
    text = _GONE.sub(" ", text.lower())
    text = _NUMBER.sub(r" \1 ", _FULL_WIDTH.sub(r" \1 ", _SIGN.sub(lambda found: f" {found[1] or ''} ", text)))
    for bracket, name in _BRACKETS.items():
        text = text.replace(bracket, name)
    words = (word.rstrip(".?!'").lstrip("'") for word in text.split())
    return [word for word in words if word and word not in _DROPPED]


def aic_words(text: str) -> list[str]:
    """Words as AI Challenger's evaluation makes them of a hypothesis: without 。, cut by jieba, then ``treebank``."""
    return treebank(" ".join(_jieba().cut(text.strip().replace("。", ""))))


def jieba_words(text: str) -> list[str]:
    """Words by jieba whether or not the text comes with spaces; what is punctuation alone is dropped."""
    joined = re.sub(r"(?<=[^\x00-\x7f])\s+|\s+(?=[^\x00-\x7f])", "", text.strip().lower())
    return _spoken(_jieba().cut(joined))


def spoken_characters(text: str) -> list[str]:
    """``characters`` without what is punctuation alone."""
    return _spoken(characters(text))


CUTS = {cut.name: cut for cut in (
    Cut("aic", treebank, aic_words, reference_comes_cut=True, hypothesis_comes_cut=False),
    Cut("coco-cn", treebank, treebank, reference_comes_cut=True, hypothesis_comes_cut=True),
    Cut("jieba", jieba_words, jieba_words, reference_comes_cut=False, hypothesis_comes_cut=False),
    Cut("characters", spoken_characters, spoken_characters, reference_comes_cut=False, hypothesis_comes_cut=False),
)}
"""``aic``: AI Challenger's (2017); ``coco-cn``: by the data set's own cut files (Li et al. 2019, arXiv 1805.08661);
``jieba``: both sides by jieba; ``characters``: no words at all."""


def find_cut(name: str) -> Cut:
    """The protocol of that name. Raises DataError for another name."""
    if name not in CUTS:
        raise DataError(f"there is no way to cut captions called {name}; choose one of {', '.join(CUTS)}")
    return CUTS[name]


def refuse_uncut(texts: Iterable[tuple[str, str]], what: str) -> None:
    """Raise DataError where words are wanted and ``texts``, pairs of image and caption, are whole sentences.

    Nothing in such a text equals a word of the other side, so it would score 0 without a sign of what is wrong.
    """
    ideographs = words = 0
    for image, text in texts:
        own, pieces = len(IDEOGRAPH.findall(text)), len(text.split())
        if pieces == 1 and own > LONGEST_WORD:
            raise DataError(f"{image}: {what} {text!r} is not cut into words; put spaces between its words as the data "
                            "set's own cut file does, or choose the cut jieba or characters")
        ideographs, words = ideographs + own, words + pieces
    if words and ideographs / words > LONGEST_MEAN:
        raise DataError(f"{what}: words have {ideographs / words:.1f} characters in the mean, so most of them are not "
                        "cut; put spaces between words, or choose the cut jieba or characters")


def _spoken(words: Iterable[str]) -> list[str]:
    return [word for word in words if any(map(str.isalnum, word))]


@functools.cache
def _jieba():
    """A jieba of our own: words that a program adds to the shared one would change scores."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer()
