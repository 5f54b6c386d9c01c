"""A safetensors file mapped into memory, of which one tensor at a time is there."""
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vilg.errors import CheckpointError
from vilg.weights.files import STORED, check_kinds

_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
          "BOOL": "?"}


class Stored(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file by name, as they are stored; each is read when it is asked for, as a copy, and
    what was read of the file is given back, so that a file takes no more memory than its largest tensor.

    Raises CheckpointError for a file that is missing or not whole, and for a tensor of none of the ``kinds``.
    """

    def __init__(self, path: str | Path, kinds: tuple[str, ...] = STORED):
        self.path = Path(path)
        check_kinds(self.path, kinds)
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be mapped into memory ({error})") from None
        start = 8 + int.from_bytes(self._map[:8], "little")
        header = json.loads(self._map[8:start])
        self._places = {name: (entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0])
                        for name, entry in header.items() if name != "__metadata__"}

    def __getitem__(self, name: str) -> np.ndarray:
        kind, shape, start = self._places[name]
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(self._map, _NUMPY[kind], count, start).reshape(shape).copy()
        if hasattr(mmap, "MADV_DONTNEED") and array.nbytes:
            page = mmap.PAGESIZE
            first = start // page * page
            self._map.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading it."""
        return self._places[name][1]

    def dtype(self, name: str) -> np.dtype:
        """Without reading it."""
        return np.dtype(_NUMPY[self._places[name][0]])

    def nbytes(self) -> int:
        """Bytes of the file."""
        return os.path.getsize(self.path)
