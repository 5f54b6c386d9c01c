"""A folder of images, each with a file of captions beside it."""
import logging
from collections import Counter
from pathlib import Path
from typing import Literal

from vilg.config import configclass
from vilg.data.broken import counted, refuse_wholly_wrong
from vilg.data.caption_records import caption_lines, readable
from vilg.data.folders import walk_files
from vilg.data.images import IMAGE_SUFFIXES, is_image_name, read_image
from vilg.data.sample import BrokenSample, Reading, Sample
from vilg.errors import DataError

logger = logging.getLogger(__name__)
CAPTION_SUFFIXES = (".txt", ".text", ".caption", ".caption.txt")  # the first that is there is read
TABLE_SUFFIXES = (".jsonl", ".tsv")  # of the same folder, for another source: nothing that was left out


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
    """A folder of images and caption files; see :class:`FolderConfig`. A run that reads no texts needs none of these.

    Files that are neither are counted by suffix in the log. Raises DataError when there is no image, and when none of
    the first has captions that a run needs.
    """

    def __init__(self, config: FolderConfig, reading: Reading = Reading()):
        self.reading = reading
        self.root = Path(config.path).expanduser()
        self.taken = slice(1 if config.first_caption_only else None)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: there is no such folder of images")
        self._sort()
        if not self.images:
            found = f"; it holds {counted(self._others)}" if self._others else ""
            raise DataError(f"{self.root}: holds no image ({', '.join(IMAGE_SUFFIXES)}){found}")
        left_out = Counter({suffix: count for suffix, count in self._others.items() if suffix not in TABLE_SUFFIXES})
        if left_out:
            logger.warning("%s: left out what is neither image nor captions: %s", self.root, counted(left_out))
        if reading.texts:
            refuse_wholly_wrong(str(self.root), range(len(self)), self._texts, lambda: (
                f"captions stand beside an image in a file of its stem with {', '.join(CAPTION_SUFFIXES)}; besides "
                f"images the folder holds {counted(self._others) or 'nothing'}"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        texts = self._texts(index)[self.taken] if self.reading.texts else []
        path = self.root / self.images[index]
        return Sample(readable(self.images[index]), read_image(path, readable(path), self.reading), texts)

    def _sort(self) -> None:
        """Tell the folder's files apart: images by name, suffixes of caption files, others by suffix."""
        images: list[str] = []
        written: set[str] = set()
        self._others: Counter[str] = Counter()
        for path in walk_files(self.root):
            if is_image_name(path.name):
                images.append(path.relative_to(self.root).as_posix())
            elif path.suffix.lower() in CAPTION_SUFFIXES:
                longer = "".join(path.suffixes[-2:])
                written.add(longer if longer.lower() in CAPTION_SUFFIXES else path.suffix)
            else:
                self._others[path.suffix.lower() or "without suffix"] += 1
        # Names rather than paths, which take ten times the memory, in the order of the paths.
        self.images = sorted(images, key=lambda name: name.split("/"))
        self.caption_suffixes = sorted(written, key=lambda suffix: (CAPTION_SUFFIXES.index(suffix.lower()), suffix))

    def _texts(self, index: int) -> list[str]:
        return texts_beside(self.root / self.images[index], self.caption_suffixes)


def texts_beside(path: Path, suffixes: list[str]) -> list[str]:
    """The captions beside an image, of the first of ``suffixes`` that is there. Raises BrokenSample."""
    for suffix in suffixes:
        file = path.with_name(path.stem + suffix)
        if file.is_file():
            return caption_lines(file, readable(path))
    raise BrokenSample(readable(path), f"no caption file {readable(path.stem)}.txt", "no caption file")
