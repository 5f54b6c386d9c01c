"""Zero-shot classification of images by the names of their classes, on folders in ELEVATER's layout (arXiv 2204.08790)
as Chinese-CLIP hands them out: ``label_cn.txt``, a class's Chinese name a line, and ``test/000``, ``test/001`` … with
the images of the first class, the second …"""
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from vilg.app.search.index import Encoder
from vilg.data.folders import walk_files
from vilg.data.images import IMAGE_SUFFIXES, read_image
from vilg.data.sample import BrokenSample
from vilg.errors import DataError
from vilg.evaluation.retrieval import embed_images
from vilg.metrics.retrieval import standing_of_vectors

LABELS = "label_cn.txt"


class Classifier(Encoder, Protocol):
    """An encoder that knows how classes are asked for."""

    def embed_classes(self, labels: Sequence[str], templates: Sequence[str] = ...) -> np.ndarray:
        """Names of classes → [C, D]: the vectors of all templates filled in, averaged, of length 1."""


def zero_shot_figures(model: Classifier, folder: str, templates: str | None = None) -> Iterator[tuple[str, float]]:
    """``accuracy`` and ``top5`` over images, ``mean_per_class`` over classes, and ``chance``, as shares; a class counts
    as found by its cosine alone, equal ones at chance. ``templates``: a file with a prompt a line, ``{}`` for the name
    (the model's own otherwise). Raises DataError for what is missing or damaged."""
    labels = _read_lines(Path(folder) / LABELS)
    files = _files(Path(folder) / "test", len(labels))
    chosen = () if templates is None else (_read_lines(Path(templates)),)
    classes = model.embed_classes(labels, *chosen)
    true = np.concatenate([np.full(len(paths), number) for number, paths in files.items()])
    paths = [path for members in files.values() for path in members]
    images = embed_images(model, map(_read, paths), "images", len(paths))
    standing = standing_of_vectors(images, classes, [[label] for label in true.tolist()])
    yield "accuracy", standing.recall(1)
    yield "top5", standing.recall(5)
    yield "mean_per_class", float(np.mean([
        standing_of_vectors(images[true == label], classes, [[label]] * int((true == label).sum())).recall(1)
        for label in files]))
    yield "chance", standing.chance(1)


def _read_lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not lines:
        raise DataError(f"{path}: is empty; write a name or a prompt a line")
    return lines


def _files(folder: Path, classes: int) -> dict[int, list[Path]]:
    """Images by number of class. Raises DataError for a folder that is the number of no class, and for no image."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; it holds a folder a class, 000, 001 …")
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not path.name.isdecimal() or int(path.name) >= classes:
            raise DataError(f"{path}: is not the number of a class; {LABELS} names {classes}, from 000 on")
        images = sorted(file for file in walk_files(path) if file.suffix.lower() in IMAGE_SUFFIXES)
        if images:
            found[int(path.name)] = images
    if not found:
        raise DataError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}) in a folder of a class")
    return found


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(path, str(path))
    except BrokenSample as problem:
        raise DataError(f"{path}: {problem.reason}; fetch it again, for without it the figures would be of other data"
                        ) from None
