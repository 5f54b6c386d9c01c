"""Questions about a scene with their answers, and what the right answers to a question are.

Five kinds: colour, shape, number, place, yes or no.
"""
import re
from dataclasses import dataclass

import numpy as np

from vilg.data.worlds.scenes.captioner import noun_phrase, pick
from vilg.data.worlds.scenes.constraints import Description
from vilg.data.worlds.scenes.lexicon import (
    ANY_SHAPE, CELL_WORDS, COLOUR_WORDS, COLOURS, COUNT_WORDS, MEASURES, NO, SHAPE_WORDS, SHAPES, SIDE_WORDS, YES,
)
from vilg.data.worlds.scenes.parser import NOUN, PLACE, cell_of, description, letters, tokenize
from vilg.data.worlds.scenes.scene import Object, Scene, held_out_kinds, is_held_out, sides_of

KINDS = ("colour", "shape", "number", "place", "yes/no")
NAMES = {"colour": COLOUR_WORDS, "shape": SHAPE_WORDS}


@dataclass(frozen=True)
class Question:
    """What is asked: its kind, about what (with its cell where one is named), and against what a yes/no one holds it.

    ``other`` and ``side`` are of "is A left of B?"; ``colour`` is of "is A red?".
    """

    kind: str
    about: Description
    other: Description | None = None
    side: str | None = None
    colour: str | None = None


PATTERNS = {kind: [re.compile(form) for form in forms] for kind, forms in {
    "number": [f"i?t?vn(?P<noun>{NOUN})", f"(?P<noun>{NOUN})vn"],
    "colour": [f"(?:(?P<place>{PLACE})e)?(?P<noun>{NOUN})vK"],
    "shape": [f"(?:(?P<place>{PLACE})e)?(?P<noun>{NOUN})vH"],
    "place": [f"(?P<noun>{NOUN})zW"],
    "yes/no": [f"(?:(?P<place>{PLACE})|i)?v(?P<noun>{NOUN})m", f"(?P<noun>{NOUN})z(?P<other>{NOUN})e?(?P<side>d)m",
               f"(?P<noun>{NOUN})z(?P<place>{PLACE})m", f"(?P<noun>{NOUN})v(?P<colour>k)e?m"],
}.items()}


def parse_question(text: str) -> Question | None:
    """What a question asks, or None when it is not of the grammar of :func:`questions`."""
    tokens = tokenize(text)
    if not tokens:
        return None
    for kind, forms in PATTERNS.items():
        for form in forms:
            match = form.fullmatch(letters(tokens))
            if match:
                return _question(kind, match, tokens)
    return None


def _question(kind: str, match: re.Match, tokens: tuple) -> Question | None:
    spans = {name: tokens[slice(*match.span(name))] for name, found in match.groupdict().items() if found}
    about = description(spans["noun"])
    other = description(spans["other"]) if "other" in spans else None
    if about is None or ("other" in spans and other is None):
        return None
    cell = cell_of(spans["place"][-1]) if "place" in spans else None
    return Question(kind, Description(about.count, about.colour, about.shape, about.size, cell), other,
                    spans["side"][0].value if "side" in spans else None,
                    spans["colour"][0].value if "colour" in spans else None)


def right_answers(question: Question, scene: Scene) -> set[str]:
    """Every right answer; empty when the question has none (it speaks of something that is not there,
    or of several)."""
    found = [item for item in scene.objects if question.about.fits(item)]
    if question.kind == "number":
        return {COUNT_WORDS[len(found)] + measure for measure in MEASURES} | {str(len(found))} if found else {"没有"}
    if question.kind == "yes/no":
        return set(YES if _is_so(question, found, scene) else NO)
    if question.kind == "place":
        cells = {item.cell for item in found}
        return set(CELL_WORDS[cells.pop()]) if len(cells) == 1 else set()
    values = {getattr(item, question.kind) for item in found}
    return set(NAMES[question.kind][values.pop()]) if len(values) == 1 else set()


def _is_so(question: Question, found: list[Object], scene: Scene) -> bool:
    if question.other is not None:
        others = [item for item in scene.objects if question.other.fits(item)]
        return any(sides_of(one, other)[question.side] for one in found for other in others)
    if question.colour is not None:
        return any(item.colour == question.colour for item in found)
    return bool(found)


def answer_is_right(question: str, answer: str, scene: Scene) -> bool:
    """Whether ``answer`` (final punctuation and blanks aside) is right; False for a question outside the grammar."""
    parsed = parse_question(question)
    return parsed is not None and answer.replace(" ", "").rstrip("。.！!") in right_answers(parsed, scene)


def questions(scene: Scene, rng: np.random.Generator, number: int = 5) -> list[tuple[str, str]]:
    """Up to ``number`` different (question, answer) pairs, the kinds in turn from a random one on."""
    first = int(rng.integers(len(KINDS)))
    found: dict[str, str] = {}
    for turn in range(number * 2):
        kind = KINDS[(first + turn) % len(KINDS)]
        item = scene.objects[int(rng.integers(len(scene.objects)))]
        pair = ASKERS[kind](scene, item, rng)
        if pair is not None:
            found.setdefault(*pair)
        if len(found) == number:
            break
    return list(found.items())


