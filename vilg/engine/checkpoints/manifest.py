"""The manifest of a checkpoint: what it says is checked whole before any of it is used."""
import hashlib
import json
import re
from math import prod
from pathlib import Path
from typing import Any

from vilg.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT, WITHOUT_CHECKSUM = 2, 1
LARGEST_BYTES = 256 * 2 ** 20
LARGEST_STEP = 10 ** 12
_FILE = re.compile(r"rank-\d{5,9}\.safetensors")
_NAMED = re.compile(r"step-(\d+)")
# What a trainer adds, where it does.
_HEADER = {"loss": (int, float), "score": (int, float, type(None)), "guard": dict, "scale": dict, "loader": dict,
           "identity": dict}


def digest(manifest: dict[str, Any]) -> str:
    """The checksum of a manifest that has none yet."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of the checkpoint ``directory``, without its checksum. Raises CheckpointError when there is none,
    when it was changed, or when it says what no trainer writes."""
    path = directory / MANIFEST
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_BYTES:
            raise ValueError("no file of a manifest's size")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(manifest, dict) and {"step", "tensors", "files"} <= manifest.keys()
    except (OSError, ValueError, RecursionError):
        known = False
    if not known:
        raise CheckpointError(f"{directory}: not a checkpoint (no readable {MANIFEST}); name a directory step-…")
    form = manifest.get("format")
    if type(form) is not int or form not in (FORMAT, WITHOUT_CHECKSUM):
        raise CheckpointError(f"{directory}: has format {str(form)[:40]}, this version reads {FORMAT}")
    try:
        if manifest.pop("sha256", None) != (digest(manifest) if form == FORMAT else None):
            raise CheckpointError(f"{path}: its contents do not match their checksum")
    except RecursionError:
        raise CheckpointError(f"{path}: is nested too deep for a manifest; use another checkpoint") from None
    problem = _problem(manifest, directory.name)
    if problem:
        raise CheckpointError(f"{path}: {problem}, which no trainer writes; use another checkpoint")
    return manifest


def _problem(manifest: dict[str, Any], name: str) -> str | None:
    """What is wrong with a manifest; None for a good one."""
    step, named = manifest["step"], _NAMED.fullmatch(name)
    if not _whole(step, LARGEST_STEP) or (named and int(named[1]) != step):
        return f"its step is {str(step)[:40]} in a directory named {name[:80]}"
    for key, kinds in _HEADER.items():
        value = manifest.get(key)
        if key in manifest and (isinstance(value, bool) or not isinstance(value, kinds)):
            return f"its {key} is {str(value)[:40]}"
    files, tensors = manifest["files"], manifest["tensors"]
    if not isinstance(files, dict) or not isinstance(tensors, dict):
        return "its files and tensors are no mappings"
    for file, facts in files.items():
        if not (_FILE.fullmatch(file) and isinstance(facts, dict) and _whole(facts.get("bytes"))
                and isinstance(facts.get("sha256"), str)):
            return f"it names a file {file[:80]!a} without size and checksum"
    for tensor, facts in tensors.items():
        if not _covered(facts, files):
            return f"the ranges of {tensor[:80]!a} do not make a tensor"
    return None


def _covered(facts: Any, files: dict[str, Any]) -> bool:
    """Do the ranges follow each other from the first element to the last, in files that are there?"""
    shape, pieces = (facts.get(key) if isinstance(facts, dict) else None for key in ("shape", "pieces"))
    if not (isinstance(shape, list) and isinstance(pieces, list) and len(shape) < 32 and all(map(_whole, shape))):
        return False
    end = 0
    for piece in pieces:
        if not (isinstance(piece, list) and len(piece) == 3 and isinstance(piece[0], str) and piece[0] in files):
            return False
        if not (_whole(piece[1]) and _whole(piece[2]) and piece[1] == end < piece[2]):
            return False
        end = piece[2]
    return end == prod(shape)


def _whole(value: Any, most: int = 2 ** 53) -> bool:
    return type(value) is int and 0 <= value <= most
