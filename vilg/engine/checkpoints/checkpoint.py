"""Checkpoints: written whole or not at all, verified before use, readable by any number of ranks.

A checkpoint is a directory ``step-00001000`` of one safetensors file a rank and a ``manifest.json`` that says, for each
tensor, its shape and which file holds which range of its flattened elements, with the checksum of each file and one of
its own. Ranges make a checkpoint independent of the parallel level that wrote it. The directory is filled under a
temporary name, synced, and renamed last: a name without a leading dot is a complete checkpoint, unless the disk damaged
it since.
"""
import json
import os
import re
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vilg.engine.checkpoints.files import sha256, sync, write_json
from vilg.engine.checkpoints.manifest import FORMAT, MANIFEST, digest, read_manifest
from vilg.engine.checkpoints.tensor_shards import TensorShard
from vilg.errors import CheckpointError

DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""Number formats that a checkpoint holds."""
MODEL, EMA, OPTIMIZER = "model/", "average/", "optimizer/"
"""What names begin with: the task's own tensors, the EMA of its parameters, and what optimizers keep. The format spells
the EMA "average", and in its files shards are "pieces": checkpoints of earlier versions stay readable."""


@dataclass
class StoredShard:
    """A host copy of elements [start, stop) of the flattened tensor ``name``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    values: np.ndarray


def snapshot(shards: list[TensorShard]) -> list[StoredShard]:
    """Host copies of the owned shards, as they are now; training may go on while they are written."""
    copies = []
    for shard in shards:
        if shard.owned and shard.stop > shard.start:
            values = shard.read()  # of a divided tensor all its ranks must
            if shard.written:
                copies.append(StoredShard(shard.name, shard.shape, shard.start, shard.stop, values))
    return copies


def write_rank_file(directory: Path, rank: int, shards: list[StoredShard]) -> None:
    """Write one rank's part into the unfinished checkpoint ``directory``, its index last."""
    name = f"rank-{rank:05d}.safetensors"
    path = directory / name
    safetensors.numpy.save_file({shard.name: shard.values for shard in shards}, str(path))
    sync(path)
    index = {"file": name, "bytes": path.stat().st_size, "sha256": sha256(path),
             "pieces": {shard.name: [list(shard.shape), shard.start, shard.stop] for shard in shards}}
    write_json(directory / f"rank-{rank:05d}.json", index)


