"""Named arrays out of files that other projects wrote: safetensors or PyTorch checkpoints, nothing of which is run."""
import logging
from pathlib import Path
from typing import Any

import numpy as np

from vilg.errors import CheckpointError
from vilg.weights.files import FOREIGN, read_stored, refuse_non_finite, widened
from vilg.weights.torch_checkpoint import StandIn, StoredTensor, read_torch_checkpoint

log = logging.getLogger(__name__)
LONGEST_NAME = 1000
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params")
"""Under which of its keys a checkpoint holds the weights."""
AVERAGES = ("ema_state_dict", "state_dict_ema", "model_ema", "params_ema", "ema")
"""Under which of its keys, or before which names, the averages of weights (EMA) lie; what is drawn with where they are
kept."""
ASIDE = ("decay", "num_updates")
"""What an average's module holds besides."""


def read_foreign_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Named arrays of a safetensors file or a PyTorch checkpoint (state dict, Lightning checkpoint or whole module).

    bfloat16 comes back as float32, the others as they are. Averages that lie in a dict of their own with the same names
    take the place of the weights, and a line of the log says so. Nothing that the file asks for is run. Raises
    CheckpointError when the file is missing, cut short or holds no weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_stored(path, FOREIGN)
    content = read_torch_checkpoint(path)
    arrays = _named(content, str(path))
    if isinstance(content, dict) and not arrays:
        found = next((name for name in WRAPPERS if _named(content.get(name))), None)
        arrays = _named(content.get(found), str(path))
        average = next((name for name in AVERAGES if _named(content.get(name))), None)
        averaged = _named(content.get(average))
        if averaged and (not arrays or averaged.keys() == arrays.keys()):
            log.warning("%s: its averaged weights (%s) are taken", path, average)
            arrays = averaged
    if not arrays:
        raise CheckpointError(f"{path}: holds no named weights")
    return {name: tensor.array() for name, tensor in arrays.items()}


def weights_beginning_with(arrays: dict[str, np.ndarray], first: str, source: str) -> dict[str, np.ndarray]:
    """The weights of one module out of a checkpoint's, as float32: those that stand beside the weight ``first``, under
    its plain name or behind a prefix (``module.``, ``first_stage_model.`` …), which is taken off.

    Averages with the same names behind a prefix of their own (``model_ema.``, dots in names or not) take their place,
    and a line of the log says so. Raises CheckpointError when several modules have such a weight, or when one is not
    finite.
    """
    found = [name[:-len(first)] for name in arrays if name == first or name.endswith(f".{first}")]
    plain = [prefix for prefix in found if not _is_average(prefix)]
    prefix = "" if not found else (plain or found)[0]
    if "" not in plain and len(plain) > 1:
        if "first_stage_model." not in plain:
            raise CheckpointError(f"{source}: holds several such modules ({', '.join(sorted(plain)[:5])}); save the "
                                  "one that is wanted by itself")
        prefix = "first_stage_model."
    prefix = "" if "" in plain else prefix
    own = {name.removeprefix(prefix): value for name, value in arrays.items()
           if name.startswith(prefix) and not _is_average(name.removeprefix(prefix))}
    averages = _averages(arrays, prefix, own)
    if averages:
        log.warning("%s: its averaged weights (EMA) are taken", source)
    own = widened(own | averages)
    refuse_non_finite(own, source)
    return own


def _is_average(prefix: str) -> bool:
    return any(part in (*AVERAGES, "ema_model") for part in prefix.split("."))


def _averages(arrays: dict[str, np.ndarray], prefix: str, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Averages of ``own`` weights among ``arrays``, by those weights' names; empty unless all of a set are known."""
    without_dots = {name.replace(".", ""): name for name in own}
    for mark in (f"{before}{average}." for before in (prefix, "") for average in (*AVERAGES, "ema_model")):
        found = {name.removeprefix(mark): value for name, value in arrays.items()
                 if name.startswith(mark) and name.removeprefix(mark) not in ASIDE}
        named = {without_dots.get(name.replace(".", ""), ""): value for name, value in found.items()}
        if found and "" not in named and all(own[name].shape == value.shape for name, value in named.items()):
            return named
    return {}


def _named(content: Any, source: str = "") -> dict[str, StoredTensor]:
    if isinstance(content, StandIn):
        return _module_tensors(content, source)
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, StoredTensor)}


def _module_tensors(module: StandIn, source: str) -> dict[str, StoredTensor]:
    """Weights of a module that was pickled whole: its parameters, buffers and those of its children, by path. A module
    that is met twice counts once, as in PyTorch."""
    found, waiting, seen = {}, [("", module)], set()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if len(prefix) > LONGEST_NAME:
            raise CheckpointError(f"{source}: its modules are nested too deep for any model")
        for part in ("_parameters", "_buffers"):
            found |= {f"{prefix}{name}": value for name, value in _named(vars(module).get(part)).items()}
        children = vars(module).get("_modules")
        for name, child in (children.items() if isinstance(children, dict) else ()):
            if isinstance(child, StandIn):
                waiting.append((f"{prefix}{name}.", child))
    return found
