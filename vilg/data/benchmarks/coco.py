"""MS-COCO 2014 (Lin et al., arXiv 1405.0312): its images' names, and Chinese prompts for them.

COCO's own captions are English; the prompts of a Chinese model are a translation that each user brings, so the file's
digest belongs to every score.
"""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilg.data.benchmarks.files import digest_of, field, keyed, read_jsonl
from vilg.data.folders import walk_files
from vilg.data.images import is_image_name
from vilg.errors import DataError

_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?0*(\d{1,12})(?:\.jpg)?(?:#.*)?")


@dataclass(frozen=True)
class Prompt:
    """A caption to draw from, and the number of the COCO image that it was written about."""

    image_id: str
    caption: str


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, in its order, and the file's digest."""

    prompts: list[Prompt]
    digest: str


def image_key(image_id: Any) -> str:
    """The number of an image, as text, from a number, ``COCO_val2014_000000000042``, with or without ``.jpg`` or
    ``#0``. Raises DataError for what is none of these."""
    found = _NAME.fullmatch(str(image_id).strip())
    if not found:
        raise DataError(f"{image_id!r} is not a COCO image; write 42 or COCO_val2014_000000000042")
    return found[1]


def image_path(root: str | Path, split: str, image_id: Any) -> Path:
    """Where the image of that number lies: ``root/val2014/COCO_val2014_000000000042.jpg``."""
    return Path(root) / split / f"COCO_{split}_{image_key(image_id).zfill(12)}.jpg"


def read_prompts(path: str | Path) -> Prompts:
    """Prompts from a file of {"image_id", "caption", "source"}, one a line. Raises DataError naming a line, and for a
    prompt that stands there twice."""
    seen: dict[Prompt, str] = {}
    for place, record in read_jsonl(path):
        prompt = Prompt(keyed(image_key, field(record, "image_id", (str, int), place), place),
                        field(record, "caption", str, place).strip())
        if prompt in seen:
            raise DataError(f"{place}: image {prompt.image_id} has this caption in {seen[prompt]} already; keep one")
        seen[prompt] = place
    if not seen:
        raise DataError(f'{path}: holds no prompt; write {{"image_id": 42, "caption": "…", "source": "…"}} a line')
    return Prompts(list(seen), digest_of(path))


def image_files(folder: str | Path) -> list[Path]:
    """The images under ``folder``, or under its ``val2014`` where it has one, by their names. Raises DataError when
    there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    folder = folder / "val2014" if (folder / "val2014").is_dir() else folder
    files = sorted(path for path in walk_files(folder) if is_image_name(path))
    if not files:
        raise DataError(f"{folder}: holds no image; name the folder that does")
    return files
