"""PyTorch checkpoints without PyTorch and without running anything that a file asks to be run.

A checkpoint is a pickle: a program that may call any function. The unpickler here knows only the functions that rebuild
tensors and plain containers; every other name becomes an inert stand-in that stores what it is given and does nothing.
Both forms are read: the zip archive (PyTorch ≥ 1.6) and the older plain stream. What a file may claim is bounded by
its own size: bytes inflated, numbers in a storage, numbers in tensors that view storages.
"""
import io
import math
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vilg.errors import CheckpointError
from vilg.weights.files import bfloat16_values

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_TYPES = {"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
                 "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
                 "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool"}
INFLATES = 8
"""How many times its own size an archive may hold. Weights hardly compress; PyTorch itself only stores them."""
SHARES = 4
"""How many times the storages' size all tensors may be that view them (tied weights, a copy for an average)."""
ROOM = 2 ** 20  # small files may hold this many bytes more
MOST_CLASSES = 10_000
LONGEST_REASON = 200


class StandIn:
    """In the place of an object whose class is not allowed: keeps state and items, never acts."""

    def __init__(self, *arguments: Any, **options: Any):
        self.items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """What a pickle calls on something list-like."""

    def extend(self, values: Any) -> None:
        """What a pickle calls on something list-like."""


