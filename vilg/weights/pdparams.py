"""Paddle's .pdparams without unpickling: a reader of its own for the few instructions that ``paddle.save`` writes.

Such a file is a pickle, a program that may call any function. Here only the functions that rebuild numpy arrays and
plain containers have a meaning, and it is this module's own; whatever else a file asks for is refused by its name. A
file cannot claim more than it holds: an array's bytes lie in the file and fit its shape exactly, a read beyond the end
is refused before anything is set aside for it, and one array under many names is counted every time.
"""
import io
import math
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vilg.errors import CheckpointError

NAMES, PARTS = "StructuredToParameterName@@", "UnpackBigParamInfor@@"
"""What Paddle adds to a state dict: a table of internal names, and how large arrays were cut up (protocol 2 and 3)."""
_KINDS = {f"{kind}{size}" for kind, sizes in (("f", (2, 4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)))
          for size in sizes} | {"b1"}
_MOST_AXES = 32
_PROTOCOLS = (2, 3, 4)


class _Dtype:
    """numpy.dtype as a pickle spells it: made of "f4", then told its byte order."""

    def __init__(self, kind: Any = None, *_: Any):
        if kind not in _KINDS:
            raise CheckpointError(f"holds an array of the type {kind!r}; save the weights in float32")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise CheckpointError(f"holds an array of the byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """numpy.ndarray as a pickle spells it: made empty, then told shape, type, order and bytes."""

    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise CheckpointError("holds an array in a form that is not numpy's")
        _, shape, dtype, fortran, raw = state
        self.value = _array(shape, dtype, fortran, raw)


def _array(shape: Any, dtype: Any, fortran: Any, raw: Any) -> np.ndarray:
    """The array over the bytes ``raw``, which must be exactly those of its shape."""
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # text: what Python 2 wrote
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or not isinstance(shape, tuple) \
            or len(shape) > _MOST_AXES or not all(type(side) is int and side >= 0 for side in shape):
        raise CheckpointError("holds an array with a malformed shape or type")
    claimed = math.prod(shape) * dtype.dtype.itemsize
    if claimed != len(raw):
        raise CheckpointError(f"holds an array of shape {list(shape)[:8]} that takes {claimed} bytes and has "
                              f"{len(raw)}")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _encode(text: Any, coding: Any = None) -> bytes:
    """How protocol 2 spells bytes."""
    if not isinstance(text, str) or coding != "latin1":
        raise CheckpointError("holds bytes in a form that Paddle does not write")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _named_data(source: Any, values: Any) -> Any:
    """How Paddle spells a tensor of a static graph: eval("data", {"data": array}). Nothing is evaluated here."""
    if source != "data" or not isinstance(values, dict) or list(values) != ["data"]:
        raise CheckpointError("asks for an expression to be evaluated, which no weights need")
    return values["data"]


def _as_tuple(values: Any = ()) -> tuple:
    if not isinstance(values, (tuple, list)):
        raise CheckpointError("holds a malformed tuple")
    return tuple(values)


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype, ("numpy", "ndarray"): _Array, ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict}
for _module in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _KNOWN[f"{_module}.multiarray", "_reconstruct"] = _Array
for _module in ("builtins", "__builtin__"):  # Python 3 and 2
    _KNOWN |= {(_module, "tuple"): _as_tuple, (_module, "eval"): _named_data, (_module, "bytes"): _no_bytes}


_CODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE,
    pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1,
    pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.BINBYTES8, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1,
    pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM,
    pickle.SETITEMS)
"""All instructions of a pickle that plain containers and arrays need; a file with any other is refused."""


class _Bounded(io.RawIOBase):
    """A file that refuses to be asked for more than is left of it, before memory is set aside for the answer."""

    def __init__(self, handle: BinaryIO, size: int):
        super().__init__()
        self.handle, self.left = handle, size

    def read(self, count: int = -1) -> bytes:
        if count < 0 or count > self.left:
            raise CheckpointError(f"claims {count} bytes where {self.left} are left; it is cut short or damaged")
        self.left -= count
        return self.handle.read(count)

    def readline(self, size: int = -1) -> bytes:
        line = self.handle.readline(1 << 16 if size < 0 else size)  # names of functions; numbers of protocol 0
        self.left -= len(line)
        return line

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[:len(content)] = content
        return len(content)


class _Reader(pickle._Unpickler):
    """Python's own unpickler rather than the C one: its memo is a dict, so that a number in the file cannot make it
    set memory aside, and its instructions can be chosen."""

    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _CODES}

    def __init__(self, handle: _Bounded):
        super().__init__(handle, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise CheckpointError(f"asks for {module}.{name}, which no weights need, so it is not read")
        return _KNOWN[module, name]

    def load_build(self) -> None:
        """State goes to arrays and their types alone."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise CheckpointError("sets the state of something that is not an array, which no weights need")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def read_pdparams(path: str | Path) -> dict[str, np.ndarray]:
    """The named arrays that ``paddle.save(layer.state_dict(), path)`` wrote; bfloat16 comes back as float32.

    Raises CheckpointError, which names the file, when it is missing, cut short, holds no named arrays, claims more than
    it holds or asks for anything else to be done.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such weights file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            if size < 2 or handle.peek(2)[:1] != b"\x80" or handle.peek(2)[1] not in _PROTOCOLS:
                raise CheckpointError("does not begin as a .pdparams file does; name what paddle.save wrote")
            content = _Reader(_Bounded(handle, size)).load()
        return _named_arrays(content, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, struct.error,
            OverflowError, RecursionError, AssertionError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a whole .pdparams file ({type(error).__name__}: {error}); fetch it again"
                              ) from None


def _named_arrays(content: Any, size: int) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__}, not weights by name; save a layer's state_dict()")
    found = {name: array for name, value in content.items() if (array := _value(value)) is not None}
    if not found or not all(isinstance(name, str) for name in found):
        raise CheckpointError("holds no named weights")
    claimed = sum(array.nbytes for array in found.values())
    if claimed > size:
        raise CheckpointError(f"claims weights of {claimed} bytes in a file of {size}; fetch it again")
    # numpy has no bfloat16, which Paddle keeps as the upper half of a float32.
    joined = _joined(found, content.get(PARTS))
    return {name: (array.astype("uint32") << 16).view("float32") if array.dtype == np.uint16 else array
            for name, array in joined.items()}


def _value(value: Any) -> np.ndarray | None:
    """An array, whether plain or as (name, array), how Paddle spells a tensor outside a state dict; None for others."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    if not isinstance(value, _Array):
        return None
    if value.value is None:
        raise CheckpointError("holds an array that was never filled; it is damaged")
    return value.value.astype(value.value.dtype.newbyteorder("="), copy=False)


def _joined(found: dict[str, np.ndarray], parts: Any) -> dict[str, np.ndarray]:
    """Large arrays put together again from the pieces that ``parts`` lists: name → shape and names of the pieces."""
    if parts is None:
        return found
    left, whole = dict(found), {}
    for name, entry in parts.items() if isinstance(parts, dict) else [(PARTS, None)]:
        try:
            pieces = [left.pop(piece) for piece in entry["slices"]]
            whole[name] = np.concatenate(pieces).reshape(entry["OriginShape"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"the pieces of {name} do not make it whole; fetch the file again") from None
    return left | whole
