"""Tar shards in WebDataset's layout: ``key.jpg`` beside ``key.txt`` (a caption a line) or ``key.json``,
thousands a file.

The shards are dealt to *lanes*, one a reader (ranks × workers of the run that started). A lane walks its shards one
after the other, in an order shuffled every time round, through a shuffle buffer. Global position g is step g // lanes
of lane g % lanes; so with as many lanes as readers, or a multiple, every rank reads shards of its own, and the position
alone says what comes next, at any number of ranks.
"""
import glob
import json
import logging
import os
import tarfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from vilg.config import configclass
from vilg.data.caption_records import Record, parse_record, readable, text_lines
from vilg.data.images import IMAGE_SUFFIXES, read_image
from vilg.data.sample import BrokenSample, Reading, Sample
from vilg.errors import DataError

logger = logging.getLogger(__name__)
INDEX_FILE = "index.json"
NOT_UTF8 = "its text is not UTF-8"
OPEN_SHARDS = 64  # of whose members the places are kept in memory


@configclass
class ShardsConfig:
    """Tar files by pattern (``data/train-*.tar``) or folder, or a list of those; ``shuffle_buffer`` is in samples."""

    kind: Literal["shards"] = "shards"
    path: str | list[str]
    shuffle_buffer: int = 2000
    first_caption_only: bool = False

    def __post_init__(self):
        if not self.path:
            raise ValueError("path: name at least one folder or pattern of .tar files")
        if self.shuffle_buffer < 1:
            raise ValueError("shuffle_buffer is at least 1 (no shuffling within a shard)")


@dataclass
class Member:
    """Where the files of one sample are in a shard: suffix → (offset, bytes)."""

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass
class ShardIndex:
    """The samples of one shard; ``problem`` says why there may have been more."""

    members: list[Member]
    problem: str | None = None


