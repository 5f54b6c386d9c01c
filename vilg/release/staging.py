"""A released folder is written beside itself and put in place when it is whole."""
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vilg.errors import CheckpointError

PREFIX = ".writing-"
LAST = "model.yaml"
FILES = (LAST, "model.safetensors")


@contextlib.contextmanager
def staged(folder: Path, stale: list[str]) -> Iterator[Path]:
    """A folder to write to, whose files take the place of those in ``folder`` at the end. ``stale``: names of the parts
    of the release that is there now; those that are not written again are taken away.

    When writing fails nothing has changed. While files are moved there is no ``model.yaml``, so half a folder is never
    read as a whole one. What a process that was killed left behind is cleaned up by the next one that writes here.
    Raises CheckpointError for what the disk refuses.
    """
    stage = folder / f"{PREFIX}{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        stage.mkdir()
        yield stage
        for path in stage.rglob("*"):
            if path.is_file():
                _sync(path)
        _move(stage, folder, stale)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _move(stage: Path, folder: Path, stale: list[str]) -> None:
    (folder / LAST).unlink(missing_ok=True)
    for part in (folder / name for name in stale if not (stage / name).exists()):
        for name in FILES:
            (part / name).unlink(missing_ok=True)
        if part.is_dir() and not any(part.iterdir()):
            part.rmdir()
    files = sorted((path for path in stage.rglob("*") if path.is_file()),
                   key=lambda path: (path.name == LAST, -len(path.parts)))
    for path in files:
        target = folder / path.relative_to(stage)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    _sync(folder)


def _clean(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX}*"):
        writer = path.name.removeprefix(PREFIX)
        if not writer.isdigit() or int(writer) == os.getpid() or not Path(f"/proc/{writer}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
