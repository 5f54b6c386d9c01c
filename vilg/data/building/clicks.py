"""Query–click pairs: the queries of a search log as captions of the images that were clicked for them."""
import glob
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vilg.data.building.config import ClicksConfig
from vilg.data.building.files import written
from vilg.data.building.parts import Part
from vilg.data.building.readers import Row, Rows, Unreadable
from vilg.data.building.shards import removed_rows
from vilg.data.building.tables import CLICKED, Writer
from vilg.errors import DataError

URL = "url"
"""The key under which a sample's record says where its image is from, as img2dataset writes it."""


class KeyWorker:
    """Writes down what the samples of a part are called, by their records alone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, job: str) -> dict[str, Any]:
        """A part's line → its mark."""
        part = Part.load(job)
        with written(self.folder / f"{part.number:07d}.keys.parquet") as name, Writer(name, CLICKED) as table:
            try:
                for row in Rows(part, images=False):
                    url = row.said.facts.get(URL) if row.said else None
                    table.add((part.number, row.own, url if isinstance(url, str) else None))
            except Unreadable:  # it is named when its samples are read
                pass
        return {}


def join_clicks(daft: Any, config: ClicksConfig, keys: Path, to: Path) -> None:
    """Add up a log's clicks and write those of queries with enough of them to ``to``, a folder a part, by the samples'
    names in ``keys``. Raises DataError for a log that cannot be read."""
    col, text = daft.col, daft.DataType.string()
    log = _log(daft, config).select(col(config.query).cast(text).alias("query"),
                                    col(config.image).cast(text).alias("image"),
                                    col(config.clicks).cast(daft.DataType.int64()).alias("clicks"))
    try:
        log = log.groupby("query", "image").agg(col("clicks").sum()).where(col("clicks") >= config.least)
        names = daft.read_parquet(f"{keys}/*.keys.parquet")
        urls = names.where(col("url").not_null() & (col("url") != col("own")))
        found = log.join(names, left_on="image", right_on="own").select("part", col("image").alias("own"), "query",
                                                                        "clicks")
        by_url = log.join(urls, left_on="image", right_on="url").select("part", "own", "query", "clicks")
        found.concat(by_url).write_parquet(str(to), partition_cols=["part"], write_mode="overwrite")
    except Exception as error:
        shutil.rmtree(to, ignore_errors=True)
        raise DataError(f"{config.path}: cannot be read as a log of clicks ({str(error)[:200]}); clicks are whole "
                        "numbers, and all its files have the same columns") from None


class Clicked:
    """The queries of the rows of one part, ``most`` of each, those of most clicks first."""

    def __init__(self, config: ClicksConfig, folder: Path, part: int):
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for row in removed_rows(folder, part, ["own", "query", "clicks"]):
            clicks = found[row["own"]].get(row["query"], 0)
            found[row["own"]][row["query"]] = max(clicks, row["clicks"])
        self._queries = {own: sorted(queries, key=lambda query, queries=queries: (-queries[query], query))[:config.most]
                         for own, queries in found.items()}

    def added(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Rows with their queries behind their captions."""
        for row in rows:
            if row.said is not None and (queries := self._queries.get(row.own)):
                row.said.captions = [*row.said.captions, *queries]
                row.said.facts = row.said.facts | {"queries": queries}
            yield row


def _log(daft: Any, config: ClicksConfig) -> Any:
    files = sorted(glob.glob(str(Path(config.path).expanduser())))
    if not files:
        raise DataError(f"clicks.path: {config.path} names no file")
    try:
        tables = all(file.endswith((".tsv", ".txt")) for file in files)
        frame = daft.read_csv(files, delimiter="\t") if tables else daft.read_parquet(files)
        columns = frame.column_names
    except Exception as error:  # each of the engine's readers has errors of its own
        raise DataError(f"{config.path}: cannot be read as a log of clicks, a .tsv with a header or .parquet "
                        f"({str(error)[:200]})") from None
    missing = [name for name in (config.query, config.image, config.clicks) if name not in columns]
    if missing:
        raise DataError(f"{config.path}: has no column {missing[0]} but {', '.join(columns[:8])}; name its columns by "
                        "clicks.query, clicks.image and clicks.clicks")
    return frame
