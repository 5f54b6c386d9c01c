"""The oneDNN that ships inside the Paddle wheel, called through ctypes; no compiler is needed.

The library is internal to the wheel, so nothing here is taken for granted: :func:`load` checks the version and the
threading runtime and raises :class:`Unavailable` with the reason, and :mod:`vilg.kernels.onednn.selftest` compares
every
operator with stock Paddle before the first use.
"""
import ctypes
import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import paddle

UNDEFINED, F32, BF16, S8 = 0, 3, 2, 5
"""Data types (dnnl_data_type_t)."""
SRC, SRC_1, DST, WEIGHTS, BIAS = 1, 2, 17, 33, 41
MEAN, VARIANCE, SCALE, SHIFT = 49, 50, 51, 52
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS, DIFF_SCALE, DIFF_SHIFT = 129, 145, 161, 169, 255, 256
"""Names of a primitive's arguments (DNNL_ARG_*)."""
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
_SUPPORTED_MAJOR, _OPENMP = 3, 2
_ANY_LAYOUT = 1
_BOUND = 2048


class Unavailable(Exception):
    """The fast path cannot be used here; the message says why."""


class _Version(ctypes.Structure):
    _fields_ = [("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int),
                ("hash", ctypes.c_char_p), ("cpu_runtime", ctypes.c_uint), ("gpu_runtime", ctypes.c_uint)]


class _Argument(ctypes.Structure):
    _fields_ = [("name", ctypes.c_int), ("memory", ctypes.c_void_p)]


Dims = ctypes.c_int64 * 12


class Library:
    """The loaded shared object with one engine, one stream and the lock that guards every execution.

    One lock for the process is enough: a primitive already spreads over all the threads, so two at a time would only
    fight for the cores.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise Unavailable(f"this Paddle wheel has no {path.name}")
        try:
            self.api = ctypes.CDLL(str(path))
            self.api.dnnl_version.restype = ctypes.POINTER(_Version)
            version = self.api.dnnl_version().contents
        except (OSError, AttributeError) as error:
            raise Unavailable(f"{path.name} cannot be loaded ({error})") from None
        self.version = f"{version.major}.{version.minor}.{version.patch}"
        if version.major != _SUPPORTED_MAJOR or version.cpu_runtime != _OPENMP:
            raise Unavailable(f"oneDNN {self.version} (threading {version.cpu_runtime}) is not one this code knows")
        self.isa = int(self.api.dnnl_get_effective_cpu_isa())
        self.engine, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.api.dnnl_engine_create(ctypes.byref(self.engine), 1, ctypes.c_size_t(0)), "engine")
        self.check(self.api.dnnl_stream_create(ctypes.byref(self.stream), self.engine, 1), "stream")
        self.lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)
        self._declare()

    def _renew_lock(self) -> None:
        self.lock = threading.RLock()

    def _declare(self) -> None:
        pointer, api = ctypes.c_void_p, self.api
        self.set_handle = api.dnnl_memory_set_data_handle
        self.set_handle.argtypes = [pointer, pointer]
        self.execute = api.dnnl_primitive_execute
        self.execute.argtypes = [pointer, pointer, ctypes.c_int, pointer]
        api.dnnl_primitive_desc_query_md.restype = pointer
        api.dnnl_primitive_desc_query_md.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
        api.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        api.dnnl_memory_desc_get_size.argtypes = [pointer]
        api.dnnl_memory_desc_equal.argtypes = [pointer, pointer]

    @staticmethod
    def check(status: int, what: str) -> None:
        """Raise Unavailable when a call of the library did not succeed."""
        if status:
            raise Unavailable(f"oneDNN refused: {what} (status {status})")


@functools.lru_cache(maxsize=1)
def load() -> Library:
    """The library of the Paddle that is installed; raises :class:`Unavailable`."""
    return Library(Path(paddle.__file__).parent / "libs" / "libdnnl.so.3")


class Handle:
    """Owns one object of the library and destroys it with itself."""

    def __init__(self, kind: str, create: Callable[..., int], *arguments: Any):
        self.value = ctypes.c_void_p()
        Library.check(create(ctypes.byref(self.value), *arguments), kind)
        self._destroy = getattr(load().api, f"dnnl_{kind}_destroy")

    def __del__(self):
        if self.value and getattr(self, "_destroy", None):
            self._destroy(self.value)


class Descriptor(Handle):
    """Shape, data type and strides (elements; None lets the library choose the layout) of a memory."""

    def __init__(self, dims: Sequence[int], strides: Sequence[int] | None, dtype: int = F32):
        api = load().api
        if strides is None:
            super().__init__("memory_desc", api.dnnl_memory_desc_create_with_tag, len(dims), Dims(*dims), dtype,
                             _ANY_LAYOUT)
        else:
            super().__init__("memory_desc", api.dnnl_memory_desc_create_with_strides, len(dims), Dims(*dims), dtype,
                             Dims(*strides))


def plain(dims: Sequence[int], dtype: int = F32) -> Descriptor:
    """The descriptor of a contiguous tensor."""
    strides = [1] * len(dims)
    for axis in range(len(dims) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * dims[axis + 1]
    return Descriptor(dims, strides, dtype)


def _raw(argument: Any) -> Any:
    return argument.value if isinstance(argument, Handle) else argument


class Primitive:
    """One operation for fixed shapes; called with the addresses of its arguments in the order given here."""

    def __init__(self, descriptor: Handle, arguments: Sequence[tuple[int, Any]]):
        library = load()
        self._library = library
        api = library.api
        self._owner = Handle("primitive", api.dnnl_primitive_create, descriptor.value)
        self._descriptor, self._signature = descriptor, list(arguments)  # it owns layouts that it chose
        self._memories = [Handle("memory", api.dnnl_memory_create, _raw(md), library.engine,
                                 ctypes.c_void_p(0)) for _, md in arguments]
        self._addresses = [memory.value.value for memory in self._memories]
        self._arguments = (_Argument * len(arguments))(
            *[_Argument(name, memory.value) for (name, _), memory in zip(arguments, self._memories)])
        self._handle, self._stream = self._owner.value.value, library.stream.value
        self._where, self._count = ctypes.addressof(self._arguments), len(arguments)

    def __call__(self, *pointers: int) -> None:
        # Execution is synchronous with the OpenMP runtime (checked at load), so there is nothing to wait for.
        library = self._library
        with library.lock:
            set_handle = library.set_handle
            for memory, pointer in zip(self._addresses, pointers):
                set_handle(memory, pointer)
            status = library.execute(self._handle, self._stream, self._count, self._where)
        if status:
            raise RuntimeError(f"oneDNN failed to execute a primitive (status {status})")

    def at(self, *pointers: int) -> "Bound":
        """The same operation tied to the addresses of its arguments, which must stay valid."""
        return Bound(self._owner, self._signature, pointers)


class Bound:
    """A primitive with its arguments at fixed addresses; :func:`run` executes several of them."""

    def __init__(self, primitive: Handle, arguments: Sequence[tuple[int, Any]], pointers: Sequence[int]):
        library = load()
        memories = [Handle("memory", library.api.dnnl_memory_create, _raw(md), library.engine, ctypes.c_void_p(pointer))
                    for (_, md), pointer in zip(arguments, pointers, strict=True)]
        packed = (_Argument * len(arguments))(
            *[_Argument(name, memory.value) for (name, _), memory in zip(arguments, memories)])
        self._kept = primitive, memories, packed
        self.call = primitive.value.value, library.stream.value, len(arguments), ctypes.addressof(packed)


def run(operations: Sequence[Bound]) -> None:
    """Execute operations one after another; a call costs about a microsecond, a tenth of a Paddle operator's."""
    library = load()
    execute = library.execute
    with library.lock:
        status = 0
        for bound in operations:
            status |= execute(*bound.call)
    if status:
        raise RuntimeError(f"oneDNN failed to execute a primitive (status {status})")


def operation(kind: str, *arguments: Any) -> Handle:
    """A primitive descriptor: ``dnnl_<kind>_primitive_desc_create(…, engine, *arguments)``."""
    library = load()
    create = getattr(library.api, f"dnnl_{kind}_primitive_desc_create")
    return Handle("primitive_desc", create, library.engine,
                  *[_raw(argument) for argument in arguments])


def query(descriptor: Handle, what: int) -> ctypes.c_void_p:
    """The memory descriptor that a primitive descriptor chose; lives as long as ``descriptor``."""
    return ctypes.c_void_p(load().api.dnnl_primitive_desc_query_md(descriptor.value, what, 0))


def descriptor_bytes(descriptor: ctypes.c_void_p) -> int:
    """Bytes of memory that a queried descriptor asks for."""
    return load().api.dnnl_memory_desc_get_size(descriptor)


def reorder(source: Any, target: Any) -> Primitive:
    """A copy between two layouts or data types; called with (source, target)."""
    library = load()
    descriptor = Handle("primitive_desc", library.api.dnnl_reorder_primitive_desc_create, _raw(source), library.engine,
                        _raw(target), library.engine, NO_ATTRIBUTES)
    return Primitive(descriptor, [(SRC, source), (DST, target)])


NO_ATTRIBUTES = ctypes.c_void_p(0)
NOTHING = ctypes.c_void_p(0)


class Cache:
    """Primitives by key, the least recently used dropped beyond a bound; safe to use from several threads."""

    def __init__(self, bound: int = _BOUND):
        self._bound, self._entries, self._lock = bound, OrderedDict(), threading.Lock()

    def get(self, key: tuple, build: Callable[..., Any]) -> Any:
        """The entry of ``key``, made by ``build(*key)`` the first time."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry
        entry = build(*key)
        with self._lock:
            self._entries[key] = entry
            while len(self._entries) > self._bound:
                self._entries.popitem(last=False)
        return entry

    def __len__(self) -> int:
        return len(self._entries)
