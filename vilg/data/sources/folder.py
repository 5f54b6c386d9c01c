"""Where samples come from: drawn scenes, a folder, a table."""
from pathlib import Path
from typing import Literal

import numpy as np

from vilg.config import configclass
from vilg.data.caption_records import caption_lines, parse_record, readable
from vilg.data.folders import walk_files
from vilg.data.images import PICTURE_SUFFIXES, read_picture
from vilg.data.line_index import Lines
from vilg.data.sample import BrokenSample, Sample
from vilg.data.worlds.scenes import Scene, captions, parse_caption, questions, render, sample_scene
from vilg.data.worlds.scenes.constraints import Constraints
from vilg.errors import DataError


@configclass
class ScenesConfig:
    """Scenes drawn as training goes: seeds ``first`` to ``first + count - 1`` of a split, drawn at ``size`` pixels.

    ``kinds``: at least so many different colour–shape pairs in every scene (1 to 3); which words go with which object
    can only be learned where there are several. ``say`` prefers captions that give every object's place, or that set
    objects in relation; a scene of which nothing such was said keeps the captions that it has. ``wide`` scenes, of
    split train alone, show colours and shapes that are never tested; they teach that any colour goes with any shape.
    """

    kind: Literal["scenes"] = "scenes"
    split: Literal["train", "test", "unseen"] = "train"
    count: int = 100_000
    first: int = 0
    size: int = 64
    captions: int = 4
    questions: int = 5
    kinds: int = 1
    say: Literal["any", "places", "relations"] = "any"
    wide: bool = False
    repeat: int = 1

    def __post_init__(self):
        if min(self.count, self.size, self.captions, self.repeat) < 1 or min(self.first, self.questions) < 0:
            raise ValueError("count, size, captions and repeat are at least 1, first and questions at least 0")
        if not 1 <= self.kinds <= 3:
            raise ValueError(f"kinds is 1, 2 or 3 (a scene holds no more objects), not {self.kinds}")
        if self.kinds == 3 and self.split == "unseen":
            raise ValueError("kinds is at most 2 in split unseen, where every other scene is a pair of objects")
        if self.wide and self.split != "train":
            raise ValueError(f"wide scenes are for split train, not {self.split}: nothing judges their shapes")


@configclass
class FolderConfig:
    """Pictures anywhere under ``path``, each with a ``.txt`` of the same stem beside it, one caption a line.

    ``first_caption_only`` leaves the other lines out; the same folder listed twice, with and without, weighs the first.
    """

    kind: Literal["folder"] = "folder"
    path: str
    first_caption_only: bool = False
    repeat: int = 1


@configclass
class TableConfig:
    """A ``.tsv`` or ``.jsonl`` file of pictures and captions;
    picture paths are relative to ``pictures`` or the table's folder.

    TSV: picture path, then one caption a column. JSON lines: ``{"picture": …, "captions": […], "questions": [[q, a],
    …]}``, or ``"caption"`` for a single one; ``questions`` may be left out. ``first_caption_only`` as for a folder.
    """

    kind: Literal["table"] = "table"
    path: str
    pictures: str | None = None
    first_caption_only: bool = False
    repeat: int = 1


class ScenesSource:
    """Scenes of one split as samples; see :class:`ScenesConfig`."""

    def __init__(self, config: ScenesConfig):
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        seed = self.config.first + index
        scene = sample_scene(seed, self.config.split, self.config.kinds, self.config.wide)
        rng = np.random.default_rng([seed, 1])
        return Sample(f"scenes/{self.config.split}/{seed}", render(scene, self.config.size),
                      self._captions(scene, rng), questions(scene, rng, self.config.questions))

    def _captions(self, scene: Scene, rng: np.random.Generator) -> list[str]:
        number = self.config.captions
        if self.config.say == "any":
            return captions(scene, rng, number)
        texts = captions(scene, rng, 4 * number)
        return ([text for text in texts if self._says(parse_caption(text))] or texts)[:number]

    def _says(self, claims: Constraints) -> bool:
        if self.config.say == "relations":
            return bool(claims.relations)
        return all(group.cell for group in claims.groups)


class FolderSource:
    """A folder of pictures and caption files; see :class:`FolderConfig`. Raises DataError when there is no picture."""

    def __init__(self, config: FolderConfig):
        self.root = Path(config.path)
        self.taken = slice(1 if config.first_caption_only else None)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: there is no such folder of pictures")
        pictures = (path for path in walk_files(self.root) if path.suffix.lower() in PICTURE_SUFFIXES)
        # Names rather than paths, which take ten times the memory, in the order of the paths.
        self.pictures = sorted((path.relative_to(self.root).as_posix() for path in pictures),
                               key=lambda name: name.split("/"))
        if not self.pictures:
            raise DataError(f"{self.root}: holds no picture ({', '.join(PICTURE_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        path = self.root / self.pictures[index]
        shown = readable(path)
        return Sample(readable(self.pictures[index]), read_picture(path, shown),
                      caption_lines(path.with_suffix(".txt"), shown)[self.taken])


class TableSource:
    """Rows of a TSV or JSONL table; see :class:`TableConfig`. Raises DataError when the table cannot be read at all."""

    def __init__(self, config: TableConfig):
        self.path = Path(config.path)
        self.root = Path(config.pictures) if config.pictures else self.path.parent
        self.taken = slice(1 if config.first_caption_only else None)
        if self.path.suffix not in (".tsv", ".jsonl"):
            raise DataError(f"{self.path}: a table is a .tsv or a .jsonl file")
        try:
            self.rows = Lines(self.path, blank=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be read as a UTF-8 table ({error})") from None
        if not len(self.rows):
            raise DataError(f"{self.path}: the table is empty")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        number, line = self.rows.numbered(index)
        place = f"{readable(self.path)} line {number}"
        if self.path.suffix == ".tsv":
            name, *texts = line.split("\t")
            pairs: list[tuple[str, str]] = []
        else:
            name, texts, pairs = parse_record(line, place)
        if not name:
            raise BrokenSample(place, "names no picture")
        texts = [text.strip() for text in texts if text.strip()]
        if not texts:
            raise BrokenSample(f"{place} ({name})", "no caption")
        return Sample(name, read_picture(self.root / name, f"{place} ({name})"), texts[self.taken], pairs)
