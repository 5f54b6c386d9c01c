"""A person's folder, looked at before anything is trained: what is usable, what is held out, what is not known."""
import dataclasses
import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilg.data.broken import BrokenLog
from vilg.data.caption_records import write_record
from vilg.data.sample import BrokenSample, Reading, Sample
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.transforms import centre_crop
from vilg.errors import DataError, VilgError
from vilg.progress import progress

log = logging.getLogger("vilg.finetuning")
LEAST_PICTURES = 20
LEAST_TEXTS = 5
HELD_OUT = 10
"""One picture of so many is held out."""
TRAIN, HELD = "train.jsonl", "held_out.jsonl"


@dataclass
class Looked:
    """What a folder holds: pictures uint8 [N, S, S, 3] of ``train`` and ``held`` samples, in their order, and what
    was left out, by reason."""

    train: list[Sample]
    held: list[Sample]
    broken: str

    def texts(self) -> list[str]:
        """All captions, questions and answers."""
        return [text for sample in (*self.train, *self.held)
                for text in (*sample.captions, *(part for pair in sample.questions for part in pair))]


def look(folder: str | Path, size: int, max_broken: float = 0.5) -> Looked:
    """Read a folder of pictures and captions, or a table, every picture cropped to ``size``; a tenth is held out, by
    the hash of its name, so that it is the same one next time. Raises DataError when there is too little to learn from:
    too few pictures, hardly a caption beside one, too many that cannot be read."""
    path = Path(folder).expanduser()
    reading = Reading(least_side=size)
    source = (TableSource(TableConfig(path=str(path)), reading) if path.is_file()
              else FolderSource(FolderConfig(path=str(path)), reading))
    broken, samples = BrokenLog(len(source), max_broken), []
    for index in progress(range(len(source)), desc="looking", unit="picture"):
        try:
            sample = source[index]
        except BrokenSample as problem:
            broken.add(problem)
            continue
        broken.any_good = True
        samples.append(dataclasses.replace(sample, image=centre_crop(sample.image, size)))
    if len(samples) < LEAST_PICTURES:
        left = f" ({broken.counts()} left out)" if len(broken) else ""
        raise DataError(f"{path}: {len(samples)} pictures with captions{left} are too few to learn from; bring at "
                        f"least {LEAST_PICTURES}, better several hundred")
    texts = Counter(caption for sample in samples for caption in sample.captions)
    if len(texts) < LEAST_TEXTS:
        raise DataError(f"{path}: its {len(samples)} pictures have {len(texts)} captions in all, such as "
                        f"{next(iter(texts))[:40]!r}, so a text says nothing about its picture; write for each what it "
                        "shows")
    common, count = texts.most_common(1)[0]
    if count > 0.5 * len(samples):
        log.warning("%s: %d of %d pictures have the caption %s; what is said of all teaches nothing about one", path,
                    count, len(samples), common[:40])
    ordered = sorted(samples, key=lambda sample: hashlib.sha256(sample.key.encode("utf-8", "replace")).digest())
    held = max(2, len(ordered) // HELD_OUT)
    return Looked(ordered[held:], ordered[:held], broken.counts() if len(broken) else "")


def write_tables(looked: Looked, output: Path) -> None:
    """The two parts as tables of their own, with the pictures as they are trained on."""
    from PIL import Image

    for name, samples in ((TRAIN, looked.train), (HELD, looked.held)):
        folder = output / "pictures" / name.removesuffix(".jsonl")
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, sample in enumerate(samples):
            file = folder / f"{number:06d}.png"
            Image.fromarray(sample.image).save(file)
            lines.append(write_record(Sample(sample.key, None, sample.captions, sample.questions),
                                      picture=str(file.relative_to(output))))
        (output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def stack(samples: list[Sample], most: int | None = None) -> np.ndarray:
    """Their pictures: uint8 [N, S, S, 3]. Raises VilgError for none."""
    if not samples:
        raise VilgError("there is no picture to look at")
    return np.stack([sample.image for sample in samples[:most]])

