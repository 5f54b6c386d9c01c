"""The files of a build: written under another name and renamed when they are whole, marks last."""
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vilg.errors import DataError

WORK = "unfinished"
"""Folder in the output that holds what is not shards yet; it goes when the build is done."""


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name to write to in place of ``path``; the file gets its own name when the block ends well, else goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # a mark on the disk must not outlive what it marks
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Plain values as JSON, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file of a build says. Raises DataError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it belongs to a build, so remove the build's folder and "
                        "build again") from None
