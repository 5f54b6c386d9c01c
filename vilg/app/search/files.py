"""The folder of an index: ``search.json`` names a file of vectors and one of names, and is replaced last, so that a
reader finds the old index or the new one, never a mixture. What was embedded before a build was stopped lies in
``unfinished`` and is taken up by the next."""
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilg.errors import DataError

ABOUT, UNFINISHED = "search.json", "unfinished"
FORM = 1
_OURS = re.compile(r"search\.json|unfinished|vectors-[0-9a-f]{8}\.npy|names-[0-9a-f]{8}\.jsonl|\..*\.[0-9a-f]{8}")
AGAIN = "build it again with `tools/search.py index`"


@dataclass(frozen=True)
class About:
    """What ``search.json`` says: the model's name and fingerprint, width D of the vectors, path of the collection and
    the folder that names go from, images (N vectors), and by ``vectors`` and ``names`` the files and their hashes."""

    model: str
    fingerprint: str
    width: int
    path: str
    root: str
    images: int
    vectors: dict[str, str]
    names: dict[str, str]
    form: int = FORM


@dataclass(frozen=True)
class Entry:
    """An image of an index; ``broken`` says why it has no vector, "" for those that have one."""

    name: str
    mark: str
    broken: str = ""


def write_index(folder: Path, vectors: np.ndarray, entries: list[Entry], **said: Any) -> None:
    """Put an index in the place of what is there. ``said``: model, fingerprint, path and root. Raises DataError where
    it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps([entry.name, entry.mark, entry.broken]) + "\n" for entry in entries)
        about = About(**said, width=vectors.shape[1], images=len(vectors),
                      vectors=_write_hashed(folder, "vectors", ".npy", _npy(vectors)),
                      names=_write_hashed(folder, "names", ".jsonl", lines.encode()))
        _replace(folder / ABOUT, json.dumps(asdict(about), ensure_ascii=False, indent=1).encode() + b"\n")
        for path in [*folder.glob("vectors-*.npy"), *folder.glob("names-*.jsonl")]:
            if path.name not in (about.vectors["file"], about.names["file"]):
                path.unlink(missing_ok=True)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{folder}: the index cannot be written ({error.strerror or error})") from None


def read_index(folder: Path) -> tuple[About, np.ndarray, list[Entry]]:
    """What is known of an index, its vectors [N, D], mapped from their file, and its entries. Raises DataError when
    there is none, or a file is not as it was written."""
    about = read_about(folder)
    for said in (about.vectors, about.names):
        path = folder / said["file"]
        if not path.is_file() or _hash_of(path) != said["sha256"]:
            state = "is not as it was written" if path.is_file() else "is missing"
            raise DataError(f"{path}: {state}, so the index is damaged; {AGAIN}")
    vectors = np.load(folder / about.vectors["file"], mmap_mode="r", allow_pickle=False)
    lines = (folder / about.names["file"]).read_text(encoding="utf-8").splitlines()
    entries = [Entry(*json.loads(line)) for line in lines]
    found = sum(not entry.broken for entry in entries)
    if vectors.shape != (about.images, about.width) or found != about.images:
        raise DataError(f"{folder / ABOUT}: says {about.images} vectors of {about.width}, and the files hold "
                        f"{list(vectors.shape)} and {found} names; {AGAIN}")
    return about, vectors, entries


def read_about(folder: Path) -> About:
    """What ``search.json`` says. Raises DataError when there is none or it is no index."""
    path = folder / ABOUT
    try:
        said = json.loads(path.read_bytes())
        about = About(**said)
        whole = (about.form == FORM and all(isinstance(part["file"], str) and isinstance(part["sha256"], str)
                                            and Path(part["file"]).name == part["file"]
                                            for part in (about.vectors, about.names)))
    except FileNotFoundError:
        raise DataError(f"{folder}: holds no index ({ABOUT}); {AGAIN}") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise DataError(f"{path}: is damaged, or of another version of vilg; {AGAIN}")
    return about


def save_part(folder: Path, fingerprint: str, vectors: np.ndarray, entries: list[Entry]) -> None:
    """Keep what was embedded so far. Raises DataError where it cannot be written."""
    buffer = io.BytesIO()
    said = json.dumps({"fingerprint": fingerprint, "entries": [[one.name, one.mark] for one in entries]})
    np.savez(buffer, vectors=vectors, about=np.frombuffer(said.encode(), "uint8"))
    try:
        (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
        _replace(folder / UNFINISHED / f"{os.getpid()}-{secrets.token_hex(4)}.npz", buffer.getvalue())
    except OSError as error:
        raise DataError(f"{folder}: the index cannot be written ({error.strerror or error})") from None


def parts(folder: Path, fingerprint: str) -> Iterator[tuple[list[Entry], np.ndarray]]:
    """What earlier builds left, by the same model; a part that cannot be read is none."""
    for path in sorted((folder / UNFINISHED).glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as part:
                said = json.loads(part["about"].tobytes())
                entries, vectors = [Entry(*pair) for pair in said["entries"]], part["vectors"]
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            continue
        if said["fingerprint"] == fingerprint and len(vectors) == len(entries):
            yield entries, vectors


def check_place(folder: Path) -> None:
    """Refuse, before the work, a folder that holds anything but an index. Raises DataError."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name another folder for the index")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    strangers = {name for name in names if not _OURS.fullmatch(name)}
    if strangers:
        raise DataError(f"{folder}: holds other data already, such as {min(strangers)}; name another folder for the "
                        "index")


def _write_hashed(folder: Path, name: str, suffix: str, content: bytes) -> dict[str, str]:
    digest = hashlib.sha256(content).hexdigest()
    file = f"{name}-{digest[:8]}{suffix}"
    _replace(folder / file, content)
    return {"file": file, "sha256": digest}


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _npy(vectors: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(vectors, "float32"), allow_pickle=False)
    return buffer.getvalue()


def _hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
