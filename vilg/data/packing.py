"""Writing samples down: as tar shards, or as a folder of images with a table."""
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image

from vilg.data.broken import BrokenLog
from vilg.data.caption_records import write_record
from vilg.data.filtering.rules import SimilarityFilter, TextFilter
from vilg.data.images import is_image_name
from vilg.data.sample import BrokenSample, Sample, Source
from vilg.data.sources.shards import write_index
from vilg.data.transforms import centre_crop
from vilg.errors import DataError
from vilg.progress import progress

FORMATS = {"png": {}, "jpg": {"quality": 95}, "webp": {"quality": 95}}


@dataclass
class PackingReport:
    """Samples written, broken, and left out by the filters."""

    written: int = 0
    broken: int = 0
    filtered: int = 0


@dataclass
class Packed:
    """A sample as it is written, with the captions that were kept, and the bytes of its image's file."""

    sample: Sample
    image: bytes


@dataclass
class Packing:
    """How samples are written: images as ``format``, centre-cropped to ``size`` pixels where one is given.

    ``text_filter`` drops captions, and ``similarity_filter`` of what it left those that do not fit the image; with the
    last one goes the sample. Raises DataError for a format or size that cannot be.
    """

    format: str = "jpg"
    size: int | None = None
    text_filter: TextFilter | None = None
    max_broken: float = 0.1
    similarity_filter: SimilarityFilter | None = None

    def __post_init__(self):
        if self.format not in FORMATS:
            raise DataError(f"{self.format}: images are written as {', '.join(FORMATS)}")
        if self.size is not None and self.size < 1:
            raise DataError(f"a size of {self.size} pixels is none; give 1 or more, or no size to leave images whole")

    def usable(self, source: Source, report: PackingReport) -> Iterator[Packed]:
        """The samples to write one by one, counted in ``report``. Raises DataError when too many are broken."""
        broken = BrokenLog(len(source), self.max_broken)
        for index in progress(range(len(source)), desc="reading", unit="sample"):
            try:
                packed = self._packed(source[index])
            except BrokenSample as problem:
                broken.add(problem)
                continue
            if packed is None:
                report.filtered += 1
                continue
            broken.any_good = True
            report.written += 1
            yield packed
        report.broken = len(broken)
        broken.report()

    def _packed(self, sample: Sample) -> Packed | None:
        """The sample as it is written, None when the filters leave no caption. Raises BrokenSample."""
        captions = sample.captions
        if self.text_filter is not None:
            captions = [text for text in captions if self.text_filter.keeps(text)]
        if self.similarity_filter is not None:
            captions = self.similarity_filter.kept(captions, sample.image)
        if not captions:
            return None
        return Packed(replace(sample, captions=captions), self._encoded(sample))

    def _encoded(self, sample: Sample) -> bytes:
        pixels = centre_crop(sample.image, self.size) if self.size else np.ascontiguousarray(sample.image)
        buffer = io.BytesIO()
        kind = "jpeg" if self.format == "jpg" else self.format
        try:
            Image.fromarray(pixels).save(buffer, kind, **FORMATS[self.format])
        except (OSError, ValueError) as error:  # WebP and JPEG have a longest side
            raise BrokenSample(sample.key, f"{pixels.shape[1]} × {pixels.shape[0]} pixels cannot be written as "
                                           f"{self.format} ({error}); give a size, or take png") from None
        return buffer.getvalue()


def write_shards(folder: str | Path, source: Source, packing: Packing, samples_a_shard: int = 1000) -> PackingReport:
    """Write ``source`` as ``00000.tar``, ``00001.tar`` … with their index; the same source gives the same bytes.

    Shards hold ``samples_a_shard`` or fewer, all of them equally many (one more or less), and appear under their names
    when all are whole. Raises DataError when the folder holds shards already or cannot be written.
    """
    folder = Path(folder).expanduser()
    report = PackingReport()
    if samples_a_shard < 1:
        raise DataError(f"{samples_a_shard} samples a shard are none; give 1 or more")
    if folder.is_dir() and any(folder.glob("*.tar")):
        raise DataError(f"{folder}: holds shards already; name another folder or remove them")
    unfinished: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        samples = packing.usable(source, report)
        counts = []
        while (first := next(samples, None)) is not None:
            unfinished.append(folder / f".{len(counts):05d}.tar.{os.getpid()}.tmp")
            shard = chain([first], islice(samples, samples_a_shard - 1))
            counts.append(_write_shard(unfinished[-1], shard, packing.format, sum(counts)))
        counts = _level(unfinished, counts)
        names = [f"{number:05d}.tar" for number in range(len(counts))]
        for path, name in zip(unfinished, names, strict=True):
            os.replace(path, folder / name)
        write_index(folder, dict(zip(names, counts, strict=True)))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        for path in folder.glob(f".*.tar.{os.getpid()}.*"):
            path.unlink()
    return report


def write_folder(folder: str | Path, source: Source, packing: Packing) -> PackingReport:
    """Write ``source`` as images with ``.txt`` of the same stem, and ``table.jsonl`` of captions and questions.

    Raises DataError when the folder cannot be written or holds other images, which would mix with these.
    """
    folder = Path(folder).expanduser()
    report = PackingReport()
    own = {f"{number:07d}.{packing.format}" for number in range(len(source))}
    others = {path.name for path in folder.glob("*") if is_image_name(path.name)} - own
    if others:
        raise DataError(f"{folder}: holds other images already, such as {min(others)}; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "table.jsonl", "w", encoding="utf-8") as table:
            for packed in packing.usable(source, report):
                stem = f"{report.written - 1:07d}"
                (folder / f"{stem}.{packing.format}").write_bytes(packed.image)
                captions = "\n".join(packed.sample.captions) + "\n"
                (folder / f"{stem}.txt").write_text(captions, encoding="utf-8")
                table.write(write_record(packed.sample, picture=f"{stem}.{packing.format}") + "\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return report


def _write_shard(path: Path, samples: Iterable[Packed], suffix: str, first: int) -> int:
    """Write samples as they come, numbered from ``first`` on; returns how many came."""
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for count, packed in enumerate(samples, 1):
            texts = write_record(packed.sample, key=packed.sample.key).encode()
            for kind, content in ((suffix, packed.image), ("json", texts)):
                item = tarfile.TarInfo(f"{first + count - 1:09d}.{kind}")
                item.size = len(content)
                tar.addfile(item, io.BytesIO(content))
    return count


def _level(shards: list[Path], counts: list[int]) -> list[int]:
    """Move samples on from full shards into a short last one until no two differ by more than one; the new counts.

    A lane that is dealt a short shard would read its samples the more often. From the last shard to the first, each is
    made anew of the end of the one before and what it keeps itself; one shard more is on the disk meanwhile.
    """
    if len(set(counts)) <= 1:
        return counts
    share, more = divmod(sum(counts), len(counts))
    sizes = [share + (number < more) for number in range(len(counts))]
    given = 0
    for number in reversed(range(len(shards))):
        kept = counts[number] - given
        given = sizes[number] - kept
        temporary = shards[number].with_suffix(".level")
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            if given:
                _copy(shards[number - 1], counts[number - 1] - given, counts[number - 1], tar)
            _copy(shards[number], 0, kept, tar)
        os.replace(temporary, shards[number])
    return sizes


def _copy(shard: Path, start: int, stop: int, to: tarfile.TarFile) -> None:
    """Copy samples ``start`` to ``stop - 1`` of a shard, two files each, to the end of another."""
    with tarfile.open(shard) as tar:
        for item in islice(tar, 2 * start, 2 * stop):
            to.addfile(item, tar.extractfile(item))
