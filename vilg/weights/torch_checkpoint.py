"""PyTorch checkpoints without PyTorch and without running anything that a file asks to be run.

A checkpoint is a pickle: a program that may call any function. The unpickler here knows only the functions that rebuild
tensors and plain containers; every other name becomes an inert stand-in that stores what it is given and does nothing.
Both forms are read: the zip archive (PyTorch ≥ 1.6) and the older plain stream.
"""
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vilg.errors import CheckpointError

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_TYPES = {"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
                 "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
                 "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool"}


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


class _StorageType:
    def __init__(self, dtype: str):
        self.dtype = dtype


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """A view of ``storage`` as its pickle describes it, copied. Raises CheckpointError when it reaches outside."""
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise CheckpointError("a tensor of the checkpoint has a malformed shape; fetch the file again")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride)) if 0 not in size else -1
    if last >= storage.size:
        raise CheckpointError("a tensor of the checkpoint reaches outside its storage; fetch the file again")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """``pending`` collects (array, dtype name) of storages that are filled later, in the stream form."""

    def __init__(self, handle: BinaryIO, load_storage: Any):
        super().__init__(handle, encoding="latin1")
        self.load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild_tensor
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in STORAGE_TYPES:
            return _StorageType(STORAGE_TYPES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type(name, (StandIn,), {"__module__": module})

    def persistent_load(self, identity: Any) -> np.ndarray:
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise CheckpointError("the checkpoint refers to something that is not a tensor's storage")
        kind, key, count = identity[1], str(identity[2]), int(identity[4])
        if not isinstance(kind, _StorageType):
            raise CheckpointError(f"the checkpoint holds a storage of a kind that is not read here "
                                  f"({getattr(kind, '__name__', kind)}); save it again in float32")
        return self.load_storage(kind.dtype, key, count)


def read_torch_checkpoint(path: str | Path) -> Any:
    """The object that ``torch.save`` wrote, with tensors as numpy arrays. Raises CheckpointError when it is not one."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    try:
        return _read_archive(path) if zipfile.is_zipfile(path) else _read_stream(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, IndexError, ValueError, TypeError,
            AttributeError, UnicodeDecodeError, struct.error, OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a whole PyTorch checkpoint ({type(error).__name__}: {error}); "
                              "fetch it again") from None


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entry = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if entry is None:
            raise CheckpointError("a zip archive without data.pkl, so not a PyTorch checkpoint")
        folder, loaded = entry[:-len("data.pkl")], {}

        def load_storage(dtype: str, key: str, count: int) -> np.ndarray:
            if key not in loaded:
                loaded[key] = _as_array(archive.read(f"{folder}data/{key}"), dtype, count)
            return loaded[key]

        with archive.open(entry) as handle:
            return _Unpickler(handle, load_storage).load()


def _read_stream(path: Path) -> Any:
    """The older form: magic number, protocol, system, the object, the list of storage keys, then the raw storages.

    Storages come after the object that views them, so their places are found by a first pass and the object is
    unpickled again with the values in hand.
    """
    wanted: dict[str, tuple[str, int]] = {}

    def note(dtype: str, key: str, count: int) -> np.ndarray:
        wanted[key] = (dtype, count)
        return np.zeros(count, "float32" if dtype == "bfloat16" else dtype)

    with open(path, "rb") as handle:
        if _Unpickler(handle, note).load() != STREAM_MAGIC:
            raise CheckpointError("neither a zip archive nor an old PyTorch stream, so not a PyTorch checkpoint")
        for _ in ("protocol", "system"):
            _Unpickler(handle, note).load()
        start = handle.tell()
        _Unpickler(handle, note).load()
        keys = _Unpickler(handle, note).load()
        values = {}
        for key in map(str, keys):
            dtype, expected = wanted[key]
            count, = struct.unpack("<q", handle.read(8))
            size = count * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
            values[key] = _as_array(handle.read(size), dtype, expected)
        handle.seek(start)
        return _Unpickler(handle, lambda dtype, key, count: values[key]).load()


def _as_array(content: bytes, dtype: str, count: int) -> np.ndarray:
    if dtype == "bfloat16":
        # The upper half of a float32: numpy has no such type, so the lower half is filled with zeros.
        array = (np.frombuffer(content, "<u2").astype("uint32") << 16).view("float32")
    else:
        array = np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).astype(dtype)
    if array.size < count:
        raise CheckpointError(f"a storage holds {array.size} values where {count} are due; the file is cut short")
    return array
