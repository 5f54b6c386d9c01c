"""Tables of images and captions: TSV and JSON lines."""
from pathlib import Path
from typing import Any, Literal

from vilg.config import configclass
from vilg.data.caption_records import Record, parse_record, readable, visible
from vilg.data.images import read_image
from vilg.data.line_index import Lines
from vilg.data.sample import BrokenSample, Reading, Sample
from vilg.data.twins import TWIN, Twin, TwinIndex
from vilg.errors import DataError


@configclass
class TableConfig:
    """A ``.tsv`` or ``.jsonl`` file of images and captions;
    image paths are relative to ``pictures`` or the table's folder.

    TSV: image path, then one caption a column. JSON lines: ``{"picture": …, "captions": […], "questions": [[q, a],
    …]}``, or ``"caption"`` for a single one; ``questions`` may be left out. ``first_caption_only`` as for a folder.
    ``twins`` names a key whose value rows of the same thing share, such as ``concept``: each then has the others as
    :class:`~vilg.data.twins.Twin` among its facts.
    """

    kind: Literal["table"] = "table"
    path: str
    pictures: str | None = None
    first_caption_only: bool = False
    twins: str | None = None
    repeat: int = 1


class TableSource:
    """Rows of a TSV or JSONL table; see :class:`TableConfig`. Raises DataError when the table cannot be read at all."""

    def __init__(self, config: TableConfig, reading: Reading = Reading()):
        self.reading = reading
        self.path = Path(config.path)
        self.root = Path(config.pictures) if config.pictures else self.path.parent
        self.taken = slice(1 if config.first_caption_only else None)
        if self.path.suffix not in (".tsv", ".jsonl"):
            raise DataError(f"{self.path}: a table is a .tsv or a .jsonl file")
        try:
            self.rows = Lines(self.path, blank=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be read as a UTF-8 table ({error})") from None
        if not len(self.rows):
            raise DataError(f"{self.path}: the table is empty")
        self.twins = None if config.twins is None else TwinIndex(self._values(config.twins))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        place, record = self.record(index)
        shown = f"{place} ({record.name})"
        if self.reading.texts and not record.captions:
            raise BrokenSample(shown, "no caption")
        facts = record.facts
        if self.twins is not None and self.twins.count(index):
            facts = facts | {TWIN: Twin(self, self.twins, index)}
        return Sample(record.name, read_image(self.root / record.name, shown, self.reading),
                      record.captions[self.taken], record.questions, facts=facts)

    def record(self, index: int) -> tuple[str, Record]:
        """Where row ``index`` stands, as messages say it, and what it says, without its image. Raises BrokenSample when
        it names none."""
        number, line = self.rows.numbered(index)
        place = f"{readable(self.path)} line {number}"
        if self.path.suffix == ".tsv":
            name, *texts = line.split("\t")
            record = Record(name, visible(texts), [], {})
        else:
            record = parse_record(line, place)
        if not record.name:
            raise BrokenSample(place, "names no image")
        return place, record

    def _values(self, key: str) -> list[Any]:
        """What every row says under ``key``, None where it is broken. Raises DataError when none says anything."""
        values: list[Any] = []
        for index in range(len(self.rows)):
            try:
                values.append(self.record(index)[1].facts.get(key))
            except BrokenSample:
                values.append(None)
        if all(value is None for value in values):
            raise DataError(f"{self.path}: no row has the key {key}, which data.sources.twins names; take a key that "
                            "rows of the same thing share, or leave twins out")
        return values
