"""Tables of images and captions: TSV and JSON lines."""
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from vilg.config import configclass
from vilg.data.broken import FIRST, counted, refuse_wholly_wrong
from vilg.data.caption_records import IMAGE_KEYS, TEXT_KEYS, Record, parse_record, readable
from vilg.data.images import read_image
from vilg.data.line_index import Lines
from vilg.data.sample import BrokenSample, Reading, Sample
from vilg.data.tsv import LONGEST_ROW, Columns, read_header, split_row
from vilg.data.twins import TWIN, Twin, TwinIndex
from vilg.errors import DataError

logger = logging.getLogger(__name__)


@configclass
class TableConfig:
    """A ``.tsv`` or ``.jsonl`` file of images and captions;
    image paths are relative to ``pictures`` or the table's folder.

    TSV: image path, then one caption a column, or as a header says. JSON lines: ``{"picture": …, "captions": […],
    "questions": [[q, a], …]}``, or ``"caption"`` for a single one; ``questions`` may be left out. Other keys become
    facts. ``first_caption_only`` as for a folder. ``twins`` names a key whose value rows of the same thing
    share, such as ``concept``: each then has the others as :class:`~vilg.data.twins.Twin` among its facts.
    """

    kind: Literal["table"] = "table"
    path: str
    pictures: str | None = None
    first_caption_only: bool = False
    twins: str | None = None
    repeat: int = 1


class TableSource:
    """Rows of a TSV or JSONL table; see :class:`TableConfig`. Raises DataError when the table cannot be read at all,
    and when none of its first rows can be used."""

    def __init__(self, config: TableConfig, reading: Reading = Reading()):
        self.reading = reading
        self.path = Path(config.path).expanduser()
        self.root = Path(config.pictures).expanduser() if config.pictures else self.path.parent
        self.taken = slice(1 if config.first_caption_only else None)
        self.kind = self.path.suffix.lower()
        if self.kind not in (".tsv", ".jsonl"):
            raise DataError(f"{self.path}: a table is a .tsv or a .jsonl file")
        try:
            self.rows = Lines(self.path, blank=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be read as a UTF-8 table ({error})") from None
        self.columns, self._first = self._read_header()
        if not len(self):
            raise DataError(f"{self.path}: the table is empty")
        refuse_wholly_wrong(str(self.path), range(len(self)), self._check, self._found)
        self.twins = None if config.twins is None else TwinIndex(self._values(config.twins))

    def __len__(self) -> int:
        return len(self.rows) - self._first

    def __getitem__(self, index: int) -> Sample:
        record, shown = self.record(index)
        facts = record.facts
        if self.twins is not None and self.twins.count(index):
            facts = facts | {TWIN: Twin(self, self.twins, index)}
        return Sample(record.name, read_image(self.root / record.name, shown, self.reading),
                      record.captions[self.taken], record.questions, facts=facts)

    def _read_header(self) -> tuple[Columns, int]:
        """The columns of the rows, and the number of the first one."""
        columns = read_header(self.rows[0]) if self.kind == ".tsv" and len(self.rows) else None
        if columns is None:
            return Columns(), 0
        logger.info("%s: line 1 is read as a header", self.path)
        return columns, 1

    def record(self, index: int) -> tuple[Record, str]:
        """What row ``index`` says, without its image, and where it stands, as messages say it. Raises BrokenSample."""
        number, line = self.rows.numbered(self._first + index)
        place = f"{readable(self.path)} line {number}"
        record = parse_row(line, place, self.kind, self.columns)
        shown = f"{place} ({record.name})"
        if self.reading.texts and not record.captions:
            raise BrokenSample(shown, "no caption")
        return record, shown

    def _check(self, index: int) -> None:
        record, shown = self.record(index)
        if not os.path.isfile(self.root / record.name):
            raise BrokenSample(shown, "the image is missing")

    def _found(self) -> str:
        """What the first rows hold, and what is wanted of them."""
        lines = [self.rows[number] for number in range(min(len(self.rows), FIRST))]
        looked = f"images are looked for in {self.root} (`pictures` names another folder)"
        if self.kind == ".tsv":
            columns = counted(Counter(f"{line.count(chr(9)) + 1} columns" for line in lines))
            return f"a row is an image's path, a tab and a caption, these have {columns}; {looked}"
        keys: Counter[str] = Counter()
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            keys.update(map(repr, record) if isinstance(record, dict) else ["no record"])
        return (f"the keys found are {counted(keys)}, those wanted {', '.join(IMAGE_KEYS)} for the image's path and "
                f"{', '.join(TEXT_KEYS)} for captions; {looked}")

    def _values(self, key: str) -> list[Any]:
        """What every row says under ``key``, None where it is broken. Raises DataError when none says anything."""
        values: list[Any] = []
        for index in range(len(self)):
            try:
                values.append(self.record(index)[0].facts.get(key))
            except BrokenSample:
                values.append(None)
        if all(value is None for value in values):
            raise DataError(f"{self.path}: no row has the key {key}, which data.sources.twins names; take a key that "
                            "rows of the same thing share, or leave twins out")
        return values


def parse_row(line: str, place: str, kind: str, columns: Columns) -> Record:
    """A row of a table of ``kind`` (.tsv or .jsonl) that names an image. Raises BrokenSample naming ``place``."""
    if kind == ".tsv":
        record = Record(*columns.of(split_row(line, place)), [], {})
    elif len(line) > LONGEST_ROW:
        raise BrokenSample(place, f"a record of {len(line)} characters is none of captions", "a record too long")
    else:
        record = parse_record(line, place)
    if not record.name:
        raise BrokenSample(place, "names no image")
    return record
