"""AIC-ICC: the Chinese captions of AI Challenger 2017, five an image; papers train on train and score validation."""
import os
from pathlib import Path
from typing import Any

from vilg.data.benchmarks.files import CaptionedImages, field, only_match, read_json
from vilg.errors import DataError

SPLITS = ("train", "validation")


def image_key(image_id: Any) -> str:
    """The name of an image without ``.jpg``: annotations have it and submissions leave it out."""
    return os.path.basename(str(image_id).strip()).removesuffix(".jpg")


def read_aic_icc(root: str | Path, split: str = "validation") -> CaptionedImages:
    """A split as it is unpacked: ``caption_validation_annotations_20170910.json``, a list of {"image_id", "caption":
    five texts}, and the folder ``caption_validation_images_20170910`` beside it.

    Raises DataError for another split, a file that is not there or is something else, and an image that comes twice.
    """
    if split not in SPLITS:
        raise DataError(f"AIC-ICC has the splits {' and '.join(SPLITS)}, not {split}")
    path = only_match(Path(root), f"caption_{split}_annotations_*.json", f"AIC-ICC's {split}")
    records = read_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f'{path}: AIC-ICC\'s annotations are a list of {{"image_id": "….jpg", "caption": ["…"]}}')
    folder = path.with_name(path.stem.replace("annotations", "images"))
    paths, references = {}, {}
    for number, record in enumerate(records, 1):
        place = f"{path}: record {number}"
        name, texts = field(record, "image_id", str, place), field(record, "caption", list, place)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{place}: caption of {name} is a list of texts, none of them blank")
        key = image_key(name)
        if key in references:
            raise DataError(f"{place}: image {name} came before; keep its captions in one record")
        paths[key], references[key] = folder / f"{key}.jpg", texts
    if not references:
        raise DataError(f"{path}: holds no image")
    spaced = sum(len(text.split()) > 1 for texts in references.values() for text in texts)
    # Some pass the annotations on with words already cut; a few stray spaces do not make such a file.
    comes_cut = spaced > 0.9 * sum(map(len, references.values()))
    return CaptionedImages(f"aic-icc {split}", paths, references, comes_cut, image_key)
