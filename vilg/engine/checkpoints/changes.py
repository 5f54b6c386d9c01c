"""What changed in a run's config since a checkpoint was made of it."""
import logging
from collections.abc import Iterator
from typing import Any

from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.errors import CheckpointError
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


def check_changes(checkpoint: Checkpoint, identity: dict[str, Any], allowed: bool) -> None:
    """Name what would make the run go on otherwise than it began, in the log when that is ``allowed``. Raises
    CheckpointError when it is not."""
    before, now = (mapping(each, "config") for each in (checkpoint.header.get("identity"), identity))
    constant = mapping(now, "optim").get("schedule") == "constant"
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


def mapping(values: Any, *keys: str) -> dict[str, Any]:
    """The mapping at a path of keys; an empty one where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}
