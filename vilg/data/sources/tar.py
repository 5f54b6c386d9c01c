"""Where the files of a tar archive stand, by its headers alone.

The headers' fields are read by :mod:`tarfile`, the walk from one to the next is our own: tarfile's goes round in a
circle for negative sizes and holds a header's extension of any length in memory.
"""
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
LONGEST_EXTENSION = 1 << 20  # bytes of a long name or of pax records


class Damaged(Exception):
    """A place from which an archive cannot be read on."""


@dataclass
class Entry:
    """A regular file of an archive: its header stands at byte ``place``, its ``size`` bytes from ``start`` on."""

    name: str
    place: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """The byte behind its last block."""
        return self.start + _blocks(self.size)


def walk(handle: BinaryIO, length: int) -> Iterator[Entry]:
    """The regular files of an archive of ``length`` bytes, up to its closing zeros; a file may be longer than what is
    there of it. Raises Damaged naming the byte."""
    place, extension = 0, {}
    while place + BLOCK <= length:
        handle.seek(place)
        block = handle.read(BLOCK)
        if not any(block):
            return
        item = _header(block, place)
        size = extension.get("size", item.size)
        start = place + BLOCK
        if item.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                         tarfile.SOLARIS_XHDTYPE):
            if item.size > LONGEST_EXTENSION:
                raise Damaged(f"an extension of {item.size} bytes at byte {place}")
            extension |= _extension(item.type, handle.read(item.size), place)
            place = start + _blocks(item.size)
            continue
        if item.isreg():
            if item.issparse() or extension.get("sparse"):
                raise Damaged(f"a sparse file at byte {place}")
            yield Entry(extension.get("path", item.name), place, start, size)
        holds_bytes = item.isreg() or item.type not in tarfile.SUPPORTED_TYPES
        place, extension = start + (_blocks(size) if holds_bytes else 0), {}


def _header(block: bytes, place: int) -> tarfile.TarInfo:
    try:
        item = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise Damaged(f"{error} at byte {place}") from None
    if item.size < 0:
        raise Damaged(f"a negative size at byte {place}")
    return item


def _extension(kind: bytes, content: bytes, place: int) -> dict[str, str | int | bool]:
    """What an extension says of the file behind it: its ``path``, its ``size``, whether it is ``sparse``."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    found: dict[str, str | int | bool] = {}
    if kind not in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        return found
    while content.strip(b"\0"):
        count, _, _ = content.partition(b" ")
        if not (count.isdigit() and len(count) < 8 and len(count) + 1 < int(count) <= len(content)):
            raise Damaged(f"pax records of no length at byte {place}")
        key, _, value = content[len(count) + 1:int(count) - 1].partition(b"=")
        content = content[int(count):]
        if key == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not (value.isdigit() and len(value) < 20):
                raise Damaged(f"a size that is no number at byte {place}")
            found["size"] = int(value)
        elif key.startswith(b"GNU.sparse"):
            found["sparse"] = True
    return found


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