def finish(directory: Path, final: Path, ranks: int, header: dict[str, Any]) -> None:
    """Merge the ranks' indices into the manifest, check that nothing is missing, and give the directory its name."""
    files, tensors = {}, {}
    for rank in range(ranks):
        index_path = directory / f"rank-{rank:05d}.json"
        index = json.loads(index_path.read_text(encoding="utf-8"))
        files[index["file"]] = {"bytes": index["bytes"], "sha256": index["sha256"]}
        for name, (shape, start, stop) in index["pieces"].items():
            tensor = tensors.setdefault(name, {"shape": shape, "pieces": []})
            tensor["pieces"].append([index["file"], start, stop])
        index_path.unlink()
    for name, tensor in tensors.items():
        tensor["pieces"].sort(key=lambda shard: shard[1])
        covered = sum(stop - start for _, start, stop in tensor["pieces"])
        if covered != prod(tensor["shape"]):
            raise CheckpointError(f"{final}: {name} is covered {covered} of {prod(tensor['shape'])} elements; "
                                  "the ranks do not hold one model")
    # As it will be read: keys are strings, sequences are lists.
    manifest = json.loads(json.dumps({"format": FORMAT, **header, "files": files, "tensors": tensors}))
    write_json(directory / MANIFEST, manifest | {"sha256": digest(manifest)})
    sync(directory)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        os.rename(final, replaced)
    os.rename(directory, final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


class Checkpoint:
    """A finished checkpoint on disk. Opening reads the manifest only; :meth:`verify` reads everything.

    ``bytes_verified`` and ``bytes_read`` count what this process took from the files, to verify them and to use it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.header = read_manifest(self.path)
        self.step, self._tensors, self._files = (self.header[key] for key in ("step", "tensors", "files"))
        self._open: dict[str, Any] = {}
        self.bytes_verified, self.bytes_read = 0, 0

    @property
    def names(self) -> set[str]:
        """Names of the tensors it holds."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The full shape of tensor ``name``."""
        return tuple(self._tensors[name]["shape"])

    def verifier(self, name: str, start: int, ranks: int) -> int:
        """The rank that verifies the file in which element ``start`` of tensor ``name`` lies: it reads it cheapest."""
        file = next(file for file, first, last in self._tensors[name]["pieces"] if first <= start < last)
        return list(self._files).index(file) % ranks

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Check the size and checksum of every file, or of this rank's share of the files.

        Raises CheckpointError naming the first bad file.
        """
        for number, (name, facts) in enumerate(self._files.items()):
            if number % ranks != rank:
                continue
            path = self.path / name
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing")
            try:
                if path.stat().st_size != facts["bytes"]:
                    raise CheckpointError(f"{path}: holds {path.stat().st_size} bytes instead of {facts['bytes']}")
                self.bytes_verified += facts["bytes"]
                same = sha256(path) == facts["sha256"]
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read ({error.strerror}); use another checkpoint") from None
            if not same:
                raise CheckpointError(f"{path}: its contents do not match their checksum")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements [start, stop) of the flattened tensor ``name``, gathered from the files that hold them."""
        tensor = self._tensors[name]
        stop = prod(tensor["shape"]) if stop is None else stop
        parts = []
        for file, first, last in tensor["pieces"]:
            low, high = max(start, first), min(stop, last)
            if low < high:
                parts.append(self._part(file, name, last - first)[low - first:high - first])
                self.bytes_read += parts[-1].nbytes
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safetensors.safe_open(str(self.path / name), framework="numpy")
            except (OSError, safetensors.SafetensorError) as error:
                raise CheckpointError(f"{self.path / name}: cannot be read ({error}); use another checkpoint") from None
        return self._open[name]

    def _part(self, file: str, name: str, size: int) -> Any:
        """The ``size`` elements of a tensor that ``file`` holds, to be sliced."""
        try:
            part = self._file(file).get_slice(name)
            if part.get_shape() == [size] and part.get_dtype() in DTYPES:
                return part
            problem = f"is {part.get_dtype()} {part.get_shape()} where {size} numbers belong"
        except safetensors.SafetensorError as error:
            problem = str(error)
        raise CheckpointError(f"{self.path / file}: {name[:80]!a} cannot be read ({problem}); use another checkpoint")

    def full(self, name: str) -> np.ndarray:
        """Tensor ``name`` in its own shape."""
        return self.read(name).reshape(self.shape(name))

    def check(self, shards: list[TensorShard]) -> None:
        """Raises CheckpointError when names or shapes of ``shards`` are not those of the checkpoint."""
        names = {shard.name for shard in shards}
        missing, shapes = sorted(names - self.names), []
        if missing and all(name.startswith(EMA) for name in missing):
            raise CheckpointError(f"{self.path}: was made without an EMA of the weights; set train.ema_decay: 0, or "
                                  "begin a new run from its model (task.init_from)")
        if missing and all(name.endswith("/master") for name in missing):
            raise CheckpointError(f"{self.path}: was made without float32 masters; set distributed.amp to what it was, "
                                  "or begin a new run from its model (task.init_from)")
        for shard in shards:
            if shard.name in self.names and self.shape(shard.name) != tuple(shard.shape):
                shapes.append(f"{shard.name} is {list(self.shape(shard.name))} in the checkpoint and "
                              f"{list(shard.shape)} in the model")
        if shapes or missing:
            problem = "; ".join(shapes[:3]) if shapes else f"lacks {', '.join(missing[:3])}"
            raise CheckpointError(f"{self.path}: made by another model size or vocabulary: {problem}; "
                                  "use the config it was made with, or a new output directory")

    def restore(self, shards: list[TensorShard]) -> None:
        """Fill ``shards``. Raises CheckpointError when names or shapes are not those of the checkpoint."""
        self.check(shards)
        for shard in shards:
            if shard.stop > shard.start:
                shard.write(self.read(shard.name, shard.start, shard.stop))


def checkpoints_in(directory: Path) -> list[Path]:
    """Finished checkpoints in ``directory``, oldest first (they may be damaged)."""
    found = [path for path in directory.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]))
