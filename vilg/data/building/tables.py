"""The tables that a build writes down, as parquet, a few thousand rows at a time."""
import json
from pathlib import Path
from typing import Any

SAMPLES = {"order": "int64", "key": "string", "source": "string", "own": "string", "texts": "int32", "said": "json",
           "suffix": "string", "start": "int64", "size": "int64", "same_bytes": "uint64", "same_pixels": "uint64",
           "look": "uint64", "proof": "binary"}
TEXTS = {"order": "int64", "place": "int32", "text": "string", "same_text": "uint64"}
DROPPED = {"order": "int64", "key": "string", "source": "string", "rule": "string", "value": "string",
           "text": "string", "place": "int32", "sample": "bool"}
CLICKED = {"part": "int32", "own": "string", "url": "string"}
ROWS = 4096
PART_BITS = 32
"""An order is the number of a sample's part above these bits, and below them its place in it."""


class Writer:
    """Rows as tuples in the order of a schema's columns, written when there are many; a context manager."""

    def __init__(self, path: Path, schema: dict[str, str]):
        from pyarrow import parquet

        self.schema = arrow_schema(schema)
        self._json = [kind == "json" for kind in schema.values()]
        self._file = parquet.ParquetWriter(path, self.schema)
        self._rows: list[tuple] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """Take a row."""
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._flush()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *problem: object) -> None:
        if problem[0] is None:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow

        columns = list(zip(*self._rows)) or [()] * len(self._json)
        texts = [[json.dumps(value, ensure_ascii=False) for value in column] if as_json else column
                 for column, as_json in zip(columns, self._json)]
        arrays = [pyarrow.array(column, kind) for column, kind in zip(texts, self.schema.types)]
        self._file.write_table(pyarrow.table(arrays, schema=self.schema))
        self._rows = []


def arrow_schema(schema: dict[str, str]) -> Any:
    """A schema as pyarrow's."""
    import pyarrow

    kinds = {"json": pyarrow.string(), "bool": pyarrow.bool_()}
    return pyarrow.schema([(name, kinds.get(kind) or getattr(pyarrow, kind)()) for name, kind in schema.items()])
