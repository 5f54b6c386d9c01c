"""Weights on disk: safetensors in, safetensors out, refused with a clear sentence when they do not fit.

Nothing here unpickles. A file is written under a temporary name, synced and renamed,
so that a reader never sees half of it.
"""
import hashlib
import os
from pathlib import Path

import numpy as np
import paddle
import safetensors
import safetensors.numpy

from vilg.errors import CheckpointError


def save_weights(path: str | Path, state: dict[str, paddle.Tensor | np.ndarray], metadata: dict[str, str] | None = None,
                 dtype: str | None = None) -> None:
    """Write ``state`` atomically; floating-point values are stored as ``dtype`` ("float16", "float32") when given."""
    path = Path(path)
    arrays = {}
    for name, value in state.items():
        array = as_array(value)
        arrays[name] = array.astype(dtype) if dtype and array.dtype.kind == "f" else array
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        safetensors.numpy.save_file(arrays, str(temporary), metadata=metadata)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:  # the latter when the disk fills up
        raise CheckpointError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; half-precision values come back as float32. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such weights file")
    try:
        arrays = safetensors.numpy.load_file(str(path))
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from None
    return {name: array.astype("float32") if array.dtype == np.float16 else array for name, array in arrays.items()}


def load_weights(layer: paddle.nn.Layer, state: dict[str, np.ndarray], source: str) -> None:
    """Put ``state`` into ``layer``; every name and shape must fit, and the message names the first ones that do not."""
    own = layer.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [f"{name} is {list(state[name].shape)} in the file and {list(own[name].shape)} in the model"
              for name in own if name in state and list(state[name].shape) != list(own[name].shape)]
    problems = [f"lacks {_some(missing)}"] if missing else []
    problems += [f"has unknown {_some(unexpected)}"] if unexpected else []
    problems += [_some(shapes)] if shapes else []
    if problems:
        raise CheckpointError(f"{source}: does not fit {type(layer).__name__}: {'; '.join(problems)}; "
                              "use the config these weights were trained with")
    layer.set_state_dict({name: paddle.to_tensor(array) for name, array in state.items()})


def fingerprint(state: dict[str, paddle.Tensor | np.ndarray]) -> str:
    """A short hash of names, shapes and float16-rounded values: the same before and after half-precision storage."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        array = as_array(value)
        if array.dtype.kind == "f":
            array = array.astype("float16")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def as_array(value: paddle.Tensor | np.ndarray) -> np.ndarray:
    """A host copy in C order. bfloat16, which numpy would give as the bare bits of integers, comes as float32."""
    if isinstance(value, paddle.Tensor):
        value = (value.astype("float32") if value.dtype == paddle.bfloat16 else value).numpy()
    return np.ascontiguousarray(value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
