"""Finding the files of a folder."""
import os
from collections.abc import Iterator
from pathlib import Path


def is_hidden(name: str) -> bool:
    """Whether a file's or folder's name marks what programs keep for themselves (``.ipynb_checkpoints``, macOS's
    ``._a.jpg`` and ``__MACOSX``): no data."""
    return name.startswith(".") or name == "__MACOSX"


def walk_files(root: str | Path) -> Iterator[Path]:
    """Every file under ``root`` that is not hidden, in no order, links to folders followed.

    A folder that can be reached in several ways comes once: by its own path where that is under ``root``, else by the
    link whose path sorts first. So links in a circle end too.
    """
    seen: set[tuple[int, int]] = set()
    tops = [str(root)]
    while tops:
        links = []
        for top in tops:
            for folder, folders, files in os.walk(top):
                place = os.stat(folder)
                if (place.st_dev, place.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((place.st_dev, place.st_ino))
                folders[:] = [name for name in folders if not is_hidden(name)]
                links += [path for name in folders if os.path.islink(path := os.path.join(folder, name))]
                yield from (Path(folder, name) for name in files if not is_hidden(name))
        tops = sorted(links)
