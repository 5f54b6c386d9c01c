"""Captions alone, without their images: what a vocabulary is counted from."""
import logging
from collections.abc import Iterator
from pathlib import Path

from vilg.data.caption_records import parse_record, visible
from vilg.data.folders import walk_files
from vilg.data.sample import BrokenSample
from vilg.data.tsv import Columns, read_header, split_row
from vilg.errors import DataError
from vilg.tokenizers.text.characters import is_blank

logger = logging.getLogger(__name__)
SUFFIXES = (".txt", ".tsv", ".jsonl")


def read_captions(path: str | Path) -> Iterator[str]:
    """Every caption, question and answer of a ``.txt`` (one a line), ``.tsv`` or ``.jsonl`` file, or a folder of them.

    A folder's files are read in the order of their names; lines that hold no caption are counted and reported. Raises
    DataError for a path that is not there, another kind of file, a folder without texts, and a file that is not UTF-8.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in walk_files(path) if file.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{path}: holds no {', '.join(SUFFIXES)} file to read captions from")
        for file in files:
            yield from read_captions(file)
        return
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder of captions")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: captions are read from {', '.join(SUFFIXES)} files and folders of them")
    try:
        yield from _lines(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason}); convert it first") from None


def _lines(path: Path) -> Iterator[str]:
    broken: list[str] = []
    suffix, columns = path.suffix.lower(), Columns()
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\n")
            header = read_header(line) if number == 1 and suffix == ".tsv" else None
            columns = header or columns
            if header or is_blank(line):
                continue
            try:
                yield from _texts(line, suffix, f"line {number}", columns)
            except BrokenSample as problem:
                broken.append(str(problem))
    if broken:
        logger.warning("%s: left out %d lines, the first: %s", path, len(broken), broken[0])


def _texts(line: str, suffix: str, place: str, columns: Columns) -> list[str]:
    if suffix == ".txt":
        return visible([line])
    if suffix == ".tsv":
        _, captions = columns.of(split_row(line, place))
        if not captions:
            raise BrokenSample(place, "a row is an image's path, a tab and a caption")
        return captions
    record = parse_record(line, place)
    return [*record.captions, *(text for pair in record.questions for text in pair)]
