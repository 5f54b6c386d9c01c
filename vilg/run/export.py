"""A released folder from any checkpoint of a run, also of one that was stopped before its end."""
import dataclasses
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from vilg import config as configs
from vilg.engine.checkpoints.checkpoint import EMA, MODEL, Checkpoint, checkpoints_in
from vilg.engine.checkpoints.manifest import MANIFEST
from vilg.engine.checkpoints.resume import check_identity, newest_sound
from vilg.engine.checkpoints.saver import score
from vilg.engine.checkpoints.tensor_shards import whole
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.errors import CheckpointError, ConfigError
from vilg.release.folder import DESCRIPTION
from vilg.run.build import RunConfig, build_task

AVERAGE = EMA + MODEL
"""What a checkpoint's names of averaged weights begin with."""


@dataclass
class Export:
    """What was written: the folder, the step that its weights are of, and whether they are the moving average."""

    folder: Path
    step: int
    averaged: bool


def export_run(run: str | Path, output: str | Path | None = None, step: int | None = None, best: bool = False
               ) -> Export:
    """Write the released folder of a checkpoint: the newest that verifies, that of ``step``, or with ``best`` the one
    of the lowest mean loss. ``run``: a run's output, or one checkpoint of it.

    ``output``: ``model/`` in the run's output by default, which must then hold no model yet. The averaged weights are
    taken where the run kept an average, as at its end; all else that the model needs is read from where the run's
    config, which the checkpoint carries, has it. Raises CheckpointError and ConfigError.
    """
    checkpoint, home = _choose(Path(run), step, best)
    folder = _target(home, output)
    config = _config_of(checkpoint)
    task = build_task(config)
    check_identity(checkpoint, {"config": configs.to_dict(config), "fingerprints": task.fingerprints()})
    state = {MODEL + name: tensor for name, tensor in task.state().items()}
    surplus = sorted(name for name in checkpoint.names if name.startswith(MODEL) and name not in state)
    if surplus:
        raise CheckpointError(f"{checkpoint.path}: holds {', '.join(surplus[:3])}, which a model of the config that it "
                              "carries lacks; use another checkpoint")
    checkpoint.restore([whole(name, tensor) for name, tensor in state.items()])
    averaged = {name.removeprefix(AVERAGE): checkpoint.full(name) for name in checkpoint.names
                if name.startswith(AVERAGE)}
    task.export(str(folder), averaged or None)
    return Export(folder, checkpoint.step, bool(averaged))


def _choose(run: Path, step: int | None, best: bool) -> tuple[Checkpoint, Path]:
    """The verified checkpoint that is meant, and the run's output."""
    if step is not None and best:
        raise ConfigError("--step and --best: give one of them")
    found = checkpoints_in(run / "checkpoints")
    if not found:
        if step is not None or best or not (run / MANIFEST).exists():
            raise CheckpointError(f"{run}: holds no checkpoint; name the output of a run that has "
                                  "checkpoints/step-… (train.checkpoint_every), or one of them")
        return _verified(run), run.resolve().parent.parent
    if step is not None:
        chosen = next((path for path in found if int(path.name[5:]) == step), None)
        if chosen is None:
            steps = ", ".join(str(int(path.name[5:])) for path in found[-20:])
            raise CheckpointError(f"{run}: has no checkpoint of step {step}; there are {steps}")
        return _verified(chosen), run
    if best:
        scores = {path: score(path) for path in found}
        chosen = min(found, key=lambda path: scores[path])
        if not isfinite(scores[chosen]):
            raise CheckpointError(f"{run}: no checkpoint tells its mean loss; name one with --step")
        return _verified(chosen), run
    newest = newest_sound(Parallel(DistributedConfig()), found)
    if newest is None:
        raise CheckpointError(f"{run}: none of its {len(found)} checkpoints verifies, so there is nothing to export")
    return newest, run


def _verified(path: Path) -> Checkpoint:
    checkpoint = Checkpoint(path)
    checkpoint.verify()
    return checkpoint


def _target(home: Path, output: str | Path | None) -> Path:
    folder = home / "model" if output is None else Path(output)
    if output is None and (folder / DESCRIPTION).exists():
        raise CheckpointError(f"{folder}: holds a released model already; name another folder with --output")
    return folder


def _config_of(checkpoint: Checkpoint) -> RunConfig:
    """The run's config that the checkpoint carries, without what only begins or ends a training."""
    identity: dict[str, Any] = checkpoint.header.get("identity") or {}
    values = identity.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{checkpoint.path}: carries no config, so the model that it is of is not known")
    run = configs.from_dict(RunConfig, values, source=f"{checkpoint.path}: the config it carries")
    if getattr(run.task, "init_from", None):  # the checkpoint's weights take their place
        run = dataclasses.replace(run, task=dataclasses.replace(run.task, init_from=None))
    return run
