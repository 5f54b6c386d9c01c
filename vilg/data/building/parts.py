"""The parts of the inputs, the unit of work: a tar, a piece of a parquet file, of a table, of a folder."""
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vilg.data.broken import counted
from vilg.data.folders import walk_files
from vilg.data.images import is_image_name
from vilg.data.sources.folder import CAPTION_SUFFIXES
from vilg.errors import DataError

TABLES = (".tsv", ".jsonl")
ROW_BYTES = 200
"""Of a table, taken for one row when a table is cut into parts."""
ENDS = 1 << 14
"""Bytes at either end of a file that go into its fingerprint, with its name and size."""


@dataclass
class Part:
    """Rows of an input that are read, and lost, together. ``name`` tells it apart wherever the inputs lie; ``place``
    says which piece of the file ``path`` it is: bytes of a table, groups of rows of a parquet file, a folder's images.
    """

    number: int
    kind: str
    name: str
    path: str
    place: list[int] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    suffixes: list[str] = field(default_factory=list)

    def dump(self) -> str:
        """As a line of JSON that :meth:`load` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def load(cls, line: str) -> "Part":
        """A part by its line."""
        return cls(**json.loads(line))


def find_parts(inputs: list[str], part_rows: int) -> Iterator[Part]:
    """The parts of inputs: each a .tar, .parquet, .tsv or .jsonl file, a folder of those, or one of images; NAME=PATH
    gives one a name, which is its own otherwise. Sorted, so that the same inputs give the same parts.

    Raises DataError for an input that is not there or holds nothing that is read, and for two of one name.
    """
    names: dict[str, str] = {}
    number = 0
    for given in inputs:
        name, path = _named(given)
        if name in names:
            raise DataError(f"{given}: the input {names[name]} is called {name} too, and keys are made of the names; "
                            f"give one another, as in --input other={path}")
        names[name] = given
        for part in _parts_of(name, path, part_rows):
            part.number, number = number, number + 1
            yield part


def fingerprint(parts: Path, settings: bytes) -> str:
    """The fingerprint of a build: its parts, by the lines of the file that holds them and by name, size and both ends
    of each of their files, and its settings."""
    digest = hashlib.blake2b(settings, digest_size=16)
    last = None
    with open(parts, encoding="utf-8") as lines:
        for line in lines:
            part = Part.load(line)
            digest.update(repr((part.kind, part.name, part.place, part.images, part.suffixes)).encode())
            if part.path != last and part.kind != "folder":
                digest.update(_ends(Path(part.path)))
            last = part.path
    return digest.hexdigest()


def _named(given: str) -> tuple[str, Path]:
    name, separator, rest = given.partition("=")
    plain = not separator or "/" in name or os.path.exists(os.path.expanduser(given))
    path = Path(given if plain else rest).expanduser()
    if not path.exists():
        raise DataError(f"{given}: there is no such file or folder; name an input with --input")
    return (path.resolve().name if plain else name), path


def _parts_of(name: str, path: Path, part_rows: int) -> Iterator[Part]:
    if path.is_file():
        yield from _of_file(name, path, part_rows)
        return
    files = sorted(walk_files(path))
    shards = [file for file in files if file.suffix.lower() == ".tar"]
    # Beside its tars img2dataset lays a parquet file of the same rows without images.
    found = shards or [file for file in files if file.suffix.lower() == ".parquet"]
    if found:
        for file in found:
            yield from _of_file(f"{name}/{file.relative_to(path).as_posix()}", file, part_rows)
        return
    images = [file for file in files if is_image_name(file.name)]
    tables = [file for file in files if file.suffix.lower() in TABLES]
    if images and not tables:
        yield from _of_folder(name, path, images, files, part_rows)
    elif tables:
        for file in tables:
            yield from _of_file(f"{name}/{file.relative_to(path).as_posix()}", file, part_rows)
    else:
        raise DataError(f"{path}: holds {_counted(files)}; an input holds .tar or .parquet files, tables "
                        f"({', '.join(TABLES)}) or images")


def _of_file(name: str, path: Path, part_rows: int) -> Iterator[Part]:
    suffix = path.suffix.lower()
    if suffix == ".tar":
        yield Part(0, "tar", name, str(path.resolve()))
    elif suffix == ".parquet":
        yield from _of_parquet(name, path, part_rows)
    elif suffix in TABLES:
        size, step = path.stat().st_size, part_rows * ROW_BYTES
        for start in range(0, max(size, 1), step):
            yield Part(0, "table", f"{name}@{start}", str(path.resolve()), [start, min(size, start + step)])
    else:
        raise DataError(f"{path}: is none of .tar, .parquet, {', '.join(TABLES)}; put it into one of these, or into a "
                        "folder of images")


def _of_parquet(name: str, path: Path, part_rows: int) -> Iterator[Part]:
    from pyarrow import parquet

    try:
        about = parquet.ParquetFile(path).metadata
        rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    except (OSError, ValueError):  # a worker says what is wrong with it
        rows = [0]
    first = count = 0
    for group, more in enumerate(rows):
        count += more
        if count >= part_rows or group == len(rows) - 1:
            yield Part(0, "parquet", f"{name}@{first}", str(path.resolve()), [first, group + 1])
            first, count = group + 1, 0


def _of_folder(name: str, root: Path, images: list[Path], files: list[Path], part_rows: int) -> Iterator[Part]:
    endings = {file.suffix for file in files} | {"".join(file.suffixes[-2:]) for file in files}
    suffixes = sorted((ending for ending in endings if ending.lower() in CAPTION_SUFFIXES),
                      key=lambda ending: (CAPTION_SUFFIXES.index(ending.lower()), ending))
    for start in range(0, len(images), part_rows):
        chosen = [file.relative_to(root).as_posix() for file in images[start:start + part_rows]]
        yield Part(0, "folder", f"{name}@{start}", str(root.resolve()), [start], chosen, suffixes)


def _counted(files: list[Path]) -> str:
    return counted(Counter(file.suffix or "without suffix" for file in files)) or "nothing"


def _ends(path: Path) -> bytes:
    """A file's size and the bytes of its ends."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(ENDS)
            file.seek(max(0, size - ENDS))
            return size.to_bytes(8, "little") + start + file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
