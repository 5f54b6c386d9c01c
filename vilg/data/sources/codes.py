"""Images turned into codes once: the cache that training reads instead of running the image tokenizer.

A folder of ``codes.safetensors`` ("codes" uint16 [N, n] or uint32 beyond 65 536 codes; its metadata holds the image
tokenizer's fingerprint) and ``texts.jsonl`` (line i: key, captions, questions and facts of sample i).
"""
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors

from vilg.config import configclass
from vilg.data.broken import BrokenLog
from vilg.data.caption_records import parse_record, readable, write_record
from vilg.data.line_index import Lines
from vilg.data.sample import BrokenSample, Sample, Source
from vilg.data.transforms import centre_crop
from vilg.errors import DataError
from vilg.progress import progress
from vilg.weights.files import save_weights

CODES_FILE, TEXTS_FILE = "codes.safetensors", "texts.jsonl"


@configclass
class CodesConfig:
    """A folder that tools/encode_images.py wrote. ``first_caption_only`` leaves the other captions out."""

    kind: Literal["codes"] = "codes"
    path: str
    first_caption_only: bool = False
    repeat: int = 1


class CodesSource:
    """Samples with codes in the place of images; see :class:`CodesConfig`.

    Codes and texts stay in their files until a sample is asked for. Raises DataError when the folder is not whole, or
    when ``fingerprint``, the image tokenizer's of this run, is not that of the tokenizer which made the codes.
    """

    def __init__(self, config: CodesConfig, fingerprint: str | None):
        self.path = Path(config.path).expanduser()
        self.taken = slice(1 if config.first_caption_only else None)
        self.codes, made_by = _map_codes(self.path / CODES_FILE)
        if fingerprint is None:
            raise DataError(f"{self.path}: holds codes, and this task trains on images; name their sources")
        if made_by != fingerprint:
            raise DataError(f"{self.path}: was encoded by image tokenizer {made_by}, this run's is {fingerprint}; "
                            "encode the images again with tools/encode_images.py")
        try:
            self.texts = Lines(self.path / TEXTS_FILE)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / TEXTS_FILE}: cannot be read ({error}); encode the images again") from None
        if len(self.texts) != len(self.codes):
            raise DataError(f"{self.path}: has {len(self.codes)} images' codes and {len(self.texts)} lines of text; "
                            "encode the images again")

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Sample:
        number, line = self.texts.numbered(index)
        place = f"{readable(self.path / TEXTS_FILE)} line {number}"
        record = parse_record(line, place, ("key",))
        if not record.captions:
            raise BrokenSample(place, "no caption")
        return Sample(record.name, None, record.captions[self.taken], record.questions,
                      self.codes[index].astype(np.int64), record.facts)


@dataclass
class EncodingReport:
    """How many samples were written and how many were broken."""

    written: int
    broken: int


def write_codes(folder: str | Path, source: Source, encode: Callable[[np.ndarray], np.ndarray], size: int,
                fingerprint: str, batch_size: int = 64, max_broken: float = 0.1) -> EncodingReport:
    """Encode every usable sample of ``source`` and write the cache; codes last, so that half a cache is never read.

    ``encode`` takes uint8 [B, size, size, 3] and returns codes [B, n]. Raises DataError when the folder cannot be
    written or more than ``max_broken`` of the samples are broken.
    """
    folder = Path(folder)
    broken = BrokenLog(len(source), max_broken)
    rows = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CODES_FILE, TEXTS_FILE):  # not written over: a run that reads them goes on
            (folder / name).unlink(missing_ok=True)
        with (open(folder / TEXTS_FILE, "w", encoding="utf-8") as texts,
              progress(total=len(source), desc="encoding", unit="image") as bar):
            usable = _usable(source, size, broken, bar.update)
            while samples := list(islice(usable, batch_size)):
                rows.append(_narrow(encode(np.stack([sample.image for sample in samples]))))
                for sample in samples:
                    texts.write(write_record(sample, key=sample.key) + "\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None
    broken.report()
    if not rows:
        raise DataError(f"{folder}: there is not one usable sample to encode")
    codes = np.concatenate(rows)
    save_weights(folder / CODES_FILE, {"codes": codes}, {"image_tokenizer": fingerprint})
    return EncodingReport(len(codes), len(broken))


def _usable(source: Source, size: int, broken: BrokenLog, step: Callable[[], None]) -> Iterator[Sample]:
    """The samples that are not broken, cropped at once: a batch of images at their full size takes gigabytes."""
    for index in range(len(source)):
        step()
        try:
            sample = source[index]
        except BrokenSample as problem:
            broken.add(problem)
        else:
            broken.any_good = True
            yield replace(sample, image=centre_crop(sample.image, size))


def _narrow(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.uint16 if codes.max() < 2 ** 16 else np.uint32)


def _map_codes(path: Path) -> tuple[np.ndarray, str]:
    """Codes [N, n], mapped from the file, and the fingerprint of the tokenizer that made them."""
    if not path.is_file():
        raise DataError(f"{path}: there are no codes; write them with tools/encode_images.py")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as whole, open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            part = json.loads(file.read(size))["codes"]
            kind = f"<{part['dtype'][0].lower()}{int(part['dtype'][1:]) // 8}"  # "U16", as numpy calls it
            codes = np.memmap(path, kind, "r", 8 + size + part["data_offsets"][0], tuple(part["shape"]))
            return np.asarray(codes), (whole.metadata() or {}).get("image_tokenizer", "unknown")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a whole file of codes ({error}); encode the images again") from None