def scan(path: str | Path) -> ShardIndex:
    """Find the samples of a shard by its tar headers alone; what comes before a damaged place is kept."""
    members: list[Member] = []
    problem = None
    end = 0  # of the last file, in whole blocks
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as handle:
            handle.seek(max(0, size - 512))
            if any(handle.read()):  # a whole tar file ends in blocks of zeros
                problem = "cut short"
        with tarfile.open(path, "r:") as tar:
            for item in tar:
                folder, _, name = item.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if item.isfile() and item.offset_data + item.size > size:
                    problem = "cut short"
                    break
                end = item.offset_data + -(-item.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not item.isfile() or not stem:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if not members or members[-1].key != key:
                    members.append(Member(key))
                members[-1].files[suffix.lower()] = (item.offset_data, item.size)
        whole = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE  # with its closing zeros
        if problem is None and members and size > whole:
            problem = f"nothing but zeros for its last {size - end} bytes, as after a download that broke off"
    except (tarfile.TarError, OSError, EOFError) as error:
        problem = f"damaged ({error})" if members else f"not a tar file ({error})"
    return ShardIndex(members, problem)


def write_index(folder: str | Path, counts: dict[str, int]) -> None:
    """Note the number of samples of every shard of a folder, so that a run need not open them all before it starts."""
    path = Path(folder) / INDEX_FILE
    temporary = path.with_name(f".{INDEX_FILE}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(counts, indent=0), encoding="utf-8")
    os.replace(temporary, path)


def index_folder(folder: str | Path) -> dict[str, int]:
    """Count the samples of a folder's shards, write its index and return it. Raises DataError for a damaged shard, and
    when the folder is none or cannot be written."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: is no folder; name the one that holds the .tar files")
    counts = {}
    for shard in find_shards(str(folder)):
        index = scan(shard)
        if index.problem:
            raise DataError(f"{shard}: is {index.problem}; fetch it again, or move it away to do without it")
        counts[shard.name] = len(index.members)
    try:
        write_index(folder, counts)
    except OSError as error:
        raise DataError(f"{folder}: the index cannot be written ({error.strerror or error})") from None
    return counts


def find_shards(patterns: str | list[str]) -> list[Path]:
    """The shards that patterns and folders name, sorted. Raises DataError for one that names none."""
    found = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        shards = glob.glob(os.path.join(pattern, "*.tar") if os.path.isdir(pattern) else pattern)
        if not shards:
            raise DataError(f"{pattern}: names no tar shard; tools/prepare_data.py pack writes some")
        found += shards
    return sorted({Path(shard) for shard in found})


class ShardStream:
    """The samples of tar shards as a stream, see :class:`ShardsConfig` and :class:`vilg.data.loader.Stream`."""

    def __init__(self, config: ShardsConfig, reading: Reading = Reading()):
        self.config, self.reading = config, reading
        self.shards = find_shards(config.path)
        self.counts, self._problems = _count(self.shards)
        self._ends = np.cumsum(self.counts)
        if not self._ends[-1]:
            raise DataError(f"{config.path}: the shards hold no sample")
        self._lanes: list[np.ndarray] = []
        self._seed = 0
        self._reported_uneven = False
        self._reported_more: set[Path] = set()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def distinct(self) -> int:
        """All samples: a round of the lanes holds each once."""
        return len(self)

    def __getitem__(self, number: int) -> Sample:
        """Sample ``number`` in the order of the files, unshuffled. Raises BrokenSample."""
        return self._read(*self._place(number))

    def member(self, number: int) -> tuple[Path, Member]:
        """The shard of sample ``number`` in the order of the files, and its place there. Raises BrokenSample."""
        shard, number = self._place(number)
        return self.shards[shard], self._member(shard, number)

    def problems(self) -> list[BrokenSample]:
        """Shards that were found damaged when their samples were counted."""
        return self._problems

    def begin(self, seed: int, lanes: int) -> None:
        """Deal the shards to the lanes. Raises DataError when there are fewer shards than lanes."""
        usable = [number for number, count in enumerate(self.counts) if count]
        if len(usable) < lanes:
            raise DataError(f"data.sources: {len(usable)} shards are too few for {lanes} readers (ranks × "
                            f"data.loader.workers); write more, smaller shards or use fewer workers")
        dealt = np.random.default_rng([seed, 0]).permutation(usable)
        self._lanes = [dealt[lane::lanes] for lane in range(lanes)]
        self._report_uneven([sum(self.counts[shard] for shard in lane) for lane in self._lanes])
        self._seed = seed
        self._orders.clear()

    def _report_uneven(self, lengths: list[int]) -> None:
        if max(lengths) > 1.1 * min(lengths) and not self._reported_uneven:
            self._reported_uneven = True
            logger.warning("the %d readers (ranks × data.loader.workers) get from %d to %d samples each, and those of "
                           "a short share come more often; pack the data again into more shards of equal size, or use "
                           "fewer workers or ranks", len(lengths), min(lengths), max(lengths))

    def _report_more(self, path: Path, counted: int, found: int) -> None:
        if found > counted and path not in self._reported_more:
            self._reported_more.add(path)
            logger.warning("%s: holds %d samples and %s counts %d; the others are left out until "
                           "`tools/prepare_data.py index %s` has counted again", path, found, INDEX_FILE, counted,
                           path.parent)

    def sample(self, position: int, attempt: int) -> Sample:
        """See :meth:`vilg.data.loader.Stream.sample`; a stand-in comes from another lane,
        half that one's length away, and in the end from anywhere in the order of the files."""
        if attempt >= len(self):
            return self[attempt % len(self)]
        step, lane = divmod(position, len(self._lanes))
        lane = (lane + attempt) % len(self._lanes)
        length = sum(self.counts[shard] for shard in self._lanes[lane])
        turn, offset = divmod(step, length)
        if attempt:
            offset = (offset + length // 2 + attempt) % length
        shard, number = self._order(lane, turn)[offset].tolist()
        return self._read(shard, number)

    def _order(self, lane: int, turn: int) -> np.ndarray:
        """(shard, number) of every sample of a lane in the order of its ``turn``-th time round: int64 [length, 2]."""
        with self._lock:
            if lane not in self._orders or self._orders[lane][0] != turn:
                rng = np.random.default_rng([self._seed, 1, lane, turn])
                walk = np.concatenate([np.stack([np.full(self.counts[shard], shard), np.arange(self.counts[shard])], 1)
                                       for shard in rng.permutation(self._lanes[lane])])
                self._orders[lane] = turn, walk[shuffled_through_buffer(len(walk), self.config.shuffle_buffer, rng)]
            return self._orders[lane][1]

    def _place(self, number: int) -> tuple[int, int]:
        """Sample ``number`` in the order of the files → its shard and its number there."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - (int(self._ends[shard - 1]) if shard else 0)

    def _member(self, shard: int, number: int) -> Member:
        index = self._index(shard)
        if number >= len(index.members):
            raise BrokenSample(f"{readable(self.shards[shard])} sample {number}",
                               index.problem or "fewer samples than its index says")
        return index.members[number]

    def _read(self, shard: int, number: int) -> Sample:
        member, path = self._member(shard, number), self.shards[shard]
        name = readable(f"{path}/{member.key}")
        images = [suffix for suffix in member.files if f".{suffix}" in IMAGE_SUFFIXES]
        if not images:
            raise BrokenSample(name, "no image")
        try:
            with open(path, "rb") as handle:
                contents = {suffix: _piece(handle, *member.files[suffix]) for suffix in (images[0], "txt", "json")
                            if suffix in member.files}
        except OSError as error:
            raise BrokenSample(name, f"its shard cannot be read any more ({error.strerror or error})") from None
        said = _texts(contents, name)
        if self.reading.texts and not said.captions:
            raise BrokenSample(name, "no caption")
        return Sample(readable(f"{path.name}/{member.key}"), read_image(contents[images[0]], name, self.reading),
                      said.captions[:1] if self.config.first_caption_only else said.captions, said.questions,
                      facts=said.facts)

    def _index(self, shard: int) -> ShardIndex:
        with self._lock:
            if shard in self._indices:
                self._indices.move_to_end(shard)
                return self._indices[shard]
        index = scan(self.shards[shard])
        self._report_more(self.shards[shard], self.counts[shard], len(index.members))
        with self._lock:
            self._indices[shard] = index
            if len(self._indices) > OPEN_SHARDS:
                self._indices.popitem(last=False)
        return index


def shuffled_through_buffer(length: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """The order in which 0 … length-1 leave a shuffle buffer of ``size``: int64 [length].

    Every element leaves at most ``size`` places early; the buffer's contents at any point follow from the seed.
    """
    order = np.arange(length)
    picks = rng.integers(0, size, length)
    buffer = order[:size].tolist()
    for place, new in enumerate(range(len(buffer), length)):
        slot = picks[place]
        order[place], buffer[slot] = buffer[slot], new
    order[length - len(buffer):] = rng.permutation(buffer)
    return order


def _count(shards: list[Path]) -> tuple[list[int], list[BrokenSample]]:
    """Samples of every shard, from the folders' indices where they are there, else from the shards;
    and damaged shards."""
    known: dict[Path, int] = {}
    problems = []
    for folder in {shard.parent for shard in shards}:
        path = folder / INDEX_FILE
        if path.is_file():
            try:
                known |= {folder / name: int(count) for name, count in json.loads(path.read_text("utf-8")).items()}
            except (ValueError, AttributeError, TypeError):
                raise DataError(f"{path}: not an index of shards; write it again with "
                                f"`tools/prepare_data.py index {folder}`") from None
    missing = [shard for shard in shards if shard not in known]
    for shard in tqdm(missing, desc="counting samples", unit="shard", disable=len(missing) < OPEN_SHARDS):
        index = scan(shard)
        known[shard] = len(index.members)
        if index.problem:
            problems.append(BrokenSample(readable(shard), index.problem))
    return [known[shard] for shard in shards], problems


def _piece(handle, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size)


def _texts(contents: dict[str, bytes], name: str) -> Record:
    said = Record("", [], [], {})
    try:
        if "json" in contents:
            said = parse_record(contents["json"].decode("utf-8-sig"), name, ())
    except (UnicodeDecodeError, BrokenSample) as problem:
        if "txt" not in contents:  # other people's .json need not be about captions
            raise problem if isinstance(problem, BrokenSample) else BrokenSample(name, NOT_UTF8) from None
    try:
        if "txt" in contents and not said.captions:
            said.captions = text_lines(contents["txt"])
    except UnicodeDecodeError:
        raise BrokenSample(name, NOT_UTF8) from None
    return said
