"""A part's rows, one by one: the bytes of an image as they are stored, and what is said of it."""
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vilg.data.building.parts import Part
from vilg.data.caption_records import Record, parse_record, readable
from vilg.data.images import IMAGE_SUFFIXES, suffix_of
from vilg.data.sample import BrokenSample
from vilg.data.sources.folder import texts_beside
from vilg.data.sources.members import TEXT_SUFFIXES, Member, contents_of, said_in, scan
from vilg.data.sources.table import parse_row
from vilg.data.tsv import Columns, read_header
from vilg.errors import DataError

IMAGE_COLUMNS = ("image", "picture", *(suffix[1:] for suffix in IMAGE_SUFFIXES), "file_name")
KEY_COLUMNS = ("key", "__key__", "id")
PARQUET_ROWS = 256
"""Rows of a parquet file that are held at once."""


@dataclass
class Row:
    """A raw sample: ``name`` says where it came from and is nobody else's, ``own`` what its data set calls it.

    ``problem`` says why it cannot be used; ``image`` is None where there is none to read.
    """

    name: str
    own: str
    image: bytes | None = None
    suffix: str = ""
    said: Record | None = None
    problem: str | None = None

    @property
    def key(self) -> str:
        """What the sample is called in the shards, 20 digits: a hash of its name, so that it hangs on nothing else."""
        return hashlib.blake2b(self.name.encode(), digest_size=10).hexdigest()


class Unreadable(DataError):
    """A part from which nothing, or nothing more, can be read."""


class Rows:
    """The rows of a part. ``problem`` says, once they were read, what of the part could not be. Raises Unreadable."""

    def __init__(self, part: Part, images: bool):
        self.part, self.images = part, images
        self.problem: str | None = None

    def __iter__(self) -> Iterator[Row]:
        readers = {"tar": self._of_tar, "parquet": self._of_parquet, "table": self._of_table, "folder": self._of_folder}
        return readers[self.part.kind]()

    def _of_tar(self) -> Iterator[Row]:
        path = Path(self.part.path)
        try:
            index = scan(path)
        except DataError as error:  # it is compressed
            raise Unreadable(str(error)) from None
        self.problem = index.problem
        if index.problem and not index.members:
            raise Unreadable(f"{path}: is {index.problem}")
        for member in index.members:
            row = Row(f"{self.part.name}/{readable(member.key)}", readable(member.key))
            try:
                self._fill(row, path, member)
            except BrokenSample as broken:
                row.problem = broken.reason
            yield row

    def _fill(self, row: Row, path: Path, member: Member) -> None:
        if member.problem:
            raise BrokenSample(row.name, member.problem)
        if self.images and not member.images:
            raise BrokenSample(row.name, "no image")
        chosen = member.images[:1] if self.images else []
        found = contents_of(path, member, [*chosen, *TEXT_SUFFIXES, "json"], row.name)
        row.image, row.suffix = (found[chosen[0]], chosen[0]) if chosen else (None, "")
        row.said = said_in(found, row.name, True)

    def _of_parquet(self) -> Iterator[Row]:
        from pyarrow import parquet

        base, path = self.part.name.rpartition("@")[0], Path(self.part.path)
        try:
            file = parquet.ParquetFile(path)
            groups = range(*self.part.place)
            number = sum(file.metadata.row_group(group).num_rows for group in range(self.part.place[0]))
            for batch in file.iter_batches(PARQUET_ROWS, row_groups=list(groups)):
                for values in batch.to_pylist():
                    yield self._of_values(f"{base}/{number}", path, values)
                    number += 1
        except (OSError, ValueError) as error:
            raise Unreadable(f"{path}: is no parquet file that can be read ({str(error)[:200]})") from None

    def _of_values(self, name: str, path: Path, values: dict[str, Any]) -> Row:
        own = next((str(values[column]) for column in KEY_COLUMNS if values.get(column) is not None), name)
        row = Row(name, own)
        try:
            column = next((column for column in IMAGE_COLUMNS if values.get(column) is not None), None)
            image = values.pop(column) if column else None
            if isinstance(image, dict):  # Hugging Face's: {"bytes": …, "path": …}
                image = image.get("bytes") or image.get("path")
            if self.images:
                row.image, row.suffix = self._image(name, path.parent, image)
            plain = {key: value for key, value in values.items() if not isinstance(value, (bytes, dict))}
            row.said = parse_record(json.dumps(plain, default=str), name, ())
        except BrokenSample as broken:
            row.problem = broken.reason
        return row

    def _image(self, name: str, root: Path, image: Any) -> tuple[bytes, str]:
        """The bytes of an image that is given as these or by its path, and its suffix. Raises BrokenSample."""
        if isinstance(image, str):
            return _read(root / image, name), Path(image).suffix[1:].lower()
        if not isinstance(image, bytes):
            raise BrokenSample(name, f"no image (looked for under {', '.join(IMAGE_COLUMNS[:4])} and other suffixes)")
        return image, suffix_of(image)

    def _of_table(self) -> Iterator[Row]:
        base, path = self.part.name.rpartition("@")[0], Path(self.part.path)
        start, end = self.part.place
        kind = path.suffix.lower()
        try:
            with open(path, "rb") as file:
                first = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n")
                header = read_header(first) if kind == ".tsv" else None
                if start:
                    file.seek(start - 1)
                    file.readline()  # a row belongs to the part in which it begins
                elif header is None:
                    file.seek(0)
                while (place := file.tell()) < end and (line := file.readline()):
                    if line.strip():
                        yield self._of_line(line, place, f"{base}@{place}", path, header or Columns())
        except OSError as error:
            raise Unreadable(f"{path}: cannot be read ({error.strerror or error})") from None

    def _of_line(self, line: bytes, place: int, name: str, path: Path, columns: Columns) -> Row:
        row = Row(name, name)
        try:
            text = line.decode("utf-8-sig" if place == 0 else "utf-8").rstrip("\r\n")
            if self.images or path.suffix.lower() == ".tsv":
                row.said = parse_row(text, name, path.suffix.lower(), columns)
                row.own = row.said.name
            else:
                row.said = parse_record(text, name)
            if self.images:
                row.image, row.suffix = self._image(name, path.parent, row.said.name)
        except UnicodeDecodeError:
            row.problem = "its text is not UTF-8"
        except BrokenSample as broken:
            row.problem = broken.reason
        return row

    def _of_folder(self) -> Iterator[Row]:
        base, root = self.part.name.rpartition("@")[0], Path(self.part.path)
        for image in self.part.images:
            row = Row(f"{base}/{readable(image)}", readable(image), suffix=Path(image).suffix[1:].lower())
            try:
                row.said = Record("", _beside(root / image, self.part.suffixes), [], {})
                row.image = _read(root / image, row.name) if self.images else None
            except BrokenSample as broken:
                row.problem = broken.reason
            yield row


def batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of ``size``, the last one shorter."""
    for first in rows:
        yield [first, *islice(rows, size - 1)]


def _beside(image: Path, suffixes: list[str]) -> list[str]:
    try:
        return texts_beside(image, suffixes)
    except BrokenSample as broken:
        if broken.kind == "no caption file":  # a log of clicks may have some
            return []
        raise


def _read(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():
            raise BrokenSample(name, "the image is missing")
        return path.read_bytes()
    except OSError as error:
        raise BrokenSample(name, f"the image cannot be read ({error.strerror or error})") from None
