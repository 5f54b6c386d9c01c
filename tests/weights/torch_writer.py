"""Writes what ``torch.save`` writes, without PyTorch: a zip archive, or the older stream."""
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage",
         "uint16": "BFloat16Storage"}  # numpy has no bfloat16: its bits stand for it


class Tensor:
    """An array that pickles as PyTorch's tensors do."""

    def __init__(self, array: np.ndarray):
        self.storage = Storage(np.ascontiguousarray(array))
        self.shape = array.shape

    def __reduce__(self):
        strides = [int(np.prod(self.shape[axis + 1:])) for axis in range(len(self.shape))]
        return (sys.modules["torch._utils"]._rebuild_tensor_v2,
                (self.storage, 0, tuple(self.shape), tuple(strides), False, OrderedDict()))


class Storage:
    def __init__(self, array: np.ndarray):
        self.array = array


@contextmanager
def _fake_torch():
    """Modules with PyTorch's names, so that the pickle refers to them; what was there is put back."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("a reader must not call this")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    inner._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in KINDS.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    torch._utils = inner
    kept = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": inner})
    try:
        yield torch
    finally:
        for name, module in kept.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _pickler(torch, storages: list[np.ndarray], handle, stream: bool) -> pickle.Pickler:
    recorded = set()

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            if stream and isinstance(obj, type) and hasattr(obj, "recorded") and obj not in recorded:
                recorded.add(obj)
                return "module", obj, "model.py", "class Module: ..."
            if not isinstance(obj, Storage):
                return None
            storages.append(obj.array)
            kind = getattr(torch, KINDS[obj.array.dtype.name])
            return ("storage", kind, str(len(storages) - 1), "cpu", obj.array.size) + ((None,) if stream else ())

    return Pickler(handle, protocol=2)


def save(path, content) -> None:
    """The archive form. ``content`` holds :class:`Tensor`, containers and whatever else pickles."""
    storages, buffer = [], io.BytesIO()
    with _fake_torch() as torch:
        _pickler(torch, storages, buffer, stream=False).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/version", "3\n")
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())


def save_stream(path, content) -> None:
    """The older form."""
    storages, buffer = [], io.BytesIO()
    for header in (MAGIC, 1001, {"little_endian": True}):
        pickle.dump(header, buffer, protocol=2)
    with _fake_torch() as torch:
        _pickler(torch, storages, buffer, stream=True).dump(content)
    pickle.dump([str(key) for key in range(len(storages))], buffer, protocol=2)
    for array in storages:
        buffer.write(struct.pack("<q", array.size) + array.tobytes())
    path.write_bytes(buffer.getvalue())


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """A state dict of :class:`Tensor`."""
    return OrderedDict((name, Tensor(array)) for name, array in arrays.items())
