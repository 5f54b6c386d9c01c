"""The samples of a tar shard: which of its files belong together."""
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vilg.data.caption_records import Record, parse_record, text_lines
from vilg.data.folders import is_hidden
from vilg.data.images import IMAGE_SUFFIXES
from vilg.data.sample import BrokenSample
from vilg.data.sources.tar import BLOCK, Damaged, Entry, walk
from vilg.errors import DataError

NOT_UTF8 = "its text is not UTF-8"
TEXT_SUFFIXES = ("txt", "text", "caption", "caption.txt")  # the first that is there is read
COMPRESSED = {b"\x1f\x8b": ("gzip", "gzip -dc"), b"BZh": ("bzip2", "bzip2 -dc"), b"\xfd7zXZ": ("xz", "xz -dc"),
              b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc")}  # by first bytes: name, and what unpacks it


@dataclass
class Member:
    """Where the files of one sample are in a shard: suffix → (offset, bytes); ``problem`` says why it is of no use."""

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    problem: str | None = None

    @property
    def images(self) -> list[str]:
        """The suffixes of its image files."""
        return [suffix for suffix in self.files if _is_image(suffix)]


@dataclass
class ShardIndex:
    """The samples of one shard; ``problem`` says why there may have been more."""

    members: list[Member]
    problem: str | None = None


def scan(path: str | Path) -> ShardIndex:
    """Find the samples of a shard by its tar headers alone; what comes before a damaged place is kept.

    Files belong together by their key wherever they stand. Raises DataError for a shard that is compressed.
    """
    entries: list[Entry] = []
    problem, end = None, 0  # of the last file, in whole blocks
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as handle:
            _refuse_compressed(handle, path)
            handle.seek(max(0, size - BLOCK))
            if any(handle.read()):  # a whole tar file ends in blocks of zeros
                problem = "cut short"
            for entry in walk(handle, size):
                if entry.start + entry.size > size:
                    problem = "cut short"
                    break
                end = entry.end
                entries.append(entry)
        whole = -(-(end + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE  # with its closing zeros
        if problem is None and entries and size > whole:
            problem = f"nothing but zeros for its last {size - end} bytes, as after a download that broke off"
        if not size:
            problem = "empty"
    except (Damaged, OSError) as error:
        problem = f"damaged ({error})" if entries else f"not a tar file ({error})"
    return ShardIndex(_members(entries), problem)


def contents_of(path: Path, member: Member, suffixes: list[str], name: str) -> dict[str, bytes]:
    """The bytes of those files of a sample that are there, by suffix. Raises BrokenSample."""
    try:
        with open(path, "rb") as handle:
            return {suffix: os.pread(handle.fileno(), *reversed(member.files[suffix])) for suffix in suffixes
                    if suffix in member.files}
    except OSError as error:
        raise BrokenSample(name, f"its shard cannot be read any more ({error.strerror or error})",
                           "its shard cannot be read any more") from None


def said_in(contents: dict[str, bytes], name: str, needed: bool) -> Record:
    """What a sample's .json says, with the captions of its text file where that says none; what cannot be read matters
    only where texts are ``needed``."""
    said = Record("", [], [], {})
    written = next((contents[suffix] for suffix in TEXT_SUFFIXES if suffix in contents), None)
    try:
        if "json" in contents:
            said = parse_record(contents["json"].decode("utf-8-sig"), name, ())
    except (UnicodeDecodeError, BrokenSample) as problem:
        if written is None and needed:  # other people's .json need not be about captions
            raise problem if isinstance(problem, BrokenSample) else BrokenSample(name, NOT_UTF8) from None
    try:
        if written is not None and not said.captions:
            said.captions = text_lines(written)
    except UnicodeDecodeError:
        if needed:
            raise BrokenSample(name, NOT_UTF8) from None
    return said


def _refuse_compressed(handle: BinaryIO, path: str | Path) -> None:
    start = handle.read(6)
    for mark, (name, command) in COMPRESSED.items():
        if start.startswith(mark):
            raise DataError(f"{path}: is compressed by {name}, and shards are read at any place; unpack it with "
                            f"`{command} {path} > NEW.tar`")


def _members(entries: list[Entry]) -> list[Member]:
    """Entries by their key: what stands before the first dot of a name, as in WebDataset; where a key of that kind has
    no image, what stands before the first dot behind which a known suffix follows, or before the last."""
    groups: dict[str, list[tuple[str, Entry]]] = {}
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        if is_hidden(name) or any(is_hidden(part) for part in folder.split("/") if part != "."):
            continue
        stem, _, suffix = name.partition(".")
        groups.setdefault(f"{folder}/{stem}" if folder else stem, []).append((suffix, entry))
    members: dict[str, Member] = {}
    for key, parts in groups.items():
        plain = any(_is_image(suffix.lower()) for suffix, _ in parts)
        for suffix, entry in parts:
            more, suffix = ("", suffix) if plain else _known_part(suffix)
            whole = f"{key}.{more}" if more else key
            _add(members.setdefault(whole, Member(whole)), suffix.lower(), entry)
    return list(members.values())


def _known_part(suffix: str) -> tuple[str, str]:
    """``0001.caption.txt`` → 0001, caption.txt: the longest end that is known, else what follows the last dot."""
    parts = suffix.split(".")
    for number in range(len(parts)):
        end = ".".join(parts[number:])
        if _is_image(end.lower()) or end.lower() in (*TEXT_SUFFIXES, "json"):
            return ".".join(parts[:number]), end
    return ".".join(parts[:-1]), parts[-1]


def _add(member: Member, suffix: str, entry: Entry) -> None:
    if suffix in member.files:
        first = member.files[suffix][0] - BLOCK
        member.problem = (f"its .{suffix} comes twice, at bytes {first} and {entry.place}, and nobody can say which "
                          "belongs to the rest; give every sample a key of its own")
        return
    member.files[suffix] = (entry.start, entry.size)


def _is_image(suffix: str) -> bool:
    return f".{suffix}" in IMAGE_SUFFIXES
