"""Named arrays out of files that other projects wrote: safetensors or PyTorch checkpoints, nothing of which is run."""
from pathlib import Path
from typing import Any

import numpy as np

from vilg.errors import CheckpointError
from vilg.weights.files import read_weights
from vilg.weights.torch_checkpoint import StandIn, read_torch_checkpoint


def read_foreign_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Named arrays of a safetensors file or a PyTorch checkpoint (state dict, Lightning checkpoint or whole module).

    Nothing that the file asks for is run. Raises CheckpointError when the file is missing,
    cut short or holds no weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_weights(path)
    content = read_torch_checkpoint(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    arrays = _module_arrays(content) if isinstance(content, StandIn) else _arrays(content)
    if not arrays:
        raise CheckpointError(f"{path}: holds no named weights")
    return arrays


def _arrays(content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}


def _module_arrays(module: StandIn, prefix: str = "") -> dict[str, np.ndarray]:
    """Weights of a module that was pickled whole: its parameters, buffers and those of its children, by path."""
    found = {}
    for part in ("_parameters", "_buffers"):
        found |= {f"{prefix}{name}": value for name, value in _arrays(vars(module).get(part)).items()}
    for name, child in (vars(module).get("_modules") or {}).items():
        if isinstance(child, StandIn):
            found |= _module_arrays(child, f"{prefix}{name}.")
    return found
