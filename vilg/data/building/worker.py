"""What a worker does with a part: its rows through the sieve, the samples that are left with what compares them with
all others, and a mark."""
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vilg.data.building.clicks import Clicked
from vilg.data.building.config import BuildConfig
from vilg.data.building.files import written
from vilg.data.building.parts import Part
from vilg.data.building.readers import Row, Rows, Unreadable, batches
from vilg.data.building.sieve import Drop, Kept, MakeEncoder, Sieve
from vilg.data.building.tables import DROPPED, PART_BITS, SAMPLES, TEXTS, Writer
from vilg.data.filtering import likeness

CLICKS = "clicks"
"""Folder beside that of the parts, of the queries of each."""
EXAMPLES = 5
"""Of each rule in the report."""


class PartWorker:
    """Reads parts into files of ``folder``: images as they are stored (``.bin``), samples, captions, what was dropped.
    ``limit``: rows of a part that are read (None: all)."""

    def __init__(self, config: BuildConfig, folder: Path, make_encoder: MakeEncoder | None, limit: int | None = None):
        self.config, self.folder, self.limit = config, folder, limit
        self.sieve = Sieve(config, make_encoder)

    def __call__(self, job: str) -> dict[str, Any]:
        """A part's line → its mark: counts, what was dropped by rule, and what is wrong with the part. Raises DataError
        only for what is wrong with all."""
        part = Part.load(job)
        mark: dict[str, Any] = {"part": part.name, "number": part.number, "read": 0, "captions": 0, "kept": 0,
                                "problem": None, "rules": {}}
        rows = Rows(part, self.config.images)
        stem = f"{part.number:07d}"
        with ExitStack() as stack:
            names = [stack.enter_context(written(self.folder / f"{stem}.{suffix}"))
                     for suffix in ("bin", "samples.parquet", "texts.parquet", "dropped.parquet")]
            blob = stack.enter_context(open(names[0], "wb"))
            tables = [stack.enter_context(Writer(name, schema))
                      for name, schema in zip(names[1:], (SAMPLES, TEXTS, DROPPED))]
            try:
                self._read(part, islice(self._clicked(part, rows), self.limit), mark, blob, tables)
                mark["problem"] = rows.problem
            except Unreadable as error:
                mark["problem"] = str(error)
        return mark

    def _clicked(self, part: Part, rows: Rows) -> Iterator[Row]:
        """The rows, with the queries of a log where there is one."""
        if self.config.clicks is None:
            return iter(rows)
        return Clicked(self.config.clicks, self.folder.parent / CLICKS, part.number).added(iter(rows))

    def _read(self, part: Part, rows: Iterator[Row], mark: dict[str, Any], blob: BinaryIO,
              tables: list[Writer]) -> None:
        order = part.number << PART_BITS
        for batch in batches(rows, self.config.batch):
            kept, drops = self.sieve.sift(batch, order)
            order += len(batch)
            mark["read"] += len(batch)
            mark["captions"] += sum(len(row.said.captions) for row in batch if row.said)
            mark["kept"] += len(kept)
            for drop in drops:
                count(mark["rules"], drop)
                tables[2].add(astuple(drop))
            vectors = self._vectors(kept)
            for sample, vector in zip(kept, vectors):
                start = blob.tell()
                blob.write(sample.row.image or b"")
                tables[0].add(self._sample(sample, start, vector))
                for place, text in sample.captions.items():
                    tables[1].add((sample.order, place, text, likeness.content_hash(text.encode())))

    def _vectors(self, kept: list[Kept]) -> list[bytes | None]:
        """What confirms that images are near, where it is the model's vectors: float16, as bytes."""
        near = self.config.rules.near_images
        if not kept or near is None or near.confirm == "pixels":
            return [None] * len(kept)
        vectors = self.sieve.encoder.embed_image([sample.image for sample in kept])
        return [vector.tobytes() for vector in vectors.astype(np.float16)]

    def _sample(self, sample: Kept, start: int, vector: bytes | None) -> tuple:
        rules, row = self.config.rules, sample.row
        small = likeness.thumbnail(sample.image) if rules.near_images else None
        said = {"questions": row.said.questions, "raw_key": row.name} | sample.facts
        return (sample.order, row.key, row.name, row.own, len(sample.captions), said, row.suffix, start,
                len(row.image or b""),
                likeness.content_hash(row.image) if rules.same_bytes and row.image else 0,
                likeness.pixels_hash(sample.image) if rules.same_pixels and sample.image is not None else 0,
                likeness.look_hash(small) if small else 0, vector or small)


def count(rules: dict[str, Any], drop: Drop) -> None:
    """Add a drop to the counts of its rule, and to its examples while there are few."""
    found = rules.setdefault(drop.rule, {"samples": 0, "captions": 0, "examples": []})
    found["samples"] += drop.sample
    found["captions"] += drop.text is not None
    if len(found["examples"]) < EXAMPLES:
        found["examples"].append({field.name: getattr(drop, field.name) for field in fields(drop)
                                  if field.name in ("key", "source", "value", "text")})
