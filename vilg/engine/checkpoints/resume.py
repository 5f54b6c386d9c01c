"""Before a run allocates anything: may it start like this, and from which checkpoint? And then: filling it from that.

Every file is verified by one rank, and every range read by one: what several ranks hold goes on over the wires.
"""
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from vilg.engine.checkpoints import checkpoint as store
from vilg.engine.checkpoints.changes import mapping
from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.engine.checkpoints.files import make_directory
from vilg.engine.checkpoints.output import claim
from vilg.engine.checkpoints.tensor_shards import TensorShard
from vilg.engine.parallel.distributed import Parallel
from vilg.errors import CheckpointError, ConfigError, VilgError

log = logging.getLogger("vilg.train")


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


def choose_checkpoint(parallel: Parallel, resume: str, directory: Path,
                      identity: dict[str, Any]) -> Checkpoint | None:
    """The verified checkpoint that ``resume`` (none, auto or a path) means, None to start afresh; the same on all
    ranks.

    ``directory`` is where the run keeps its checkpoints. Raises CheckpointError when none can be used, when one is in
    the way of a fresh start, or when it was made with other fingerprints or another model than ``identity`` tells.
    """
    found = parallel.broadcast(store.checkpoints_in(directory))
    if resume == "none":
        if found:
            raise CheckpointError(f"{directory.parent}: already holds a run ({found[-1].name}); "
                                  "continue it with --resume auto, or choose another output")
        return None
    if resume == "auto":
        checkpoint = newest_sound(parallel, found)
        if checkpoint is None and found:
            raise CheckpointError(f"{directory}: none of its {len(found)} checkpoints verifies; "
                                  "delete the directory to start over")
    else:
        checkpoint = _verified(parallel, Path(resume))
    if checkpoint is not None:
        check_identity(checkpoint, identity)
    return checkpoint


def newest_sound(parallel: Parallel, paths: list[Path]) -> Checkpoint | None:
    """The newest of checkpoints (oldest first) that verifies; broken ones are passed over with a warning."""
    for path in reversed(paths):
        try:
            return _verified(parallel, path)
        except VilgError as error:
            if parallel.rank == 0:
                log.warning("skipping a broken checkpoint: %s", error)
    return None


def _verified(parallel: Parallel, path: Path) -> Checkpoint:
    """The checkpoint, each of whose files one rank has verified."""
    def verify() -> Checkpoint:
        checkpoint = Checkpoint(path)
        checkpoint.verify(parallel.rank, parallel.ranks)
        return checkpoint

    return together(parallel, verify)


def restore(parallel: Parallel, checkpoint: Checkpoint, shards: list[TensorShard]) -> None:
    """Fill every rank's ``shards``; a range that several ranks hold is read by one of them and sent to the others.

    Raises VilgError on every rank when the checkpoint is not this model's on any.
    """
    together(parallel, lambda: checkpoint.check(shards))
    holders: dict[tuple[str, int, int], list[int]] = {}
    for rank, rows in enumerate(parallel.gather([(shard.name, shard.start, shard.stop) for shard in shards])):
        for row in rows:
            holders.setdefault(row, []).append(rank)
    here = {(shard.name, shard.start, shard.stop): shard for shard in shards if shard.stop > shard.start}
    together(parallel, lambda: _fill(parallel, checkpoint, here, holders))


def _fill(parallel: Parallel, checkpoint: Checkpoint, here: dict[tuple[str, int, int], TensorShard],
          holders: dict[tuple[str, int, int], list[int]]) -> None:
    failure = None
    for (name, start, stop), ranks in holders.items():  # in the same order on every rank
        shard = here.get((name, start, stop))
        if shard is None:
            continue
        # A counter costs less to read than to send.
        sent = stop - start > 1 and parallel.can_send(ranks)
        source = checkpoint.verifier(name, start, parallel.ranks) if sent else parallel.rank
        source = source if source in ranks else ranks[0]
        kind = shard.tensor().dtype
        kind = paddle.float32 if kind in (paddle.bfloat16, paddle.float16) else kind
        values = None
        if source == parallel.rank:
            try:
                values = checkpoint.read(name, start, stop)
            except CheckpointError as error:
                failure = failure or error
                values = np.zeros(stop - start, "float32")
        shard.write(parallel.send(values, stop - start, kind, source, ranks) if sent else values)
    if failure is not None:
        raise failure


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Raise CheckpointError when the checkpoint's model is not the one that ``identity`` tells of."""
    before = checkpoint.header.get("identity")
    theirs = mapping(before, "fingerprints")
    for name, value in identity.get("fingerprints", {}).items():
        if theirs.get(name, value) != value:
            raise CheckpointError(f"{checkpoint.path}: was made with another {name.replace('_', ' ')} ({theirs[name]}, "
                                  f"now {value}); use that one, or a new output directory")
    # Tensors tell sizes apart; these change what the same tensors mean.
    theirs, ours = (mapping(each, "config", "task", "model") for each in (before, identity))
    for name in sorted(theirs.keys() & ours.keys() - {"dropout"}):
        if theirs[name] != ours[name]:
            raise CheckpointError(f"{checkpoint.path}: was made with task.model.{name} {theirs[name]}, now "
                                  f"{ours[name]}; set it back, or begin a new run in a new output directory")


def _flatten(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    return {key: value for name, child in values.items()
            for key, value in _flatten(child, f"{path}.{name}" if path else str(name)).items()}
