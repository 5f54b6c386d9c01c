"""Retrieval benchmarks in their public files: images and texts, and which belong together.

Two layouts are read. Chinese-CLIP's and PaddleNLP's: ``{split}_imgs.tsv``, lines of ``id<TAB>base64``, and
``{split}_texts.jsonl``, lines of ``{"text_id": …, "text": …, "image_ids": […]}``. Baidu's: ``{split}.tsv`` or
``{split}.txt``, lines of ``text<TAB>image_id<TAB>base64``, with an image in each of its texts' lines.
Predictions are lines of ``{"text_id": …, "image_ids": [ten ids]}``.
"""
import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilg.data.images import read_image
from vilg.data.line_index import Lines
from vilg.data.sample import BrokenSample
from vilg.errors import DataError

PREDICTED = 10


@dataclass(frozen=True)
class Benchmark:
    """How a public benchmark is run: its ``split``, and how many of its texts count, in the order of the file (all
    where it is None)."""

    title: str
    split: str
    texts: int | None = None


BENCHMARKS = {
    "coco-cn": Benchmark("COCO-CN", "test"),
    "aic-icc": Benchmark("AIC-ICC", "valid", 10_000),  # the first 10 000 lines of validation
    "flickr30k-cn": Benchmark("Flickr30k-CN", "test"),
}


@dataclass(frozen=True)
class RetrievalSet:
    """``texts`` with their ids, and for each the numbers of the images that it is about; ``image_ids`` in order."""

    name: str
    text_ids: list[str]
    texts: list[str]
    image_ids: list[str]
    positives: list[list[int]]
    _lines: Lines
    _places: list[int]

    def images(self) -> Iterator[np.ndarray]:
        """The images, uint8 [H, W, 3], in order. Raises DataError naming the line of one that cannot be read: without
        it the figures would be of another benchmark."""
        for number in self._places:
            line, content = self._lines.numbered(number)
            place = f"{self._lines.path} line {line}"
            try:
                # Both alphabets are about; b64decode would leave letters of the other out in silence.
                coded = content.rsplit("\t", 1)[-1].strip().replace("-", "+").replace("_", "/")
                yield read_image(base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True), place)
            except (binascii.Error, BrokenSample) as problem:
                reason = problem.reason if isinstance(problem, BrokenSample) else f"not base64 ({problem})"
                raise DataError(f"{place}: {reason}; fetch the file again") from None

    def texts_of_images(self) -> list[list[int]]:
        """For every image the numbers of its texts."""
        found: list[list[int]] = [[] for _ in self.image_ids]
        for text, images in enumerate(self.positives):
            for image in images:
                found[image].append(text)
        return found


def read_retrieval(folder: str | Path, benchmark: Benchmark) -> RetrievalSet:
    """A benchmark from the folder that holds its files, in either layout; images that none of its texts is about are
    candidates too, unless only some texts count. Raises DataError naming what is missing or the line that is damaged.
    """
    folder = Path(folder)
    texts, images = folder / f"{benchmark.split}_texts.jsonl", folder / f"{benchmark.split}_imgs.tsv"
    if texts.is_file() and images.is_file():
        return _two_files(texts, images, benchmark)
    joined = next((path for suffix in ("tsv", "txt") if (path := folder / f"{benchmark.split}.{suffix}").is_file()),
                  None)
    if joined is None:
        raise DataError(f"{folder}: holds neither {images.name} and {texts.name} nor {benchmark.split}.tsv (or .txt); "
                        f"put the files of {benchmark.title} there, or name their folder with --data")
    return _one_file(joined, benchmark)


def normalised(text: str) -> str:
    """A text as the published numbers encode it: lower case, and straight quotation marks for curved ones."""
    return text.lower().replace("“", '"').replace("”", '"')


