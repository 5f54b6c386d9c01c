"""Weights on disk: safetensors in, safetensors out, refused with a clear sentence when they do not fit.

Nothing here unpickles. A file is written under a temporary name, synced and renamed,
so that a reader never sees half of it.
"""
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle
import safetensors
import safetensors.numpy

from vilg.errors import CheckpointError

STORED = ("F16", "F32", "I64", "I32", "BOOL")
"""What the weights of this project are stored as, in the words of safetensors."""
FOREIGN = (*STORED, "BF16", "F64", "I16", "I8", "U8")
"""What is read of other projects' files as well."""
Arrays = Mapping[str, paddle.Tensor | np.ndarray]


def save_weights(path: str | Path, state: Arrays, metadata: dict[str, str] | None = None,
                 dtype: str | None = None) -> None:
    """Write ``state`` atomically; floating-point values are stored as ``dtype`` ("float16", "float32") when given.
    Raises CheckpointError for values that are not finite, or are too large for ``dtype``."""
    write_arrays(path, as_stored(state, dtype, str(path)), metadata)


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write ``arrays`` atomically, as they are: what is kept to find an error in may hold any values.
    Raises CheckpointError when the file cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(arrays, str(temporary), metadata=metadata)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:  # the latter when the disk fills up
        raise CheckpointError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def as_stored(state: Arrays, dtype: str | None, source: str) -> dict[str, np.ndarray]:
    """``state`` as arrays of the values that :func:`save_weights` stores. Raises CheckpointError as it does."""
    arrays = {}
    for name, value in state.items():
        array = as_array(value)
        refuse_non_finite({name: array}, source)
        if dtype and array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(dtype)
            if not np.isfinite(array).all():
                raise CheckpointError(f"{source}: {name} has values too large for {dtype}; store it as float32")
        arrays[name] = array
    return arrays


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; half-precision values come back as float32. Raises CheckpointError."""
    return widened(read_stored(path, STORED))


def read_stored(path: str | Path, kinds: tuple[str, ...] = STORED) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as they are stored; bfloat16, which numpy has not, comes back as float32.

    Raises CheckpointError for a file that is missing or not whole, and for a tensor of none of the ``kinds``.
    """
    path = Path(path)
    stored = check_kinds(path, kinds)
    try:
        return _read_with_bfloat16(path) if "BF16" in stored.values() else safetensors.numpy.load_file(str(path))
    except Exception as error:
        raise _not_whole(path, error) from None


def check_kinds(path: Path, kinds: tuple[str, ...]) -> dict[str, str]:
    """What each tensor of a safetensors file is stored as, in its words, by name. Raises CheckpointError for a file
    that is missing or not whole, and for a tensor of none of the ``kinds``."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such weights file")
    try:
        with safetensors.safe_open(str(path), "numpy") as file:  # checks that the header describes the file, to a byte
            stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    except Exception as error:  # the reader raises its own, KeyError, TypeError and more, by what is damaged
        raise _not_whole(path, error) from None
    odd = sorted(name for name, kind in stored.items() if kind not in kinds)
    if odd:
        raise CheckpointError(f"{path}: holds {odd[0]} as {stored[odd[0]]}, which is not read here; store it as "
                              "float16 or float32 again")
    return stored


def _not_whole(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch or write it again")


def widened(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``stored`` with float16 and float64 as float32, which everything is computed in."""
    arrays = {}
    for name, array in stored.items():
        arrays[name] = array.astype("float32") if array.dtype in (np.float16, np.float64) else array
    return arrays


def load_weights(layer: paddle.nn.Layer, state: Mapping[str, np.ndarray], source: str) -> None:
    """Put ``state`` into ``layer``; every name, shape and kind of number must fit, and the message names the first ones
    that do not. Raises CheckpointError, for values that are not finite too."""
    check_fit(layer, {name: (list(array.shape), array.dtype) for name, array in state.items()}, source)
    refuse_non_finite(state, source)
    layer.set_state_dict({name: paddle.to_tensor(array) for name, array in state.items()})


def check_fit(layer: paddle.nn.Layer, found: dict[str, tuple[list[int], np.dtype]], source: str) -> None:
    """Raise CheckpointError that names the first weights which do not fit those of ``layer``, by the shapes and data
    types ``found``."""
    own = layer.state_dict()
    missing, unexpected = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    shapes = [f"{name} is {found[name][0]} in the file and {list(own[name].shape)} in the model"
              for name in own if name in found and found[name][0] != list(own[name].shape)]
    kinds = [f"{name} is {found[name][1]} in the file and {_dtype(own[name])} in the model" for name in own
             if name in found and (found[name][1].kind == "f") != ("float" in _dtype(own[name]))]
    problems = [f"lacks {_some(missing)}"] if missing else []
    problems += [f"has unknown {_some(unexpected)}"] if unexpected else []
    problems += [_some(shapes)] if shapes else []
    problems += [_some(kinds)] if kinds else []
    if problems:
        raise CheckpointError(f"{source}: does not fit {type(layer).__name__}: {'; '.join(problems)}; "
                              "use the config these weights were trained with")


def refuse_non_finite(state: Mapping[str, np.ndarray], source: str) -> None:
    """Raise CheckpointError that names the first tensor with a value that is NaN or infinite."""
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite; the file is damaged, or the "
                                  "training that wrote it had failed")


def fingerprint(state: Arrays) -> str:
    """A short hash of names, shapes and float16-rounded values: the same before and after half-precision storage."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        array = as_array(value)
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype("float16")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def as_array(value: paddle.Tensor | np.ndarray) -> np.ndarray:
    """A host copy in C order. bfloat16, which numpy would give as the bare bits of integers, comes as float32."""
    if isinstance(value, paddle.Tensor):
        value = (value.astype("float32") if value.dtype == paddle.bfloat16 else value).numpy()
    return np.ascontiguousarray(value)


def bfloat16_values(content: bytes) -> np.ndarray:
    """bfloat16 numbers → float32 [N]. They are the upper half of a float32; the lower half is filled with zeros."""
    return (np.frombuffer(content, "<u2").astype("uint32") << 16).view("float32")


def _read_with_bfloat16(path: Path) -> dict[str, np.ndarray]:
    """As :func:`read_stored`, by hand: ``path`` was found to be whole."""
    names = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
             "BOOL": "?"}
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    arrays = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        part = content[start + first:start + last]
        values = bfloat16_values(part) if entry["dtype"] == "BF16" else np.frombuffer(part, names[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays


def _dtype(tensor: paddle.Tensor) -> str:
    return str(tensor.dtype).removeprefix("paddle.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
