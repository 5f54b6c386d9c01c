"""Captions and questions back to what they claim and ask; text outside the grammar is refused with None."""
import re
from dataclasses import dataclass
from functools import lru_cache

from vilg.data.worlds.scenes.constraints import Constraints, Description, Relation
from vilg.data.worlds.scenes.lexicon import (
    ANY_SHAPE, CELL_WORDS, COLOUR_WORDS, COUNT_WORDS, MEASURES, SHAPE_WORDS, SIDE_WORDS, SIZE_WORDS,
)

SIDE_CELLS = {"left": (1, 0), "right": (1, 2), "above": (0, 1), "below": (2, 1)}


@dataclass(frozen=True)
class Token:
    """A word of the lexicon: its class (one letter) and what it stands for."""

    letter: str
    value: object = None


def _lexicon() -> dict[str, Token]:
    words = {ANY_SHAPE: Token("h"), "的": Token("e")}
    for table, letter in ((COLOUR_WORDS, "k"), (SHAPE_WORDS, "h"), (SIZE_WORDS, "s"), (CELL_WORDS, "p")):
        words |= {word: Token(letter, value) for value, synonyms in table.items() for word in synonyms}
    words |= {word: Token("d", side) for side, synonyms in SIDE_WORDS.items() for word in synonyms}
    words |= {number + measure: Token("c", count) for count, number in COUNT_WORDS.items() for measure in MEASURES}
    for letter, synonyms in (("i", ("图中", "图里", "画面里", "画面中", "画面")), ("v", ("有", "是", "画着", "放着")),
                             ("z", ("在", "位于")), ("a", ("和", "与", "、", "，", ",", "还有")), ("n", ("几个", "几颗", "多少个")),
                             ("K", ("什么颜色",)), ("H", ("什么形状",)), ("W", ("哪里", "哪儿", "什么位置")),
                             ("m", ("吗",)), ("t", ("一共",)), ("", ("？", "?", "。", " "))):
        words |= {word: Token(letter) for word in synonyms}
    return words


WORDS = _lexicon()
LONGEST_WORD = max(map(len, WORDS))
NOUN = "c?(?:se?)?(?:ke?)?s?h"
PLACE = "i?e?[pd]"
CLAUSES = {
    "related": re.compile(f"(?P<first>{NOUN})z(?P<second>{NOUN})e?(?P<side>d)"),
    "related_ground_first": re.compile(f"(?P<second>{NOUN})e?(?P<side>d)v(?P<first>{NOUN})"),
    "placed": re.compile(f"(?P<first>{NOUN})z(?P<place>{PLACE})"),
    "placed_place_first": re.compile(f"(?P<place>{PLACE})[ve](?P<first>{NOUN})"),
    "plain": re.compile(f"(?P<first>{NOUN})"),
}


@lru_cache(maxsize=4096)
def tokenize(text: str) -> tuple[Token, ...] | None:
    """Words of the lexicon by longest match, final punctuation dropped; None when something is not in it."""
    tokens, position = [], 0
    while position < len(text):
        for length in range(min(LONGEST_WORD, len(text) - position), 0, -1):
            token = WORDS.get(text[position:position + length])
            if token is not None:
                break
        else:
            return None
        if token.letter:
            tokens.append(token)
        position += length
    return tuple(tokens)


def letters(tokens: tuple[Token, ...]) -> str:
    """The classes of the words, one letter a word: what the patterns of the grammar are written in."""
    return "".join(token.letter for token in tokens)


def description(tokens: tuple[Token, ...]) -> Description | None:
    """A noun phrase's words as a description; None when it names two different sizes."""
    values = {token.letter: token.value for token in tokens}
    if len({token.value for token in tokens if token.letter == "s"}) > 1:
        return None
    return Description(values.get("c", 1), values.get("k"), values.get("h"), values.get("s"))


def cell_of(token: Token) -> tuple[int, int]:
    """The cell that a place's word names."""
    return SIDE_CELLS[token.value] if token.letter == "d" else token.value


def parse_caption(text: str) -> Constraints | None:
    """What a caption claims, or None when it is not of the grammar of
    :func:`vilg.data.worlds.scenes.captioner.captions`."""
    tokens = tokenize(text)
    if not tokens:
        return None
    opening = re.match(f"(?:i?v)(?={NOUN})", letters(tokens))
    tokens = tokens[opening.end():] if opening else tokens
    groups: list[Description] = []
    relations: list[Relation] = []
    for start, end in _clauses(letters(tokens)):
        parsed = _parse_clause(tokens[start:end])
        if parsed is None:
            return None
        clause_groups, side = parsed
        if side:
            relations.append(Relation(len(groups), side, len(groups) + 1))
        groups += clause_groups
    return Constraints(tuple(groups), tuple(relations)) if groups else None


def _clauses(classes: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer("[^a]+", classes)] if not re.search("^a|a$", classes) else []


def _parse_clause(tokens: tuple[Token, ...]) -> tuple[list[Description], str | None] | None:
    """Groups of a clause and the side of the second that the first is on (if it says so)."""
    classes = letters(tokens)
    for pattern in CLAUSES.values():
        match = pattern.fullmatch(classes)
        if match:
            break
    else:
        return None
    spans = match.groupdict()
    first = description(tokens[slice(*match.span("first"))])
    if first is None:
        return None
    if "second" in spans:
        second = description(tokens[slice(*match.span("second"))])
        return ([first, second], tokens[match.start("side")].value) if second else None
    if "place" in spans:
        cell = cell_of(tokens[match.end("place") - 1])
        return [Description(first.count, first.colour, first.shape, first.size, cell)], None
    return [first], None