def write_predictions(path: str | Path, task: RetrievalSet, ranked: np.ndarray) -> None:
    """Write the ids of the best images of every text, numbers in ``ranked`` [T, 10]. Raises DataError."""
    lines = (json.dumps({"text_id": _number(text_id), "image_ids": [_number(task.image_ids[image]) for image in row]},
                        ensure_ascii=False) + "\n" for text_id, row in zip(task.text_ids, ranked.tolist()))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_predictions(path: str | Path, task: RetrievalSet) -> list[list[int]]:
    """The numbers of the images that a file of predictions has for every text, best first. Raises DataError for a line
    that is no prediction, an unknown id, and a text without one."""
    images = {name: number for number, name in enumerate(task.image_ids)}
    found: dict[str, list[int]] = {}
    for place, line in _numbered(_lines(Path(path))):
        said = _record(line, place, ("text_id", "image_ids"))
        ids = [str(image) for image in said["image_ids"]]
        unknown = [image for image in ids if image not in images]
        if unknown or len(set(ids)) != len(ids):
            raise DataError(f"{place}: image_ids has {unknown[0] if unknown else 'an id twice'}, where different ids "
                            f"of {task.name} are needed")
        found[str(said["text_id"])] = [images[image] for image in ids]
    missing = [text_id for text_id in task.text_ids if text_id not in found]
    if missing:
        raise DataError(f"{path}: has no prediction for text {missing[0]} of {task.name}, and {len(task.texts)} texts "
                        "want one each")
    return [found[text_id] for text_id in task.text_ids]


def _two_files(texts: Path, images: Path, benchmark: Benchmark) -> RetrievalSet:
    lines = _lines(images)
    known: dict[str, int] = {}
    for number in range(len(lines)):
        line, content = lines.numbered(number)
        name, tab, _ = content.partition("\t")
        if not tab or name in known:
            raise DataError(f"{images} line {line}: {'has the id of another line' if tab else 'is no id<TAB>base64'}; "
                            "fetch the file again")
        known[name] = number
    rows = []
    for place, line in _numbered(_lines(texts), benchmark.texts):
        said = _record(line, place, ("text_id", "text", "image_ids"))
        ids = list(dict.fromkeys(str(image) for image in said["image_ids"]))
        strangers = [image for image in ids if image not in known]
        if strangers or not ids:
            raise DataError(f"{place}: image_ids has {strangers[0] if ids else 'no id'}, where ids of {images.name} "
                            "are needed")
        rows.append((str(said["text_id"]), str(said["text"]), ids))
    return _assembled(benchmark, rows, known, lines)


def _one_file(path: Path, benchmark: Benchmark) -> RetrievalSet:
    lines = _lines(path)
    rows, known = [], {}
    for number in range(len(lines) if benchmark.texts is None else min(len(lines), benchmark.texts)):
        line, content = lines.numbered(number)
        columns = content.split("\t")
        if len(columns) != 3 or not columns[1]:
            raise DataError(f"{path} line {line}: has {len(columns)} columns, where text<TAB>image_id<TAB>base64 is "
                            "needed")
        known.setdefault(columns[1], number)
        rows.append((str(number), columns[0], [columns[1]]))
    return _assembled(benchmark, rows, known, lines)


def _assembled(benchmark: Benchmark, rows: list[tuple[str, str, list[str]]], known: dict[str, int],
               lines: Lines) -> RetrievalSet:
    if not rows:
        raise DataError(f"{lines.path.parent}: {benchmark.title} has no text there; fetch its files again")
    wanted = {image for _, _, ids in rows for image in ids}
    image_ids = [name for name in known if benchmark.texts is None or name in wanted]
    numbers = {name: number for number, name in enumerate(image_ids)}
    return RetrievalSet(benchmark.title, [text_id for text_id, _, _ in rows], [text for _, text, _ in rows], image_ids,
                        [[numbers[image] for image in ids] for _, _, ids in rows], lines,
                        [known[name] for name in image_ids])


def _lines(path: Path) -> Lines:
    try:
        return Lines(path, blank=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _numbered(lines: Lines, most: int | None = None) -> Iterator[tuple[str, str]]:
    for number in range(len(lines) if most is None else min(len(lines), most)):
        line, content = lines.numbered(number)
        yield f"{lines.path} line {line}", content


def _record(line: str, place: str, keys: tuple[str, ...]) -> dict:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not all(key in said for key in keys) or not isinstance(said["image_ids"], list):
        raise DataError(f"{place}: is no record with {', '.join(keys)}")
    return said


def _number(name: str) -> int | str:
    """An id as it stood in the file: most are numbers."""
    return int(name) if name.isdecimal() and str(int(name)) == name else name