def _alone(scene: Scene, item: Object, drop: str, rng: np.random.Generator) -> Description | None:
    """Words that single out ``item`` (or objects alike in what is asked) without naming ``drop``."""
    names = [name for name in ("colour", "shape") if name != drop]
    if drop == "cell":
        options = [{"colour", "shape"}, {"colour"}, {"shape"}]
        order = [0, 1, 2] if rng.random() < 0.6 else [1, 2, 0]
        options = [options[index] for index in order]
    else:
        options = [set(names)]
    for option in options:
        words = Description(1, **{name: getattr(item, name) for name in option})
        alike = [other for other in scene.objects if words.fits(other)]
        if len({getattr(other, drop) for other in alike}) == 1:
            return words
    return None


def _ask_attribute(scene: Scene, item: Object, rng: np.random.Generator, kind: str) -> tuple[str, str] | None:
    answer = NAMES[kind][getattr(item, kind)][0]
    words = _alone(scene, item, kind, rng)
    if words is None or rng.random() < 0.35:
        subject = pick(rng, CELL_WORDS[item.cell], 0.6) + "的" + ANY_SHAPE
    else:
        subject = noun_phrase(words, rng)
    return f"{subject}是什么{'颜色' if kind == 'colour' else '形状'}？", answer


def _ask_colour(scene: Scene, item: Object, rng: np.random.Generator) -> tuple[str, str] | None:
    return _ask_attribute(scene, item, rng, "colour")


def _ask_shape(scene: Scene, item: Object, rng: np.random.Generator) -> tuple[str, str] | None:
    return _ask_attribute(scene, item, rng, "shape")


def _ask_place(scene: Scene, item: Object, rng: np.random.Generator) -> tuple[str, str] | None:
    words = _alone(scene, item, "cell", rng)
    if words is None:
        return None
    return f"{noun_phrase(words, rng)}在{pick(rng, ('哪里', '什么位置'), 0.7)}？", CELL_WORDS[item.cell][0]


def _ask_number(scene: Scene, item: Object, rng: np.random.Generator) -> tuple[str, str]:
    draw = rng.random()
    words = (Description() if draw < 0.3 else Description(shape=item.shape) if draw < 0.5
             else Description(colour=item.colour) if draw < 0.65 else Description(1, item.colour, item.shape))
    noun = noun_phrase(words, rng)
    count = sum(words.fits(other) for other in scene.objects)
    form = ("图中有几个{}？", "有几个{}？", "一共有几个{}？", "{}有几个？")[int(rng.integers(4))]
    return form.format(noun), COUNT_WORDS[count] + "个"


def _ask_yes_no(scene: Scene, item: Object, rng: np.random.Generator) -> tuple[str, str]:
    truth, draw = rng.random() < 0.5, rng.random()
    if draw < 0.3 and len(scene.objects) > 1:
        asked = _ask_side(scene, item, truth, rng)
        if asked is not None:
            return asked
    if draw < 0.6:
        kind = item.kind if truth else _absent_kind(scene, rng)
        opening = pick(rng, ("", "图中"))
        return f"{opening}有{noun_phrase(Description(1, *kind), rng)}吗？", "有" if truth else "没有"
    if draw < 0.8:
        cell = item.cell if truth else _other_cell(scene, rng)
        place = pick(rng, CELL_WORDS[cell], 0.6)
        words = Description(shape=item.shape if rng.random() < 0.6 else None)
        return f"{place}有{noun_phrase(words, rng)}吗？", "有" if truth else "没有"
    colours = [colour for colour in COLOURS if all(colour != other.colour for other in scene.objects)
               and ((colour, item.shape) not in held_out_kinds() or is_held_out(scene.objects))]
    colour = item.colour if truth else colours[int(rng.integers(len(colours)))]
    subject = noun_phrase(Description(shape=item.shape), rng)
    return f"{subject}是{COLOUR_WORDS[colour][0]}{pick(rng, ('的', ''))}吗？", "是" if truth else "不是"


def _ask_side(scene: Scene, item: Object, truth: bool, rng: np.random.Generator) -> tuple[str, str] | None:
    """Whether one object is on a side of another; None when either shares its colour and shape with a third."""
    other = scene.objects[(scene.objects.index(item) + 1) % len(scene.objects)]
    kinds = [one.kind for one in scene.objects]
    sides = [side for side, holds in sides_of(item, other).items() if holds == truth]
    if kinds.count(item.kind) > 1 or kinds.count(other.kind) > 1 or not sides:
        return None
    side = pick(rng, SIDE_WORDS[sides[int(rng.integers(len(sides)))]])
    first, second = (noun_phrase(Description(1, *one.kind), rng) for one in (item, other))
    return f"{first}在{second}的{side}吗？", "是" if truth else "不是"


def _absent_kind(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A colour–shape pair that the scene lacks; a held-out one only for held-out scenes, lest training name it."""
    present = {item.kind for item in scene.objects}
    while True:
        kind = list(COLOURS)[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]
        if rng.random() < 0.5:  # half of the time only one of the two is wrong
            near = scene.objects[int(rng.integers(len(scene.objects)))]
            kind = (near.colour, kind[1]) if rng.random() < 0.5 else (kind[0], near.shape)
        if kind not in present and (kind not in held_out_kinds() or is_held_out(scene.objects)):
            return kind


def _other_cell(scene: Scene, rng: np.random.Generator) -> tuple[int, int]:
    free = [cell for cell in CELL_WORDS if all(cell != item.cell for item in scene.objects)]
    return free[int(rng.integers(len(free)))]


ASKERS = {"colour": _ask_colour, "shape": _ask_shape, "number": _ask_number, "place": _ask_place, "yes/no": _ask_yes_no}
