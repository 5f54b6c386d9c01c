"""Tar shards in WebDataset's layout: ``key.jpg`` beside ``key.txt`` (a caption a line) or ``key.json``, thousands a
file.

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
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from vilg.config import configclass
from vilg.data.broken import counted, refuse_wholly_wrong
from vilg.data.caption_records import Record, readable
from vilg.data.folders import is_hidden
from vilg.data.images import IMAGE_SUFFIXES, read_image
from vilg.data.sample import BrokenSample, Reading, Sample
from vilg.data.sources.members import TEXT_SUFFIXES, Member, ShardIndex, contents_of, said_in, scan
from vilg.errors import DataError
from vilg.progress import progress

logger = logging.getLogger(__name__)
INDEX_FILE = "index.json"
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
        path = os.path.expanduser(pattern)
        if os.path.isdir(path):
            shards = glob.glob(os.path.join(glob.escape(path), "*.tar"))
        else:
            shards = [path] if os.path.isfile(path) else glob.glob(path)
        if not shards:
            held = Counter("".join(Path(name).suffixes[-2:]) or "without suffix" for name in
                           (os.listdir(path) if os.path.isdir(path) else ()) if not is_hidden(name))
            raise DataError(f"{pattern}: names no tar shard{'; it holds ' + counted(held) if held else ''}; "
                            "tools/prepare_data.py pack writes some")
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
            found = "".join(f"; {problem.name} is {problem.reason}" for problem in self._problems[:1])
            raise DataError(f"{config.path}: the shards hold no sample{found}")
        self._lanes: list[np.ndarray] = []
        self._seed = 0
        self._reported_uneven = False
        self._reported_more: set[Path] = set()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lock = threading.Lock()
        refuse_wholly_wrong(str(config.path), self._spread(), lambda number: self._said(*self._place(number)),
                            self._found)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def distinct(self) -> int:
        """All samples: a round of the lanes holds each once."""
        return len(self)

    def __getitem__(self, number: int) -> Sample:
        """Sample ``number`` in the order of the files, unshuffled. Raises BrokenSample."""
        return self._read(*self._place(number))

    def member(self, number: int) -> tuple[Path, Member]:
        """The shard of sample ``number`` in the order of the files, and where its files are there. Raises BrokenSample.
        """
        shard, number = self._place(number)
        return self.shards[shard], self._said(shard, number)[0]

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - (int(self._ends[shard - 1]) if shard else 0)

    def _spread(self) -> Iterator[int]:
        """Numbers of samples from all shards in turn."""
        for number in range(max(self.counts)):
            yield from (int(end) - count + number for end, count in zip(self._ends, self.counts) if number < count)

    def _found(self) -> str:
        """What files the first shards hold, and what is wanted of them."""
        indices = list(self._indices.values())
        suffixes = Counter(f".{suffix}" for index in indices for member in index.members for suffix in member.files)
        texts = "" if not self.reading.texts else f" and captions (.{', .'.join(TEXT_SUFFIXES)} or .json)"
        return (f"the files found are {counted(suffixes) or 'none'}; a sample is an image ({', '.join(IMAGE_SUFFIXES)})"
                f"{texts} under the same key")

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

    def _read(self, shard: int, number: int) -> Sample:
        member, said, name = self._said(shard, number)
        path = self.shards[shard]
        image = contents_of(path, member, member.images[:1], name)[member.images[0]]
        return Sample(readable(f"{path.name}/{member.key}"), read_image(image, name, self.reading),
                      said.captions[:1] if self.config.first_caption_only else said.captions, said.questions,
                      facts=said.facts)

    def _said(self, shard: int, number: int) -> tuple[Member, Record, str]:
        """A sample's place, what is said of it, and its name. Raises BrokenSample."""
        index, path = self._index(shard), self.shards[shard]
        if number >= len(index.members):
            raise BrokenSample(f"{readable(path)} sample {number}",
                               index.problem or "fewer samples than its index says")
        member = index.members[number]
        name = readable(f"{path}/{member.key}")
        if member.problem:
            raise BrokenSample(name, member.problem, "a repeated key")
        if not member.images:
            found = ", ".join(f".{suffix}" for suffix in list(member.files)[:8])
            raise BrokenSample(name, f"no image among its files ({found})", "no image")
        said = said_in(contents_of(path, member, [*TEXT_SUFFIXES, "json"], name), name, self.reading.texts)
        if self.reading.texts and not said.captions:
            raise BrokenSample(name, "no caption")
        return member, said, name

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
                known |= _known(folder, json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, RecursionError):
                raise DataError(f"{path}: not an index of shards; write it again with "
                                f"`tools/prepare_data.py index {folder}`") from None
    missing = [shard for shard in shards if shard not in known]
    for shard in progress(missing, desc="counting samples", unit="shard", shown=len(missing) >= OPEN_SHARDS):
        index = scan(shard)
        known[shard] = len(index.members)
        if index.problem:
            problems.append(BrokenSample(readable(shard), index.problem))
    return [known[shard] for shard in shards], problems


def _known(folder: Path, counts: object) -> dict[Path, int]:
    """The counts of a folder's index. More samples than a shard has room for are left out, and counted anew. Raises
    ValueError for what is no index."""
    if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError("an index holds whole numbers by name")
    found = {folder / name: count for name, count in counts.items()}
    return {shard: count for shard, count in found.items()
            if shard.is_file() and count * tarfile.BLOCKSIZE <= shard.stat().st_size}
