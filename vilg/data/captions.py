"""Captions alone, without their pictures: what a vocabulary is counted from."""
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vilg.errors import DataError

# Keys of a JSON line that name the picture instead of saying something about it.
NOT_TEXT = {"path", "image", "picture", "file", "file_name", "key", "id", "url"}


def read_captions(path: str | Path) -> Iterator[str]:
    """Every caption, question and answer of a ``.txt`` (one a line), ``.tsv`` or ``.jsonl`` file, or a folder of them.

    A folder's files are read in the order of their names. Raises DataError for a path that is not there, another kind
    of file, a folder without texts, and a file that is not UTF-8 or not JSON lines.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _READERS)
        if not files:
            raise DataError(f"{path}: holds no .txt, .tsv or .jsonl file to read captions from")
        for file in files:
            yield from read_captions(file)
        return
    reader = _READERS.get(path.suffix)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder of captions")
    if reader is None:
        raise DataError(f"{path}: captions are read from {', '.join(_READERS)} files and folders of them")
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from reader(line.rstrip("\n"), f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason}); convert it first") from None


def _plain(line: str, place: str) -> Iterator[str]:
    del place  # a line of text cannot be wrong
    yield line


def _table(line: str, place: str) -> Iterator[str]:
    cells = line.split("\t")
    if len(cells) < 2:
        raise DataError(f"{place}: a row is a path, a tab and a caption")
    if cells[0] not in NOT_TEXT:  # else the row names the columns
        yield from cells[1:]


def _json(line: str, place: str) -> Iterator[str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: is not JSON ({error})") from None
    yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child)
    elif isinstance(value, dict):
        for key, child in value.items():
            if key not in NOT_TEXT:
                yield from _strings(child)


_READERS = {".txt": _plain, ".tsv": _table, ".jsonl": _json}
