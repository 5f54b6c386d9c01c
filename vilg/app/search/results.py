"""Hits as records, as lines for people, and as a contact sheet."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilg.app.image_files import save_whole
from vilg.app.pipeline import open_picture
from vilg.app.search.collection import Collection, open_collection
from vilg.app.search.index import SearchIndex
from vilg.app.search.query import Hit
from vilg.app.sheet import table
from vilg.data.sample import BrokenSample

NOTHING = "nothing matches"
CELL = 96  # pixels a side


def records(queries: Sequence[Any], hits: Sequence[Sequence[Hit]]) -> list[dict[str, Any]]:
    """``{"query": …, "hits": [{"image": path, "cosine": …, "similarity": …}]}`` a query; images have no similarity."""
    return [{"query": str(query), "hits": [_record(hit) for hit in row]} for query, row in zip(queries, hits)]


def lines(queries: Sequence[Any], hits: Sequence[Sequence[Hit]]) -> list[str]:
    """A query, then a line a hit: similarity in 0–1, or an image's cosine, and path."""
    told = []
    for query, row in zip(queries, hits):
        told += [str(query), *(f"  {_score(hit):.3f}  {hit.path}" for hit in row)]
        told += [] if row else [f"  {NOTHING}"]
    return told


def write_sheet(file: str | Path, index: SearchIndex, queries: Sequence[Any], hits: Sequence[Sequence[Hit]],
                images: Sequence[Any] = ()) -> None:
    """Write the hits of every query as a row of images, best first, behind their scores; ``images`` are the queries
    where those are images, and begin the rows. Hits that cannot be read any more are left grey. Raises VilgError where
    the file cannot be written."""
    collection, rows = open_collection(index.path, CELL), []
    for number, (query, row) in enumerate(zip(queries, hits)):
        shown = [_square(open_picture(images[number]))] if images else []
        shown += [_square(np.asarray(image)) for image in read_hits(collection, row)]
        scores = "  ".join(f"{_score(hit):.2f}" for hit in row) or NOTHING
        rows.append((f"{query}\n{scores}", shown))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_whole(table(rows, scale=1), Path(file))


def read_hits(collection: Collection, hits: Sequence[Hit]) -> list[Image.Image]:
    """The images of hits; grey where one cannot be read any more."""
    items, images = {item.name: item for item in collection.items}, []
    for hit in hits:
        try:
            images.append(Image.fromarray(collection.read(items[hit.name])))
        except (KeyError, BrokenSample):
            images.append(Image.new("RGB", (CELL, CELL), "lightgrey"))
    return images


def _record(hit: Hit) -> dict[str, Any]:
    said = {"image": hit.path, "cosine": hit.cosine}
    return said if hit.similarity is None else said | {"similarity": hit.similarity}


def _score(hit: Hit) -> float:
    return hit.cosine if hit.similarity is None else hit.similarity


def _square(pixels: np.ndarray) -> Image.Image:
    """The whole image, fitted into a white square."""
    image = Image.fromarray(pixels)
    image.thumbnail((CELL, CELL))
    square = Image.new("RGB", (CELL, CELL), "white")
    square.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return square
