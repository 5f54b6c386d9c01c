"""The rules that compare a sample with all others, as group-bys and joins of the engine.

Each works on what the rules before it left, keeps the first of what it finds the same (the least order) and writes what
it drops to a folder of its own, which is there when it is done. Of a chain of near ones, each like the one before, all
but the first go.
"""
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vilg.data.building.config import BuildConfig
from vilg.data.building.pairs import PLACES, grouped_candidates, images_near, texts_near
from vilg.data.building.tables import DROPPED
from vilg.data.filtering import likeness

MOST_BUCKETS = 1024
Frame = Any
"""A daft DataFrame; daft is imported where it is used."""


class Duplicates:
    """The rules of ``config`` on the tables of ``read``, into folders of ``folder``. ``rows``: about how many captions
    there are; ``spill`` says whether groups that are too many for memory go through files (the native engine; a cluster
    shuffles them itself)."""

    def __init__(self, daft: Any, config: BuildConfig, read: Path, folder: Path, rows: int, spill: bool):
        self.daft, self.config, self.read, self.folder = daft, config, read, folder
        self.rows, self.spill = rows, spill
        self.done: list[str] = []

    def run(self) -> Iterator[str]:
        """Apply the rules one after the other; yields the name of each as it begins."""
        rules = self.config.rules
        steps: list[tuple[str, Any, Callable]] = [
            ("frequency", rules.frequency, self._frequency),
            ("same_bytes", rules.same_bytes and self.config.images, lambda to: self._same("same_bytes", to)),
            ("same_pixels", rules.same_pixels and self.config.images, lambda to: self._same("same_pixels", to)),
            ("near_images", rules.near_images, self._near_images), ("near_texts", rules.near_texts, self._near_texts)]
        for name, on, step in steps:
            if not on:
                continue
            yield name
            if not (self.folder / name).exists():
                temporary = self.folder / f".{name}.tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                (temporary / "hits").mkdir(parents=True)
                step(temporary)
                os.replace(temporary / "dropped", self.folder / name)
                shutil.rmtree(temporary)
            self.done.append(name)

    def dropped(self) -> Frame | None:
        """What the rules so far have dropped, None for nothing."""
        files = [str(path) for name in self.done for path in sorted((self.folder / name).glob("*.parquet"))]
        return self.daft.read_parquet(files) if files else None

    def _samples(self, *columns: str) -> Frame:
        """Samples that are still in."""
        frame = self.daft.read_parquet(f"{self.read}/*.samples.parquet").select(*columns)
        return self._without_gone(frame)

    def _texts(self, *columns: str) -> Frame:
        """Captions that are still in, of samples that are."""
        col = self.daft.col
        frame = self._without_gone(self.daft.read_parquet(f"{self.read}/*.texts.parquet").select(*columns))
        dropped = self.dropped()
        if dropped is None:
            return frame
        return frame.join(dropped.where(col("place") >= 0).select("order", "place"), on=["order", "place"], how="anti")

    def _without_gone(self, frame: Frame) -> Frame:
        dropped = self.dropped()
        if dropped is None:
            return frame
        return frame.join(dropped.where(self.daft.col("sample")).select("order"), on="order", how="anti")

    def _groups(self, frame: Frame, key: str, folder: Path, rows: int) -> Iterator[Frame]:
        """The frame in pieces that each hold whole groups of ``key``, few enough rows at once for memory."""
        buckets = min(MOST_BUCKETS, -(-rows // self.config.rows_at_once)) if self.spill else 1
        if buckets == 1:
            yield frame
            return
        spilled = folder / f"by_{key}"
        frame.with_column("bucket", self.daft.col(key) % buckets).write_parquet(
            str(spilled), partition_cols=["bucket"], write_mode="overwrite")
        found = sorted(spilled.glob("bucket=*"))
        if not found:
            yield frame  # it is empty, and an empty result is one too
        for bucket in found:
            yield self.daft.read_parquet(f"{bucket}/*.parquet")
            shutil.rmtree(bucket)

    def _frequency(self, to: Path) -> None:
        col = self.daft.col
        for group in self._groups(self._texts("order", "place", "same_text"), "same_text", to, self.rows):
            counts = group.groupby("same_text").agg(col("order").count().alias("count"))
            counts = counts.where(col("count") > self.config.rules.frequency)
            hits = group.join(counts, on="same_text").select(
                "order", "place", col("count").cast(self.daft.DataType.string()).alias("value"))
            _append(hits, to / "hits")
        self._drop_texts("frequency", to)

    def _same(self, rule: str, to: Path) -> None:
        col = self.daft.col
        for group in self._groups(self._samples("order", rule), rule, to, self.rows):
            firsts = group.groupby(rule).agg(col("order").min().alias("first"), col("order").count().alias("count"))
            firsts = firsts.where(col("count") > 1).select(rule, "first")
            hits = group.join(firsts, on=rule).where(col("order") != col("first")).select("order", "first")
            _append(hits, to / "hits")
        self._drop_samples(rule, to)

    def _near_images(self, to: Path) -> None:
        daft, col, config = self.daft, self.daft.col, self.config.rules.near_images
        samples = self._samples("order", "look")
        banded = samples.with_column("band", _bands(daft, likeness.look_tables)(col("look"))).explode("band")
        self._candidates(banded.select("band", "order", col("look").alias("value")), likeness.TABLES, config.bits, to)
        near = daft.func.batch(return_dtype=daft.DataType.bool())(
            lambda one, other: images_near(one.to_pylist(), other.to_pylist(), config))
        proofs = self._samples("order", "proof")
        pairs = _read(daft, to / "pairs", "a", "b").distinct()
        pairs = pairs.join(proofs, left_on="a", right_on="order").select("a", "b", col("proof").alias("one"))
        pairs = pairs.join(proofs, left_on="b", right_on="order").where(near(col("one"), col("proof")))
        hits = pairs.groupby("b").agg(col("a").min().alias("first")).select(col("b").alias("order"), "first")
        _append(hits, to / "hits")
        self._drop_samples("near_images", to)

    def _near_texts(self, to: Path) -> None:
        daft, col, alike = self.daft, self.daft.col, self.config.rules.near_texts.alike
        texts = self._texts("order", "place", "text", "same_text").where(col("place") < PLACES)
        texts = texts.with_column("number", col("order") * PLACES + col("place"))
        banded = texts.with_column("band", _bands(daft, _text_bands)(col("text"))).explode("band")
        banded = banded.where(col("band").not_null())
        self._candidates(banded.select("band", col("number").alias("order"), col("same_text").alias("value")),
                         likeness.BANDS, None, to)
        near = daft.func.batch(return_dtype=daft.DataType.bool())(
            lambda one, other: texts_near(one.to_pylist(), other.to_pylist(), alike))
        pairs = _read(daft, to / "pairs", "a", "b").distinct()
        words = texts.select("number", "text")
        pairs = pairs.join(words, left_on="a", right_on="number").select("a", "b", col("text").alias("one"))
        pairs = pairs.join(words, left_on="b", right_on="number").where(near(col("one"), col("text")))
        firsts = pairs.groupby("b").agg(col("a").min().alias("a"))
        firsts = firsts.select(col("b"), (col("a") // PLACES).alias("first"))
        keys = self._samples("order", "key").select(col("order").alias("first"), col("key").alias("value"))
        hits = firsts.join(keys, on="first").select(
            (col("b") // PLACES).alias("order"), (col("b") % PLACES).cast(daft.DataType.int32()).alias("place"),
            "value")
        _append(hits, to / "hits")
        self._drop_texts("near_texts", to)

    def _candidates(self, banded: Frame, tables: int, bits: int | None, to: Path) -> None:
        """Pairs of rows (order, value) that share a band, into the folder ``pairs``."""
        daft, col = self.daft, self.daft.col
        kind = daft.DataType.struct({"a": daft.DataType.int64(), "b": daft.DataType.int64()})
        pairing = daft.func.batch(return_dtype=daft.DataType.list(kind))(
            lambda orders, values: grouped_candidates(orders, values, bits))
        for group in self._groups(banded, "band", to, self.rows * tables):
            lists = group.groupby("band").agg(col("order").list_agg(), col("value").list_agg(),
                                              col("order").count().alias("count")).where(col("count") > 1)
            pairs = lists.select(pairing(col("order"), col("value")).alias("pair")).explode("pair")
            pairs = pairs.where(col("pair").not_null())
            _append(pairs.select(col("pair")["a"].alias("a"), col("pair")["b"].alias("b")), to / "pairs")

    def _drop_samples(self, rule: str, to: Path) -> None:
        """Hits (order, first) as rows of what was dropped."""
        daft, col = self.daft, self.daft.col
        hits = _read(daft, to / "hits", "order", "first")
        keys = self._samples("order", "key", "source")
        firsts = keys.select(col("order").alias("first"), col("key").alias("value"))
        rows = hits.join(keys, on="order").join(firsts, on="first")
        self._write(rows.with_columns({"rule": daft.lit(rule), "place": daft.lit(-1), "sample": daft.lit(True),
                                       "text": daft.lit(None)}), to)

    def _drop_texts(self, rule: str, to: Path) -> None:
        """Hits (order, place, value) as rows of what was dropped; the last caption takes its sample with it."""
        daft, col = self.daft, self.daft.col
        hits = _read(daft, to / "hits", "order", "place", "value")
        texts, keys = self._texts("order", "place", "text"), self._samples("order", "key", "source")
        taken = hits.groupby("order").agg(col("place").count().alias("taken"), col("place").max().alias("last"))
        left = texts.join(taken.select("order"), on="order", how="semi").groupby("order").agg(
            col("place").count().alias("left"))
        taken = taken.join(left, on="order").select("order", "last", (col("taken") == col("left")).alias("whole"))
        rows = hits.join(texts, on=["order", "place"]).join(keys, on="order").join(taken, on="order")
        self._write(rows.with_columns({"rule": daft.lit(rule),
                                       "sample": col("whole") & (col("place") == col("last"))}), to)

    def _write(self, rows: Frame, to: Path) -> None:
        kinds = {"int64": "int64", "int32": "int32", "string": "string", "bool": "bool"}
        columns = [self.daft.col(name).cast(getattr(self.daft.DataType, kinds[kind])())
                   for name, kind in DROPPED.items()]
        _append(rows.select(*columns), to / "dropped")


def _append(frame: Frame, folder: Path) -> None:
    frame.write_parquet(str(folder), write_mode="append")


def _read(daft: Any, folder: Path, *columns: str) -> Frame:
    return daft.read_parquet(f"{folder}/*.parquet").select(*columns)


def _bands(daft: Any, of: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A function of a column's values that gives each a list of bands."""
    return daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.uint64()))(
        lambda column: [row.tolist() for row in of(column.to_pylist())])


def _text_bands(texts: list[str]) -> list[np.ndarray]:
    return [likeness.text_bands(text) for text in texts]