class _Inert:
    """Takes no state from a pickle, which could make it describe something else than was checked."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise CheckpointError("the checkpoint gives a storage a state, which PyTorch never does")


class _StorageType(_Inert):
    __slots__ = ("dtype",)

    def __init__(self, dtype: str):
        self.dtype = dtype


class _Storage(_Inert):
    """Numbers that tensors view; ``values`` are there once the file was read."""

    __slots__ = ("dtype", "count", "values")

    def __init__(self, dtype: str, count: int):
        self.dtype, self.count, self.values = dtype, count, None


class StoredTensor:
    """A tensor as its pickle describes it: a view of a storage. Nothing is made before :meth:`array` is called."""

    __slots__ = ("storage", "offset", "size", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride
        whole = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 32
        if not whole or not all(type(one) is int and 0 <= one < 2 ** 62 for one in (offset, *size, *stride)):
            raise CheckpointError("a tensor of the checkpoint has a malformed shape; fetch the file again")
        if not isinstance(storage, (_Storage, _Slice)):
            raise CheckpointError("a tensor of the checkpoint has no storage; fetch the file again")
        if self.elements > storage.count:
            raise CheckpointError(f"a tensor of the checkpoint claims {self.elements} numbers of a storage of "
                                  f"{storage.count}; save it again with its own values (.contiguous())")
        last = offset + sum((count - 1) * step for count, step in zip(size, stride)) if self.elements else -1
        if last >= storage.count:
            raise CheckpointError("a tensor of the checkpoint reaches outside its storage; fetch the file again")

    def __setstate__(self, state: Any) -> None:
        """A parameter's state is of no use here."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array()

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.size)

    def array(self) -> np.ndarray:
        """Its values, a copy; bfloat16 as float32."""
        values = self.storage.values
        if not self.elements:
            return np.zeros(self.size, values.dtype)
        strides = [step * values.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(values[self.offset:], self.size, strides).copy()


class _Slice(_Inert):
    """A part of a storage that is a storage of its own, as the first versions of the stream had it."""

    __slots__ = ("root", "first", "count")

    def __init__(self, root: _Storage, first: Any, count: Any):
        if not all(type(one) is int and one >= 0 for one in (first, count)) or first + count > root.count:
            raise CheckpointError("a storage of the checkpoint reaches outside another; fetch the file again")
        self.root, self.first, self.count = root, first, count

    @property
    def values(self) -> np.ndarray:
        return self.root.values[self.first:self.first + self.count]


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: that in C makes room for as many objects as a file says it will number, 64 GB at most.
    Collects storages by key, to be filled when they are read; their bytes may be ``room`` in all, and the numbers of
    all tensors a few times that."""

    def __init__(self, handle: BinaryIO, room: int):
        super().__init__(handle, encoding="latin1")
        self.room, self.shared, self.storages = room, SHARES * room, {}
        self.classes: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return self.tensor
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in STORAGE_TYPES:
            return _StorageType(STORAGE_TYPES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) not in self.classes:
            if len(self.classes) == MOST_CLASSES:
                raise CheckpointError(f"the checkpoint names more than {MOST_CLASSES} classes, which no model has")
            self.classes[module, name] = type(name, (StandIn,), {"__module__": module})
        return self.classes[module, name]

    def tensor(self, *description: Any) -> StoredTensor:
        """A tensor, whose numbers count."""
        tensor = StoredTensor(*description)
        self.shared -= tensor.elements * np.dtype("float32").itemsize
        if self.shared < 0:
            raise CheckpointError("the tensors of the checkpoint claim many times the numbers that it holds")
        return tensor

    def persistent_load(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) >= 2 and identity[0] == "module":
            return identity[1]  # the old stream's record of a class, with its source, beside the storages
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise CheckpointError("the checkpoint refers to something that is not a tensor's storage")
        kind, key, count = identity[1], str(identity[2]), identity[4]
        if not isinstance(kind, _StorageType):
            raise CheckpointError(f"the checkpoint holds a storage of a kind that is not read here "
                                  f"({getattr(kind, '__name__', kind)}); save it again in float32")
        if type(count) is not int or count < 0:
            raise CheckpointError("a storage of the checkpoint has a malformed size; fetch the file again")
        if key not in self.storages:
            self.room -= count * _width(kind.dtype)
            if self.room < 0:
                raise CheckpointError("the storages of the checkpoint claim more bytes than the file holds; it is cut "
                                      "short or made up, fetch it again")
            self.storages[key] = _Storage(kind.dtype, count)
        storage = self.storages[key]
        if (storage.dtype, storage.count) != (kind.dtype, count):
            raise CheckpointError("the checkpoint describes one storage in two ways; fetch it again")
        view = identity[5] if len(identity) > 5 else None
        return _Slice(storage, *view[1:3]) if isinstance(view, tuple) and len(view) == 3 else storage


def read_torch_checkpoint(path: str | Path) -> Any:
    """The object that ``torch.save`` wrote, its tensors as :class:`StoredTensor`. Raises CheckpointError when it is not
    one, or claims more than it holds."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    try:
        return _read_archive(path) if zipfile.is_zipfile(path) else _read_stream(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle or archive makes its parser raise anything
        reason = " ".join(str(error).encode("utf-8", "replace").decode().split())[:LONGEST_REASON]
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint ({type(error).__name__}: {reason}); "
                              "fetch it again") from None


def _read_archive(path: Path) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        held = sum(entry.file_size for entry in archive.infolist())
        if held > INFLATES * size + ROOM:
            raise CheckpointError(f"the archive of {size} bytes would inflate to {held}, which no weights do; fetch it "
                                  "again")
        entry = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if entry is None:
            raise CheckpointError("a zip archive without data.pkl, so not a PyTorch checkpoint")
        unpickler = _Unpickler(io.BytesIO(archive.read(entry)), held)
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            _fill(storage, archive.read(f"{entry[:-len('data.pkl')]}data/{key}"))
    return content


def _read_stream(path: Path) -> Any:
    """The older form: magic number, protocol, system, the object, the list of storage keys, then the raw storages."""
    size = path.stat().st_size
    # A mapped file gives no more than it has, whatever it is asked for.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as handle:
        if _Unpickler(handle, 0).load() != STREAM_MAGIC:
            raise CheckpointError("neither a zip archive nor an old PyTorch stream, so not a PyTorch checkpoint")
        for _ in ("protocol", "system"):
            _Unpickler(handle, 0).load()
        unpickler = _Unpickler(handle, size)
        content = unpickler.load()
        keys = _Unpickler(handle, 0).load()
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(unpickler.storages):
            raise CheckpointError("the list of the checkpoint's storages is not that of its tensors; fetch it again")
        for key in map(str, keys):
            storage = unpickler.storages[key]
            count, = struct.unpack("<q", handle.read(8))
            if count != storage.count:
                raise CheckpointError(f"a storage holds {count} values where {storage.count} are due; fetch the file "
                                      "again")
            _fill(storage, handle.read(count * _width(storage.dtype)))
    return content


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _fill(storage: _Storage, content: bytes) -> None:
    wanted = storage.count * _width(storage.dtype)
    if len(content) < wanted:
        raise CheckpointError(f"a storage holds {len(content)} bytes where {wanted} are due; the file is cut short")
    content = content[:wanted]
    storage.values = (bfloat16_values(content) if storage.dtype == "bfloat16" else
                      np.frombuffer(content, np.dtype(storage.dtype).newbyteorder("<")).astype(storage.dtype))
