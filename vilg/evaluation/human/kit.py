"""The human kit: what raters are asked, in which order, and the key that stays with whoever asks.

A rater's page holds opaque trials alone; which system made what, which trials are repeats and which have a known answer
stands in the key. ERNIE-ViLG (arXiv 2112.15283, section 4) asks for 1 to 5 on pictures, 0 to 2 on captions, and human
or machine and 0 to 2 on answers.
"""
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vilg.data.benchmarks.files import field as value_of
from vilg.data.benchmarks.files import read_json, read_jsonl
from vilg.errors import ConfigError, DataError
from vilg.evaluation.files import write_whole
from vilg.evaluation.human.kinds import ABOUT_TEXT, FORMAT, KINDS, Item, fingerprint_of
from vilg.evaluation.human.page import page, picture
from vilg.progress import progress

SHARE = 0.05
"""Of repeats, and of trials whose answer is known, beside the others."""
KEY = "key.json"


@dataclass(frozen=True)
class Trial:
    """One thing that one rater rates: ``number`` of the shown item; ``role`` is plain, repeat or gold. ``of`` is the
    trial that a repeat shows again; ``gold`` the numbers that are right."""

    trial: str
    number: int
    role: str = "plain"
    of: str = ""
    gold: dict[str, list[int]] = field(default_factory=dict)


def read_items(path: str | Path, kind: str) -> list[Item]:
    """Items of a file of {"item", "system", "image", "text"}, one a line, with "question" for answers and perhaps
    "gold"; images are beside the file. Raises DataError naming the line."""
    path, items = Path(path), []
    for place, record in read_jsonl(path):
        question = value_of(record, "question", str, place) if kind == "answers" else ""
        items.append(Item(str(value_of(record, "item", (str, int), place)), value_of(record, "system", str, place),
                          path.parent / value_of(record, "image", str, place), value_of(record, "text", str, place),
                          question, _gold(record.get("gold"), kind, place)))
    return items


def _gold(given: Any, kind: str, place: str) -> dict[str, tuple[int, int]]:
    if given is None:
        return {}
    known = {one.name for one in KINDS[kind]}
    right = isinstance(given, dict) and given.keys() <= known and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(value, int) for value in pair)
        for pair in given.values())
    if not right or not given:
        raise DataError(f'{place}: gold is {{criterion: [lowest, highest]}} with {", ".join(sorted(known))}')
    return {name: (pair[0], pair[1]) for name, pair in given.items()}


def check_items(items: list[Item], kind: str) -> None:
    """Raise DataError for a kind there is not, fewer than two items, an item that a system has twice, or an image that
    is not there; ConfigError for the kind."""
    if kind not in KINDS:
        raise ConfigError(f"there is no kit of kind {kind}; choose one of {', '.join(KINDS)}")
    plain = [item for item in items if not item.gold]
    if len(plain) < 2:
        raise DataError(f"a kit shows at least two items, and there are {len(plain)}")
    seen: set[tuple[str, str]] = set()
    for item in plain:
        if (item.item, item.system) in seen:
            raise DataError(f"{item.system} has item {item.item} twice; keep one")
        seen.add((item.item, item.system))
    counts: dict[str, int] = {}
    for item in plain:
        counts[item.system] = counts.get(item.system, 0) + 1
    if len(set(counts.values())) > 1:
        raise DataError("systems are compared on the same items, and here they have "
                        + ", ".join(f"{system} {count}" for system, count in counts.items()))
    lost = next((item.image for item in items if not item.image.is_file()), None)
    if lost:
        raise DataError(f"{lost}: the image is missing; images are named from the folder of the items file")


