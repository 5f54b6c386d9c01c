"""Writing samples down: as tar shards, or as a folder of pictures with a table."""
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vilg.data.broken import BrokenLog
from vilg.data.filters import TextFilter
from vilg.data.sample import BrokenSample, Sample, Source
from vilg.data.shards import write_index
from vilg.data.transforms import centre_crop
from vilg.errors import DataError

FORMATS = {"png": {}, "jpg": {"quality": 95}, "webp": {"quality": 95}}


@dataclass
class PackingReport:
    """Samples written, broken, and left out by the text filter."""

    written: int = 0
    broken: int = 0
    filtered: int = 0


@dataclass
class Packing:
    """How samples are written: pictures as ``format``, centre-cropped to ``size`` pixels where one is given.

    ``text_filter`` drops captions, and with the last one the sample.
    """

    format: str = "jpg"
    size: int | None = None
    text_filter: TextFilter | None = None
    max_broken: float = 0.1

    def __post_init__(self):
        if self.format not in FORMATS:
            raise DataError(f"{self.format}: pictures are written as {', '.join(FORMATS)}")

    def usable(self, source: Source, report: PackingReport) -> Iterator[Sample]:
        """The samples to write, counted in ``report``. Raises DataError when too many are broken."""
        broken = BrokenLog(len(source), self.max_broken)
        for index in tqdm(range(len(source)), unit="sample"):
            try:
                sample = source[index]
            except BrokenSample as problem:
                broken.add(problem)
                continue
            if self.text_filter is not None:
                sample.captions = [text for text in sample.captions if self.text_filter.keeps(text)]
            if not sample.captions:
                report.filtered += 1
                continue
            report.written += 1
            yield sample
        report.broken = len(broken)
        broken.report()

    def picture(self, sample: Sample) -> bytes:
        """The picture of a sample, encoded."""
        pixels = centre_crop(sample.picture, self.size) if self.size else np.ascontiguousarray(sample.picture)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "jpeg" if self.format == "jpg" else self.format, **FORMATS[self.format])
        return buffer.getvalue()


def write_shards(folder: str | Path, source: Source, packing: Packing, samples_a_shard: int = 1000) -> PackingReport:
    """Write ``source`` as ``00000.tar``, ``00001.tar`` … with their index; the same source gives the same bytes.

    A shard appears under its name only when it is whole. Raises DataError when the folder holds shards already or
    cannot be written.
    """
    folder = Path(folder)
    report = PackingReport()
    counts: dict[str, int] = {}
    if folder.is_dir() and any(folder.glob("*.tar")):
        raise DataError(f"{folder}: holds shards already; name another folder or remove them")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        samples = packing.usable(source, report)
        while shard := _take(samples, samples_a_shard):
            name = f"{len(counts):05d}.tar"
            counts[name] = len(shard)
            _write_shard(folder / name, shard, packing, report.written - len(shard))
        write_index(folder, counts)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return report


def write_folder(folder: str | Path, source: Source, packing: Packing) -> PackingReport:
    """Write ``source`` as pictures with ``.txt`` of the same stem, and ``table.jsonl`` of captions and questions."""
    folder = Path(folder)
    report = PackingReport()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "table.jsonl", "w", encoding="utf-8") as table:
            for sample in packing.usable(source, report):
                stem = f"{report.written - 1:07d}"
                (folder / f"{stem}.{packing.format}").write_bytes(packing.picture(sample))
                (folder / f"{stem}.txt").write_text("\n".join(sample.captions) + "\n", encoding="utf-8")
                record = {"picture": f"{stem}.{packing.format}", **_texts(sample)}
                table.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return report


def _take(samples: Iterator[Sample], count: int) -> list[Sample]:
    return list(islice(samples, count))


def _texts(sample: Sample) -> dict[str, list]:
    return {"captions": sample.captions, "questions": sample.questions}


def _write_shard(path: Path, samples: list[Sample], packing: Packing, first: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in enumerate(samples, first):
            texts = json.dumps({"key": sample.key, **_texts(sample)}, ensure_ascii=False).encode()
            for suffix, content in ((packing.format, packing.picture(sample)), ("json", texts)):
                item = tarfile.TarInfo(f"{number:09d}.{suffix}")
                item.size = len(content)
                tar.addfile(item, io.BytesIO(content))
    os.replace(temporary, path)
