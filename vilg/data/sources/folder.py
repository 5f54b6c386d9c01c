"""A folder of images, each with a file of captions beside it."""
from pathlib import Path
from typing import Literal

from vilg.config import configclass
from vilg.data.caption_records import caption_lines, readable
from vilg.data.folders import walk_files
from vilg.data.images import IMAGE_SUFFIXES, read_image
from vilg.data.sample import Reading, Sample
from vilg.errors import DataError


@configclass
class FolderConfig:
    """Images anywhere under ``path``, each with a ``.txt`` of the same stem beside it, one caption a line.

    ``first_caption_only`` leaves the other lines out; the same folder listed twice, with and without, weighs the first.
    """

    kind: Literal["folder"] = "folder"
    path: str
    first_caption_only: bool = False
    repeat: int = 1


class FolderSource:
    """A folder of images and caption files; see :class:`FolderConfig`. Raises DataError when there is no image."""

    def __init__(self, config: FolderConfig, reading: Reading = Reading()):
        self.reading = reading
        self.root = Path(config.path)
        self.taken = slice(1 if config.first_caption_only else None)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: there is no such folder of images")
        images = (path for path in walk_files(self.root) if path.suffix.lower() in IMAGE_SUFFIXES)
        # Names rather than paths, which take ten times the memory, in the order of the paths.
        self.images = sorted((path.relative_to(self.root).as_posix() for path in images),
                               key=lambda name: name.split("/"))
        if not self.images:
            raise DataError(f"{self.root}: holds no image ({', '.join(IMAGE_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        path = self.root / self.images[index]
        shown = readable(path)
        texts = caption_lines(path.with_suffix(".txt"), shown)[self.taken] if self.reading.texts else []
        return Sample(readable(self.images[index]), read_image(path, shown, self.reading), texts)
