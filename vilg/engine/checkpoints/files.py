"""Files that survive: written whole, synced, checked."""
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vilg.errors import ConfigError


def make_directory(path: Path) -> None:
    """Create the directory ``path`` and try to write in it. Raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written ({error.strerror}); choose another directory") from None


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that it is either absent or whole, and on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)
