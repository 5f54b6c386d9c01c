"""Building an index of images, and opening it with the model that it was built by."""
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vilg.app.search.collection import Collection, Item, open_collection
from vilg.app.search.files import Entry, check_place, parts, read_index, save_part, write_index
from vilg.app.search.nearest import Backend, Neighbours
from vilg.data.broken import BrokenLog
from vilg.data.sample import BrokenSample
from vilg.errors import DataError
from vilg.progress import progress as progress_bar

logger = logging.getLogger(__name__)
BATCH = 64
PART = 1024
"""Images after which what was embedded is kept, should the build be stopped."""
AHEAD = 2
"""Batches that are read while another is embedded."""


class Encoder(Protocol):
    """What embeds: a dual encoder as :func:`vilg.load` gives it. Vectors are float32, of length 1."""

    name: str
    fingerprint: str

    def embed_text(self, texts: Sequence[str], strict: bool = True) -> np.ndarray:
        """Texts → [N, D]. Raises VilgError for one that is empty or of no word that the model knows; one that is too
        long is refused as well, or cut where that is not ``strict``."""

    def embed_image(self, images: Sequence[Any]) -> np.ndarray:
        """Images, as files, PIL images or uint8 [H, W, 3] → [N, D]."""


@dataclass(frozen=True)
class Built:
    """How many images an index holds, how many of those were embedded now, and how many cannot be read."""

    images: int
    embedded: int
    broken: int


@dataclass(frozen=True)
class SearchIndex:
    """An open index of the collection at ``path``: ``neighbours`` over vectors [N, D]; ``names`` [N] are paths from
    ``root`` on."""

    folder: Path
    fingerprint: str
    path: Path
    root: Path
    names: list[str]
    neighbours: Neighbours


def build_index(encoder: Encoder, collection: Collection, folder: str | Path, max_broken: float = 0.1,
                workers: int = 2, progress: bool = True) -> Built:
    """Embed the images of ``collection`` and write their index into ``folder``, in place of an earlier one.

    Images that the earlier one has, or a build that was stopped, by the same model and unchanged since, are not
    embedded again. Raises DataError when the folder holds other data or cannot be written, and when more than
    ``max_broken`` of the images are broken.
    """
    folder = Path(folder)
    check_place(folder)
    known = _known(folder, encoder.fingerprint)
    todo = [item for item in collection.items if (item.name, item.mark) not in known]
    broken = BrokenLog(len(collection.items), max_broken)
    reasons: dict[str, str] = {}
    fresh: list[Entry] = []
    vectors: list[np.ndarray] = []
    with progress_bar(total=len(todo), desc="embedding", unit="image", shown=progress) as bar:
        for batch in _read(collection, todo, workers):
            whole = [(item, image) for item, image in batch if not isinstance(image, BrokenSample)]
            for item, problem in batch:
                if isinstance(problem, BrokenSample):
                    reasons[item.name] = problem.reason
                    broken.add(problem)
            if whole:
                vectors.append(encoder.embed_image([image for _, image in whole]))
                fresh += [Entry(item.name, item.mark) for item, _ in whole]
            if len(fresh) >= PART:
                _keep(folder, encoder.fingerprint, fresh, vectors, known)
            bar.update(len(batch))
    embedded = len(todo) - len(reasons)
    _keep(folder, encoder.fingerprint, fresh, vectors, known)
    broken.report()
    entries = [Entry(item.name, item.mark, reasons.get(item.name, "")) for item in collection.items]
    rows = [known[entry.name, entry.mark] for entry in entries if not entry.broken]
    if not rows:
        raise DataError(f"{collection.path}: not one of its {len(entries)} images can be read")
    write_index(folder, np.stack(rows), entries, model=encoder.name, fingerprint=encoder.fingerprint,
                path=str(collection.path), root=str(collection.root))
    return Built(len(rows), embedded, len(reasons))


def open_index(folder: str | Path, encoder: Encoder, backend: Backend = "numpy", unchecked: bool = False
               ) -> SearchIndex:
    """Open an index to be searched with ``encoder``. ``unchecked``: even when its images have changed since.

    Raises DataError for an index of another model, a damaged one, and one whose images have changed.
    """
    about, vectors, entries = read_index(Path(folder))
    if about.fingerprint != encoder.fingerprint:
        raise DataError(f"{folder}: is an index by {about.model} ({about.fingerprint}), and {encoder.name} is "
                        f"{encoder.fingerprint}; search with that model, or index {about.path} again with this one")
    if not unchecked:
        _refuse_changed(Path(folder), entries, about.path)
    names = [entry.name for entry in entries if not entry.broken]
    return SearchIndex(Path(folder), about.fingerprint, Path(about.path), Path(about.root), names,
                       Neighbours(vectors, backend))


def _known(folder: Path, fingerprint: str) -> dict[tuple[str, str], np.ndarray]:
    """Vectors by (name, mark) that need not be made again."""
    known: dict[tuple[str, str], np.ndarray] = {}
    try:
        about, vectors, entries = read_index(folder)
        if about.fingerprint == fingerprint:
            whole = [entry for entry in entries if not entry.broken]
            known = {(entry.name, entry.mark): vector for entry, vector in zip(whole, vectors)}
    except DataError as problem:
        logger.debug("nothing is taken over: %s", problem)  # it is about to be replaced
    for entries, vectors in parts(folder, fingerprint):
        known |= {(entry.name, entry.mark): vector for entry, vector in zip(entries, vectors)}
    return known


def _keep(folder: Path, fingerprint: str, fresh: list[Entry], vectors: list[np.ndarray],
          known: dict[tuple[str, str], np.ndarray]) -> None:
    """Write a part, add it to what is known, and begin the next."""
    if fresh:
        together = np.concatenate(vectors)
        save_part(folder, fingerprint, together, fresh)
        known |= {(entry.name, entry.mark): vector for entry, vector in zip(fresh, together)}
        fresh.clear()
        vectors.clear()


def _read(collection: Collection, items: list[Item], workers: int
          ) -> Iterator[list[tuple[Item, np.ndarray | BrokenSample]]]:
    """Batches of images, or what is wrong with them, read ahead in threads."""
    batches = (items[start:start + BATCH] for start in range(0, len(items), BATCH))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead = deque([(batch, pool.map(lambda item: _image(collection, item), batch))
                       for batch in itertools.islice(batches, AHEAD)])
        while ahead:
            batch, images = ahead.popleft()
            ahead += [(later, pool.map(lambda item: _image(collection, item), later))
                      for later in itertools.islice(batches, 1)]
            yield list(zip(batch, images))


def _image(collection: Collection, item: Item) -> np.ndarray | BrokenSample:
    try:
        return collection.read(item)
    except BrokenSample as problem:
        return problem


def _refuse_changed(folder: Path, entries: list[Entry], path: str) -> None:
    there = {item.name: item.mark for item in open_collection(path).items}
    indexed = {entry.name: entry.mark for entry in entries}
    new, gone = len(there.keys() - indexed.keys()), len(indexed.keys() - there.keys())
    changed = sum(there[name] != mark for name, mark in indexed.items() if name in there)
    if new or gone or changed:
        raise DataError(f"{path}: has changed since {folder} was built ({new} images new, {gone} gone, {changed} "
                        "changed); run `tools/search.py index` again, which embeds only those, or search --unchecked")