def make_kit(items: list[Item], kind: str, output: str | Path, raters: int = 3, seed: int = 0) -> dict[str, Any]:
    """Write ``rater_1.html`` … and ``key.json`` to ``output``; returns the key. The same items and seed make the same
    kit.

    Every rater sees every item once, in an order of their own, with :data:`SHARE` of repeats and as many items whose
    answer is known: those with ``gold``, or else texts put beside another item's image. Raises DataError and
    ConfigError, as :func:`check_items`, and ConfigError where another kit lies in ``output``.
    """
    check_items(items, kind)
    if raters < 1:
        raise ConfigError(f"a kit has at least one rater, not {raters}")
    output = Path(output)
    plain = [item for item in items if not item.gold]
    count = max(1, math.ceil(SHARE * len(plain)))
    generator = np.random.default_rng([seed, len(plain)])
    shown = plain + (_chosen([item for item in items if item.gold], count, generator)
                     or _mismatched(plain, kind, count, generator))
    pictures = {}
    for item in progress(shown, desc="kit", unit="item"):
        if item.image not in pictures:
            pictures[item.image] = picture(item.image, exact=kind == "images")
    described = [{"item": one.item, "system": one.system, "text": one.text, "question": one.question,
                  "image": hashlib.sha256(pictures[one.image]).hexdigest()[:16]} for one in shown]
    key: dict[str, Any] = {"format": FORMAT, "kind": kind, "seed": seed, "items": described, "raters": {
        str(rater): [asdict(trial) for trial in _trials(shown, len(plain), count, seed, rater)]
        for rater in range(1, raters + 1)}}
    key["fingerprint"] = fingerprint_of(key)
    place = output / KEY
    if place.is_file() and read_json(place) != key:
        raise ConfigError(f"{output}: holds another kit; choose another --output, so that its ratings stay readable")
    for rater in range(1, raters + 1):
        content = page(key, rater, shown, pictures)
        write_whole(output / f"rater_{rater}.html", content.encode())
    write_whole(place, json.dumps(key, ensure_ascii=False, indent=1).encode())
    return key


def _chosen(given: list[Item], count: int, generator: np.random.Generator) -> list[Item]:
    order = generator.permutation(len(given))[:count]
    return [given[number] for number in order]


def _mismatched(plain: list[Item], kind: str, count: int, generator: np.random.Generator) -> list[Item]:
    """Items with the text of another one: no system's, and nothing that such a text should be given points for."""
    criterion = next(one for one in KINDS[kind] if one.name == ABOUT_TEXT[kind])
    highest = criterion.low + (criterion.high - criterion.low) // 4
    own: dict[str, set[str]] = {}
    for item in plain:
        own.setdefault(item.item, set()).add(item.text)
    made = []
    for number in generator.permutation(len(plain)):
        item = plain[number]
        others = [other.text for other in plain if other.text not in own[item.item]]
        if others and len(made) < count:
            made.append(Item(item.item, "", item.image, others[int(generator.integers(len(others)))], item.question,
                             {criterion.name: (criterion.low, highest)}))
    return made


def _trials(shown: list[Item], plain: int, repeats: int, seed: int, rater: int) -> list[Trial]:
    """One rater's trials, in order: everything once, and some of the first half again in the second."""
    generator = np.random.default_rng([seed, rater, len(shown)])
    order = generator.permutation(len(shown)).tolist()
    half = len(order) // 2
    early = [number for number in order[:half] if number < plain]
    again = [early[number] for number in generator.permutation(len(early))[:repeats]]
    tail = order[half:]
    for number in again:
        tail.insert(int(generator.integers(1, len(tail) + 1)), number)
    names = generator.choice(16 ** 6, len(order) + len(again), replace=False)
    first: dict[int, str] = {}
    trials = []
    for number, name in zip(order[:half] + tail, names):
        trial = f"{int(name):06x}"
        gold = {criterion: list(pair) for criterion, pair in shown[number].gold.items()}
        role = "gold" if gold else "repeat" if number in first else "plain"
        trials.append(Trial(trial, number, role, first.get(number, ""), gold))
        first.setdefault(number, trial)
    return trials
