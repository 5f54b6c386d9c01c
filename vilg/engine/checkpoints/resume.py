"""Before a run allocates anything: may it start like this, and from which checkpoint?"""
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vilg.engine.checkpoints import checkpoint as store
from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.engine.checkpoints.files import make_directory
from vilg.engine.checkpoints.output import claim
from vilg.engine.parallel.distributed import Parallel
from vilg.errors import CheckpointError, ConfigError, VilgError
from vilg.yaml_files import shown

log = logging.getLogger("vilg.train")
FREE = ("name.", "output.", "train.resume.", "train.resume_changed.", "train.log_every.", "train.preview_every.",
        "train.checkpoint_every.", "train.keep_last.", "train.keep_best.", "train.export.", "train.guards.",
        "train.accumulate_steps.", "distributed.", "runtime.", "sampling.", "data.loader.", "task.preview_captions.",
        "task.preview_pictures.", "task.init_from.", "task.image_tokenizer.", "task.vocabulary.", "task.model.dropout.")
"""Keys that may change on resuming: they decide where, how fast and with what reports a run goes on, or name files
whose fingerprints are compared. ``train.steps`` is as free where the rate does not depend on it."""
MOST_CHANGES = 8
"""That one sentence names."""


def admit(parallel: Parallel, output: Path, config: dict[str, Any]) -> None:
    """Refuse ranks with different configs and an output that cannot be written or is in use, before anything is
    allocated; of several ranks the first holds the output for all."""
    together(parallel, lambda: check_same_config(parallel, config))
    together(parallel, lambda: claim(output) if parallel.rank == 0 else make_directory(output))


def together(parallel: Parallel, action: Callable[[], Any]) -> Any:
    """Run ``action`` on every rank; when it fails on any, all fail with the first failing rank's sentence.

    Returns the action's result. Raises VilgError (of the failure's own class on the rank that failed).
    """
    result, failure = None, None
    try:
        result = action()
    except VilgError as error:
        failure = error
    messages = parallel.gather(str(failure) if failure else None)
    first = next((rank for rank, message in enumerate(messages) if message is not None), None)
    if first is None:
        return result
    if failure is not None and first == parallel.rank:
        raise failure
    raise VilgError(messages[first] if first == 0 else f"rank {first}: {messages[first]}")


def check_same_config(parallel: Parallel, config: dict[str, Any]) -> None:
    """Refuse ranks that were started with different configs. Raises ConfigError naming rank and key."""
    flat = [_flatten(values) for values in parallel.gather(config)]
    for rank, values in enumerate(flat):
        for key in sorted(values.keys() | flat[0].keys()):
            if values.get(key) != flat[0].get(key):
                raise ConfigError(f"{key}: is {flat[0].get(key)!r} on rank 0 and {values.get(key)!r} on rank {rank}; "
                                  "start every rank with the same config")


def choose_checkpoint(resume: str, directory: Path, identity: dict[str, Any], changed: bool = False
                      ) -> Checkpoint | None:
    """The verified checkpoint that ``resume`` (none, auto or a path) means, None to start afresh.

    ``directory`` is where the run keeps its checkpoints. Raises CheckpointError when none can be used, when one is in
    the way of a fresh start, when it was made with other fingerprints or another model than ``identity`` tells, or,
    unless ``changed`` allows it, with a config that would have led elsewhere.
    """
    found = store.checkpoints_in(directory)
    if resume == "none":
        if found:
            raise CheckpointError(f"{directory.parent}: already holds a run ({found[-1].name}); "
                                  "continue it with --resume auto, or choose another output")
        return None
    if resume == "auto":
        checkpoint = store.newest_sound(directory)
        if checkpoint is None and found:
            raise CheckpointError(f"{directory}: none of its {len(found)} checkpoints verifies; "
                                  "delete the directory to start over")
    else:
        checkpoint = Checkpoint(resume)
        checkpoint.verify()
    if checkpoint is not None:
        check_identity(checkpoint, identity)
        _check_changes(checkpoint, identity, changed)
    return checkpoint


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Raise CheckpointError when the checkpoint's model is not the one that ``identity`` tells of."""
    before = checkpoint.header.get("identity")
    theirs = _mapping(before, "fingerprints")
    for name, value in identity.get("fingerprints", {}).items():
        if theirs.get(name, value) != value:
            raise CheckpointError(f"{checkpoint.path}: was made with another {name.replace('_', ' ')} ({theirs[name]}, "
                                  f"now {value}); use that one, or a new output directory")
    # Tensors tell sizes apart; these change what the same tensors mean.
    theirs, ours = (_mapping(each, "config", "task", "model") for each in (before, identity))
    for name in sorted(theirs.keys() & ours.keys() - {"dropout"}):
        if theirs[name] != ours[name]:
            raise CheckpointError(f"{checkpoint.path}: was made with task.model.{name} {theirs[name]}, now "
                                  f"{ours[name]}; set it back, or begin a new run in a new output directory")


def _check_changes(checkpoint: Checkpoint, identity: dict[str, Any], allowed: bool) -> None:
    """Name what would make the run go on otherwise than it began."""
    before, now = (_mapping(each, "config") for each in (checkpoint.header.get("identity"), identity))
    constant = _mapping(now, "optim").get("schedule") == "constant"
    found = [(key, old, new) for key, old, new in _changes(before, now)
             if not (f"{key}.".startswith(FREE) or key == "train.steps" and constant)]
    if not found:
        return
    listed = ", ".join(f"{key}: {shown(old)} → {shown(new)}" for key, old, new in found[:MOST_CHANGES])
    listed += f" and {len(found) - MOST_CHANGES} more" if len(found) > MOST_CHANGES else ""
    if not allowed:
        raise CheckpointError(f"{checkpoint.path}: the config has changed since ({listed}); set it back, or go on with "
                              "the change by train.resume_changed: true")
    log.warning("going on with a changed config: %s", listed)


def _changes(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of what differs; a key that only one of them knows is another version's."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in (key for key in now if key in before):
            yield from _changes(before[key], now[key], f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now)):
            yield from _changes(old, new, f"{path}.{number}")
    elif before != now:
        yield path, before, now


def _mapping(values: Any, *keys: str) -> dict[str, Any]:
    """The mapping at a path of keys; an empty one where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _flatten(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    return {key: value for name, child in values.items()
            for key, value in _flatten(child, f"{path}.{name}" if path else str(name)).items()}
