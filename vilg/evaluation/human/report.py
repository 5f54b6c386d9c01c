"""What the raters of a kit said: means with bootstrap intervals, agreement, repeats, and items of known answers."""
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vilg.data.benchmarks.files import read_json
from vilg.errors import DataError
from vilg.evaluation.human.kinds import FORMAT, KINDS, fingerprint_of, salt_of
from vilg.evaluation.report import Score
from vilg.metrics.agreement import bootstrap, mean_rating, ordinal_alpha, repeats_agreement

log = logging.getLogger("vilg.evaluation")
CAREFUL = 0.8
"""Of known answers that a rater should have right."""
Ratings = dict[str, dict[str, list[int]]]  # rater → trial → numbers by criterion


def read_key(path: str | Path) -> dict[str, Any]:
    """A kit's key. Raises DataError when it is none, or was changed."""
    key = read_json(path)
    if not isinstance(key, dict) or key.get("format") != FORMAT or key.get("kind") not in KINDS:
        raise DataError(f"{path}: is not the key of a kit; give the key.json that was written beside its pages")
    if key.get("fingerprint") != fingerprint_of(key):
        raise DataError(f"{path}: was changed after the kit was made: it says {key.get('fingerprint')} and is "
                        f"{fingerprint_of(key)}; take the key that was written beside the raters' pages")
    return key


def read_ratings(paths: Iterable[str | Path], key: Mapping[str, Any]) -> Ratings:
    """The exports of a kit's raters, checked. Raises DataError for an export of another kit, one that was edited, two
    of one rater, and ratings out of their range; trials that are not rated are warned of."""
    ratings: Ratings = {}
    for path in paths:
        said = read_json(path)
        if not isinstance(said, dict) or not isinstance(said.get("ratings"), list):
            raise DataError(f"{path}: is not an export of a rater's page")
        if said.get("kit") != key["fingerprint"]:
            raise DataError(f"{path}: rates the kit {said.get('kit')}, and the key is of {key['fingerprint']}; give "
                            "the key of that kit")
        rater = str(said.get("rater"))
        if rater not in key["raters"]:
            raise DataError(f"{path}: is of rater {rater}, and the kit has {len(key['raters'])} raters")
        text = json.dumps([said["kit"], said["rater"], said["ratings"], salt_of(key["fingerprint"], rater)],
                          ensure_ascii=False, separators=(",", ":"))
        due = hashlib.sha256(text.encode()).hexdigest()
        if said.get("digest") != due:
            raise DataError(f"{path}: was edited after it was exported: it says {str(said.get('digest'))[:12]} and its "
                            f"ratings give {due[:12]}; export it again from the rater's page")
        if rater in ratings:
            raise DataError(f"{path}: is another export of rater {rater}; give one file a rater, the last one")
        ratings[rater] = _checked(said["ratings"], key, rater, path)
    if not ratings:
        raise DataError("no ratings were given; give the files that the raters exported")
    return ratings


def _checked(rows: list[Any], key: Mapping[str, Any], rater: str, path: str | Path) -> dict[str, list[int]]:
    criteria, known = KINDS[key["kind"]], {trial["trial"] for trial in key["raters"][rater]}
    given: dict[str, list[int]] = {}
    for row in rows:
        right = isinstance(row, list) and len(row) == 2 and row[0] in known and row[0] not in given and isinstance(
            row[1], list) and len(row[1]) == len(criteria) and all(
            isinstance(value, int) and one.low <= value <= one.high for one, value in zip(criteria, row[1]))
        if not right:
            raise DataError(f"{path}: {json.dumps(row)[:80]} is no rating of this kit; export it again")
        given[row[0]] = row[1]
    if len(given) < len(known):
        log.warning("%s: rater %s left %d of %d unrated", path, rater, len(known) - len(given), len(known))
    return given


def human_figures(key: Mapping[str, Any], ratings: Ratings) -> dict[str, float | None]:
    """Flat figures: ``<system>.<criterion>.mean``, ``.low`` and ``.high`` (bootstrap over items, 95 %),
    ``alpha.<criterion>`` over all systems' items, ``repeats.<criterion>.equal`` and ``.within_one``, ``gold.<rater>``.

    Repeats and known answers are in no mean. None stands where there is no value, and a warning says why. Raises
    DataError where no item was rated.
    """
    raters, figures = sorted(ratings), {}
    columns = [number for number, one in enumerate(key["items"]) if one["system"]]
    systems = sorted({key["items"][number]["system"] for number in columns})
    for place, criterion in enumerate(KINDS[key["kind"]]):
        table = np.full([len(raters), len(key["items"])], np.nan)
        for row, rater in enumerate(raters):
            for trial in key["raters"][rater]:
                if trial["role"] == "plain" and trial["trial"] in ratings[rater]:
                    table[row, trial["number"]] = ratings[rater][trial["trial"]][place]
        rated = [number for number in columns if not np.isnan(table[:, number]).all()]
        for system in systems:
            own = table[:, [number for number in rated if key["items"][number]["system"] == system]]
            if not own.size:
                raise DataError(f"nobody rated an item of {system}; there is nothing to report yet")
            found = bootstrap(mean_rating, own, key["seed"])
            name = f"{system}.{criterion.name}"
            figures |= {f"{name}.mean": found.value, f"{name}.low": found.low, f"{name}.high": found.high}
        figures[f"alpha.{criterion.name}"] = _alpha(table[:, rated], criterion.name)
        figures |= _repeats(key, ratings, place, criterion.name)
    return figures | _gold(key, ratings)


def _alpha(table: np.ndarray, name: str) -> float | None:
    try:
        return ordinal_alpha(table)
    except DataError as error:
        log.warning("α of %s has no value: %s", name, error)
        return None


def _repeats(key: Mapping[str, Any], ratings: Ratings, place: int, name: str) -> dict[str, float | None]:
    pairs = [(given[trial["of"]][place], given[trial["trial"]][place]) for rater, given in ratings.items()
             for trial in key["raters"][rater]
             if trial["role"] == "repeat" and trial["trial"] in given and trial["of"] in given]
    if not pairs:
        log.warning("nobody has rated a repeat yet, so that their agreement on %s has no value", name)
        return {f"repeats.{name}.equal": None, f"repeats.{name}.within_one": None}
    found = repeats_agreement(*np.array(pairs).T)
    return {f"repeats.{name}.equal": found.equal, f"repeats.{name}.within_one": found.within_one}


def _gold(key: Mapping[str, Any], ratings: Ratings) -> dict[str, float | None]:
    names, shares = [one.name for one in KINDS[key["kind"]]], {}
    for rater, given in sorted(ratings.items()):
        right = [low <= given[trial["trial"]][names.index(name)] <= high for trial in key["raters"][rater]
                 if trial["role"] == "gold" and trial["trial"] in given for name, (low, high) in trial["gold"].items()]
        shares[f"gold.{rater}"] = float(np.mean(right)) if right else None
        if right and np.mean(right) < CAREFUL:
            log.warning("rater %s has %d of %d known answers right; look at the ratings before you use them", rater,
                        sum(right), len(right))
    return shares


def signed_scores(key: Mapping[str, Any], ratings: Ratings) -> Iterator[Score]:
    """:func:`human_figures` with their signature: which kit, how many items and raters, and the seed."""
    items = len({one["item"] for one in key["items"] if one["system"]})
    signature = (f"people: {key['kind']}; kit {key['fingerprint'][:12]}, seed {key['seed']}; {items} items, "
                 f"{len(ratings)} raters; bootstrap over items, 95 %")
    for name, value in human_figures(key, ratings).items():
        yield Score(name, value, signature)
