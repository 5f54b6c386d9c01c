"""An output folder that work is resumed in: whose it is, and files that are there whole or not at all."""
import json
import os
from pathlib import Path
from typing import Any

from vilg.errors import ConfigError, DataError

CLAIM = "run.json"


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def claim(folder: str | Path, settings: dict[str, Any]) -> None:
    """Begin or go on with the work of ``settings`` in ``folder``. Raises ConfigError naming the first setting that
    differs from those of the work that is there, and both values."""
    path = Path(folder) / CLAIM
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ConfigError(f"{path}: is not whole; delete the folder or choose another --output") from None
        other = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if other:
            raise ConfigError(f"{folder}: holds work with {other[0]} {before.get(other[0])}, and this is with "
                              f"{settings.get(other[0])}; choose another --output, or delete it")
        return
    write_whole(path, json.dumps(settings, ensure_ascii=False, indent=1).encode())
