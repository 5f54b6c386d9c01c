"""The last step: samples that all rules left, level, in tar shards that the loader reads."""
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vilg.data.building.files import written
from vilg.data.building.tables import PART_BITS

COLUMNS = ["order", "key", "said", "suffix", "start", "size"]


def plan(kept: dict[int, int], size: int) -> Iterator[list[list[int]]]:
    """The shards of parts of which ``kept`` samples are left, by number: each a list of (part, first, count) that
    together hold ``size`` samples or fewer, no shard more than one fewer than another."""
    total = sum(kept.values())
    shards = -(-total // size)
    share, more = divmod(total, shards) if shards else (0, 0)
    parts = iter(sorted(kept.items()))
    part, left, first = -1, 0, 0
    for shard in range(shards):
        wanted, pieces = share + (shard < more), []
        while wanted:
            if not left:
                (part, left), first = next(parts), 0
                continue
            count = min(wanted, left)
            pieces.append([part, first, count])
            first, left, wanted = first + count, left - count, wanted - count
        yield pieces


class ShardWorker:
    """Writes shards into ``to`` from what parts left in ``read`` and what was dropped since, in ``dropped``, a folder
    a part."""

    def __init__(self, read: Path, dropped: Path, to: Path):
        self.read, self.dropped, self.to = read, dropped, to

    def __call__(self, job: str) -> dict[str, Any]:
        """``{"name": …, "pieces": …}`` → the mark: its samples."""
        order = json.loads(job)
        count = 0
        with written(self.to / order["name"]) as temporary:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for part, first, taken in order["pieces"]:
                    for sample in self._samples(part, first, taken):
                        _add(tar, *sample)
                        count += 1
        return {"name": order["name"], "samples": count}

    def _samples(self, part: int, first: int, taken: int) -> Iterator[tuple[str, str, bytes, bytes]]:
        """Key, image's suffix, image and record of the samples of a part from number ``first`` of those left on."""
        gone, removed = self._removed(part)
        stem = f"{part:07d}"
        samples = _rows(self.read / f"{stem}.samples.parquet", COLUMNS)
        chosen = [row for row in samples if row["order"] not in gone][first:first + taken]
        orders = {row["order"]: [] for row in chosen}
        for text in _rows(self.read / f"{stem}.texts.parquet", ["order", "place", "text"]):
            if text["order"] in orders and (text["order"], text["place"]) not in removed:
                orders[text["order"]].append(text["text"])
        with open(self.read / f"{stem}.bin", "rb") as blob:
            for row in chosen:
                blob.seek(row["start"])
                said = {"key": row["key"], "captions": orders[row["order"]]} | json.loads(row["said"])
                yield (row["key"], row["suffix"], blob.read(row["size"]),
                       json.dumps(said, ensure_ascii=False).encode("utf-8", "replace"))

    def _removed(self, part: int) -> tuple[set[int], set[tuple[int, int]]]:
        """Orders of samples, and (order, place) of captions, of a part that were dropped after it was read."""
        gone, removed = set(), set()
        for row in removed_rows(self.dropped, part, ["order", "place", "sample"]):
            if row["sample"]:
                gone.add(row["order"])
            removed.add((row["order"], row["place"]))
        return gone, removed


def removed_rows(dropped: Path, part: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of the folder of one part."""
    for path in sorted((dropped / f"part={part}").glob("*.parquet")):
        yield from _rows(path, columns)


def part_of(order: Any) -> Any:
    """The part of an order, a number or a column."""
    return order // (1 << PART_BITS)


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(path).iter_batches(4096, columns=columns):
        yield from batch.to_pylist()


def _add(tar: tarfile.TarFile, key: str, suffix: str, image: bytes, record: bytes) -> None:
    for kind, content in ((suffix, image), ("json", record)):
        if kind:
            item = tarfile.TarInfo(f"{key}.{kind}")
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
