"""What an index is of: the images of a folder, a table or tar shards, each with a name and a mark of its state."""
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilg.data.sample import BrokenSample, Reading
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.shards import ShardsConfig, ShardStream
from vilg.data.sources.table import TableConfig, TableSource
from vilg.errors import DataError

MISSING = "missing"


@dataclass(frozen=True)
class Item:
    """An image by its ``name`` (a path inside the collection, a shard's member); ``mark`` is another when it changed.
    ``number`` is its place in the source."""

    name: str
    mark: str
    number: int


class Collection:
    """Images under ``path`` to be searched, without regard to captions; ``items`` name each once, in order, by its path
    from ``root`` on."""

    def __init__(self, path: Path, root: Path, source: FolderSource | TableSource | ShardStream, items: list[Item]):
        self.path, self.root, self.source, self.items = path, root, source, items

    def read(self, item: Item) -> np.ndarray:
        """The image, uint8 [H, W, 3]. Raises BrokenSample."""
        return self.source[item.number].image


def open_collection(path: str | Path, least_side: int | None = None) -> Collection:
    """The images under ``path``: a folder of images or of .tar shards, a .tar, or a table (.tsv, .jsonl).

    ``least_side`` as in :class:`~vilg.data.sample.Reading`. Raises DataError when there is no image.
    """
    path, reading = Path(os.path.abspath(path)), Reading(least_side, texts=False)
    if not path.exists():
        raise DataError(f"{path}: there is no such folder, table or shard to search in")
    if path.is_file() and path.suffix != ".tar":
        source = TableSource(TableConfig(path=str(path)), reading)
        return Collection(path, source.root, source, _table_items(source))
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        source = ShardStream(ShardsConfig(path=str(path)), reading)
        folder = path if path.is_dir() else path.parent
        return Collection(path, folder, source, _shard_items(source, folder))
    source = FolderSource(FolderConfig(path=str(path)), reading)
    items = [Item(name, _mark(source.root / name), number) for number, name in enumerate(source.images)]
    return Collection(path, path, source, items)


def _table_items(source: TableSource) -> list[Item]:
    items: dict[str, Item] = {}
    for number in range(len(source)):
        try:
            name = source.record(number)[0].name
        except BrokenSample:  # a row that names no image adds none
            continue
        if name not in items:
            items[name] = Item(name, _mark(source.root / name), number)
    if not items:
        raise DataError(f"{source.path}: no row of the table names an image")
    return list(items.values())


def _shard_items(source: ShardStream, folder: Path) -> list[Item]:
    items, marks = [], {}
    for number in range(len(source)):
        try:
            shard, member = source.member(number)
        except BrokenSample:  # the shard holds fewer than was counted
            continue
        mark = marks.setdefault(shard, _mark(shard))
        place = min(member.files.values(), default=(0, 0))[0]
        items.append(Item(f"{shard.relative_to(folder)}/{member.key}", f"{mark}-{place}", number))
    return items


def _mark(path: Path) -> str:
    try:
        state = os.stat(path)
    except OSError:
        return MISSING
    return f"{state.st_size}-{state.st_mtime_ns}"
