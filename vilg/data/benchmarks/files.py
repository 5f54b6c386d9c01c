"""What the benchmarks' loaders share: files that are read whole or refused with their name, sets of captioned images,
and predictions that anybody wrote."""
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilg.errors import DataError


@dataclass(frozen=True)
class CaptionedImages:
    """A split of a captioning benchmark: ``paths`` and ``references`` by the image's key, in the split's order.

    ``name`` says which set and split, ``comes_cut`` whether references have spaces between words, and ``key`` makes the
    key of any way to write an image down. The images themselves need not be there until they are described.
    """

    name: str
    paths: dict[str, Path]
    references: dict[str, list[str]]
    comes_cut: bool
    key: Callable[[Any], str]


def read_text(path: str | Path) -> str:
    """A UTF-8 file. Raises DataError naming it when it is missing or is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; convert it first") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name the file or folder that holds it") from None


def read_json(path: str | Path) -> Any:
    """A JSON file. Raises DataError naming it when it is missing, cut short or no JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not a whole JSON file ({error}); fetch or write it again") from None


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a file of one JSON object a line, each with "file: line n". Raises DataError naming the line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{place} is not a JSON object; write one object a line")
        yield place, record


def only_match(root: Path, pattern: str, what: str) -> Path:
    """The one file or folder under ``root`` that fits ``pattern``, there or one folder down. Raises DataError."""
    found = sorted({*root.glob(pattern), *root.glob(f"*/{pattern}")})
    if len(found) != 1:
        listed = f"{len(found)}: {', '.join(map(str, found[:3]))}" if found else "none"
        raise DataError(f"{root}: {what} is {pattern}, in that folder or one below, and there is {listed}; unpack the "
                        "data set there, once")
    return found[0]


def field(record: dict[str, Any], name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """``record[name]``. Raises DataError naming the place when it is missing, blank or of another kind."""
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, str) and not value.strip()):
        wanted = " or ".join({str: "text", int: "a whole number", list: "a list"}[one]
                             for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{place}: {name} is {wanted}, and here it is {json.dumps(value, ensure_ascii=False)}"[:300])
    return value


def read_predictions(path: str | Path, key: Callable[[Any], str]) -> list[tuple[str, str]]:
    """Pairs of an image's key and its caption from anybody's file: a JSON list of {"image_id", "caption"}, as COCO and
    AI Challenger take it, the same one a line (.jsonl), or lines of an id, a tab and a caption (.txt, .tsv).

    Images that come twice stay twice, for the scorer to refuse. Raises DataError naming the record.
    """
    path = Path(path)
    if path.suffix.lower() in (".txt", ".tsv"):
        return [(keyed(key, name, path), caption) for name, caption in read_pairs(path)]
    if path.suffix.lower() == ".jsonl":
        records = list(read_jsonl(path))
    else:
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
            raise DataError(f'{path}: predictions are a list of {{"image_id": …, "caption": "…"}}')
        records = [(f"{path}: record {number}", one) for number, one in enumerate(content, 1)]
    pairs = []
    for place, record in records:
        caption = record.get("caption")
        if not isinstance(caption, str):  # an empty one is a caption, which scores 0 and is counted
            raise DataError(f"{place}: caption is text, and here it is {json.dumps(caption)}"[:300])
        pairs.append((keyed(key, field(record, "image_id", (str, int), place), place), caption))
    return pairs


def keyed(key: Callable[[Any], str], image_id: Any, place: str | Path) -> str:
    """``key(image_id)``, whose DataError also names the place where it stands."""
    try:
        return key(image_id)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Lines of a name, a tab and a text. Raises DataError naming a line without a tab."""
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        name, tab, text = line.rstrip("\r").partition("\t")
        if not tab and line.strip():
            raise DataError(f"{path}: line {number} has no tab; a line is an id, a tab and a text")
        if tab:
            pairs.append((name.strip(), text.strip()))
    return pairs


def digest_of(path: str | Path) -> str:
    """Twelve hexadecimal digits of a file's SHA-256, for signatures. Raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
