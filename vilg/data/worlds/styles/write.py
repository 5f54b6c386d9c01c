"""The world of styles as a folder like users' own: pictures by style, and a table for each split."""
import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image

from vilg.config import to_dict
from vilg.data.worlds.emoji import code_points
from vilg.data.worlds.styles.packages import STYLES
from vilg.data.worlds.styles.splits import SPLITS, SplitConfig
from vilg.data.worlds.styles.world import World
from vilg.errors import ConfigError, DataError
from vilg.progress import progress

SMALLEST, LARGEST = 8, 1024  # pixels a side
ABOUT = "world.json"
LICENCES = "LICENCES.md"
TABLES = {name: f"{name}.jsonl" for name in SPLITS}
OURS = {ABOUT, LICENCES, *TABLES.values(), *STYLES}


def check_output(folder: str | Path, size: int) -> None:
    """Refuse, before the work, a size that cannot be and a folder that holds anything but an earlier world of styles,
    which :func:`write` replaces.

    Raises ConfigError for the size, DataError naming a file that is not ours.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"size: pictures are {SMALLEST} to {LARGEST} pixels a side, not {size}")
    folder = Path(folder)
    for place in (folder, _part(folder)):
        if not os.path.lexists(place):
            continue
        if not place.is_dir():
            raise DataError(f"{place}: is a file; name another folder with --output")
        names = {path.name for path in place.iterdir()}
        strangers = names - OURS or (names if place == folder and ABOUT not in names else set())
        if strangers:
            raise DataError(f"{place}: holds other data already, such as {min(strangers)}; "
                            "name another folder with --output")


def write(world: World, folder: str | Path, size: int, config: SplitConfig) -> dict:
    """Write ``<style>/<code points>.png``, ``<split>.jsonl``, ``LICENCES.md`` and ``world.json``; returns what the last
    says.

    The folder appears under its name when it is whole, in place of an earlier one. Raises what :func:`check_output`
    does, and DataError when it cannot be written.
    """
    folder = Path(folder)
    check_output(folder, size)
    about = describe(world, size, config)
    try:
        _write_part(world, _part(folder), size, about)
        if folder.is_dir():
            shutil.rmtree(folder)
        _part(folder).rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return about


def _part(folder: Path) -> Path:
    """Where a folder grows until it is whole."""
    return folder.with_name(folder.name + ".part")


def _write_part(world: World, part: Path, size: int, about: dict) -> None:
    if part.exists():
        shutil.rmtree(part)  # of a run that was stopped
    part.mkdir(parents=True)
    for key in world.versions:
        (part / key).mkdir()
    for one in progress(world.images, desc="writing", unit="picture"):
        image = one.render(size)
        if image is None:
            raise DataError(f"{part / one.file}: shows nothing at {size} pixels a side; give another --size")
        Image.fromarray(image).save(part / one.file)
    for split, lines in _tables(world).items():
        (part / TABLES[split]).write_text("".join(lines), encoding="utf-8")
    (part / LICENCES).write_text(_licences(world), encoding="utf-8")
    (part / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def describe(world: World, size: int, config: SplitConfig) -> dict:
    """The world in figures: settings, styles, counts by split and style, likeness of styles, what was left out."""
    drawn = Counter(one.style.key for one in world.images)
    groups = Counter(world.splits.groups[text] for text in {one.concept.text for one in world.images})
    return {
        "kind": "styles", "size": size, **to_dict(config), "images": len(world.images),
        "concepts": sum(groups.values()), "groups": len(groups), "largest_group": max(groups.values()),
        "splits": {name: world.counts().get(name, 0) for name in SPLITS},
        "styles": {key: {"description": STYLES[key].description, "family": world.splits.families[key],
                         "images": drawn[key], "package": STYLES[key].package, "version": version,
                         **world.licences[key]} for key, version in world.versions.items()},
        "style_likeness": [[*pair, round(value, 3)] for pair, value in
                           sorted(world.splits.likeness.items(), key=lambda item: (-round(item[1], 3), item[0]))],
        "left_out": world.left_out,
    }


def _tables(world: World) -> dict[str, list[str]]:
    """Lines of JSON by split, without splits that no picture is in."""
    tables: dict[str, list[str]] = defaultdict(list)
    for one, split in zip(world.images, world.splits.splits):
        record = {
            "picture": one.file, "captions": one.captions, "questions": one.questions, "concept": one.concept.key,
            "name": one.concept.name, "tags": one.concept.tags, "style": one.style.key,
            "style_name": one.style.description, "family": world.splits.families[one.style.key],
            "group": code_points(world.splits.groups[one.concept.text]), "split": split,
        }
        tables[split].append(json.dumps(record, ensure_ascii=False) + "\n")
    return tables


def _licences(world: World) -> str:
    lines = ["# Whose pictures these are", "",
             "The art of every style belongs to its author and is used under its licence. The names and key words are "
             "those of CLDR, under the Unicode licence v3 (<https://www.unicode.org/license.txt>).", "",
             "| folder | art by | source | licence | package |", "|---|---|---|---|---|"]
    for key, version in world.versions.items():
        about = world.licences[key]
        lines.append(f"| {key} | {about['author']} | <{about['source']}> "
                     f"| [{about['licence']}]({about['licence_url']}) | {STYLES[key].package} {version} |")
    return "\n".join([*lines, "", "All were drawn from SVG on white and padded to squares; nothing else was changed.",
                      ""])
