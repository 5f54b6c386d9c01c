"""Rows of tab-separated tables: quoted as csv, pandas and Excel write them or not, with a header or without."""
import re
from dataclasses import dataclass

from vilg.data.caption_records import IMAGE_KEYS, TEXT_KEYS, visible
from vilg.data.sample import BrokenSample

LONGEST_ROW = 1 << 20  # characters
IMAGE_COLUMNS = frozenset({*IMAGE_KEYS, "filename", "filepath", "file", "image_path", "img", "path"})
CAPTION_COLUMNS = frozenset({*TEXT_KEYS, "title", "description"})
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|\Z)')


@dataclass
class Columns:
    """Which columns of a row hold what; ``captions`` None: all but the image's."""

    image: int = 0
    captions: list[int] | None = None

    def of(self, fields: list[str]) -> tuple[str, list[str]]:
        """The image's name and the captions of a row, blank ones left out."""
        chosen = self.captions
        if chosen is None:
            chosen = [number for number in range(len(fields)) if number != self.image]
        texts = [fields[number] for number in chosen if number < len(fields)]
        return fields[self.image].strip() if self.image < len(fields) else "", visible(texts)


def split_row(line: str, place: str) -> list[str]:
    """The fields of a row. A field in quotation marks may hold tabs, and doubled marks for single ones; marks elsewhere
    are text. Raises BrokenSample naming ``place`` for a field that begins with a mark and has no end."""
    if len(line) > LONGEST_ROW:
        raise BrokenSample(place, f"a row of {len(line)} characters is none of captions", "a row too long")
    if '"' not in line:
        return line.split("\t")
    fields, start = [], 0
    while start <= len(line):
        quoted = _QUOTED.match(line, start)
        if quoted:
            fields.append(quoted[1].replace('""', '"'))
            start = quoted.end() + 1
            continue
        end = line.find("\t", start)
        field = line[start:end if end >= 0 else len(line)]
        if field.startswith('"') and field.count('"') % 2:
            raise BrokenSample(place, "a quotation mark opens a field and none closes it in this line; write captions "
                                      "in one line each", "an open quotation mark")
        fields.append(field)
        start += len(field) + 1
    return fields


def read_header(line: str) -> Columns | None:
    """The columns that a table's first line names, None where it is a row like any other."""
    try:
        names = [name.strip().lower() for name in split_row(line, "line 1")]
    except BrokenSample:
        return None
    images = [number for number, name in enumerate(names) if name in IMAGE_COLUMNS]
    if not images:
        return None
    captions = [number for number, name in enumerate(names) if name in CAPTION_COLUMNS]
    return Columns(images[0], captions or None)
