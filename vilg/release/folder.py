"""Released folders: written whole or not at all, and read only when nothing in them was changed since.

``model.yaml`` says the kind, the form of the folder, the config and a fingerprint; ``model.safetensors`` holds the
weights; ``vocab.txt`` the text tokenizer, where there is one; parts are folders of the same form. The fingerprint is
over all that ``model.yaml`` says, and over name, shape, number format and every bit of the weights; the fingerprints
of parts and vocabulary stand in ``model.yaml``, so that one covers all. Form 1 (before version 1.1) had no such
fingerprint: it is read with the checks it carries, and `release.write` makes form 2 of what was read.
"""
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import paddle
import yaml
from paddle import nn

from vilg import config as configs
from vilg.errors import CheckpointError, VilgError
from vilg.kernels.onednn import precision
from vilg.release.lean import fill
from vilg.release.registry import Contents, Kind, kind_named
from vilg.release.staging import staged
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer
from vilg.weights import int8
from vilg.weights.files import (
    STORED, as_stored, fingerprint, load_weights, refuse_non_finite, widened, write_arrays,
)
from vilg.weights.limits import at_most, check_size, limit
from vilg.weights.stored import Stored
from vilg.yaml_files import read_yaml

C = TypeVar("C")
L = TypeVar("L", bound=nn.Layer)
DESCRIPTION, WEIGHTS, VOCABULARY = "model.yaml", "model.safetensors", "vocab.txt"
FORM = 2
MOST_VALUES = 10_000
"""What ``model.yaml`` may hold, aliases followed."""


def write(folder: str | Path, kind: str, thing: Any, replaced: dict[str, np.ndarray] | None = None,
          dtype: str | None = "float16") -> str:
    """Write ``thing`` as a released folder of ``kind``; returns the folder's fingerprint.

    ``replaced``: weights by name that go in the place of the thing's own (an average). ``dtype``: what floating-point
    weights are stored as; "int8" rounds the matrices of a kind that names them (:mod:`vilg.weights.int8`) and stores
    the others, and parts, as float16. An older release in the folder is replaced, other files stay. Raises
    CheckpointError when a weight is not finite or the disk fills up; the folder is then as it was.
    """
    contents = kind_named(kind, str(folder)).pack(thing, replaced or {})
    with staged(Path(folder), _parts_there(Path(folder))) as stage:
        mark = _write(stage, contents, dtype)
    return mark


def read(folder: str | Path, kind: str | None = None, **beside: Any) -> Any:
    """Read a released folder: a :class:`~vilg.release.kinds.bidirectional.ReleasedModel`, an image tokenizer …, ready
    to use. ``kind``: the only one of use to the caller. ``beside``: what the folder is a part of (a reconstructor's).

    Raises CheckpointError when the folder is of another kind, not whole, or changed since it was written.
    """
    opened = open_folder(folder, kind)
    return opened.kind.restore(opened, **beside)


@dataclass
class Opened:
    """A released folder whose files were read and found unchanged; nothing is built yet.

    ``said`` is ``model.yaml``, ``weights`` arrays by name, half precision as float32 and int8 too, matrix by matrix
    when it is asked for; ``form`` the folder's form.
    """

    folder: Path
    kind: Kind
    said: dict[str, Any]
    weights: Mapping[str, np.ndarray]
    form: int

    @property
    def int8(self) -> bool:
        """Does it hold int8?"""
        return isinstance(self.weights, int8.Restored)

    def section(self, key: str, cls: type[C]) -> C:
        """The config dataclass under ``key``. Raises ConfigError."""
        return configs.from_dict(cls, self.values(key), source=f"{self.folder / DESCRIPTION}: {key}")

    def values(self, key: str) -> dict[str, Any]:
        """The mapping under ``key``. Raises CheckpointError."""
        values = self.said.get(key)
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.folder / DESCRIPTION}: does not describe {self.kind.title}: it has no {key}")
        return values

    def build(self, make: Callable[[], L], spare: int = 0, drawing: bool = False) -> L:
        """The layer that ``make`` makes, with the folder's weights, in eval mode. It may ask for little more numbers
        than the file holds and ``spare``. ``drawing``: where int8 is on and the folder is of it, linear maps hold
        int8 alone, and are made one at a time. Raises CheckpointError when the two do not fit."""
        for key, value in self.said.items():
            if key != "sampling":
                self.claim(_largest(value))
        lean = drawing and self.int8 and precision.int8()
        with at_most(self._size() + spare, str(self.folder)), paddle.LazyGuard() if lean else nullcontext():
            layer = make()
        if isinstance(self.weights, int8.Restored):
            fill(layer, self.weights, lean)
        else:
            load_weights(layer, self.weights, str(self.folder / WEIGHTS))
        layer.eval()
        return layer

    def claim(self, elements: int) -> None:
        """Raise CheckpointError when ``elements`` numbers, by the config's word, are far more than the weights are."""
        check_size(elements, limit(self._size()), str(self.folder))

    def _size(self) -> int:
        if isinstance(self.weights, int8.Restored):
            return sum(math.prod(shape) for shape, _ in self.weights.found().values())
        return sum(array.size for array in self.weights.values())

    def text_tokenizer(self) -> WordPieceTokenizer:
        """The folder's text tokenizer. Raises CheckpointError when it is not the one that ``model.yaml`` names."""
        tokenizer = WordPieceTokenizer.from_folder(self.folder)
        self.refuse_others({"vocabulary": ("vocabulary", tokenizer.fingerprint())})
        return tokenizer

    def part(self, name: str, kind: str, **beside: Any) -> Any:
        """What lies in the folder ``name`` within; None where there is none. Raises CheckpointError when the part is
        not the one that the folder was written with."""
        there = (self.folder / name).is_dir()
        if self.form == 1:
            return read(self.folder / name, kind, **beside) if there else None
        parts = self.said.get("parts")
        parts = parts if isinstance(parts, dict) else {}
        if there != (name in parts):
            raise CheckpointError(f"{self.folder}: {DESCRIPTION} {'names no' if there else 'names a'} part {name}, but "
                                  f"that folder is {'there' if there else 'missing'}; fetch or write the whole again")
        if not there:
            return None
        opened = open_folder(self.folder / name, kind)
        if opened.said.get("fingerprint") != parts[name]:
            raise CheckpointError(f"{self.folder / name}: its fingerprint is {opened.said.get('fingerprint')}, but "
                                  f"{self.folder / DESCRIPTION} was written with {parts[name]}; take the {name} that "
                                  "was exported with this model")
        return opened.kind.restore(opened, **beside)

    def refuse_others(self, facts: dict[str, tuple[str, Any]]) -> None:
        """Raise CheckpointError when ``model.yaml`` says something else under a key than what is in use: key →
        (its name in a sentence, the value in use)."""
        for key, (name, ours) in facts.items():
            if self.said.get(key) != ours:
                raise CheckpointError(f"{self.folder}: was trained with the {name} {self.said.get(key)}, but {ours} is "
                                      f"in use; use the {name} that belongs to it")


def open_folder(folder: str | Path, kind: str | None = None) -> Opened:
    """Read the files of a released folder and check what can be checked before anything is built. Raises
    CheckpointError as :func:`read` does."""
    folder = Path(folder)
    said, form = describe(folder, kind)
    weights = folder / WEIGHTS
    stored = Stored(weights, (*STORED, "I8"))
    refuse_non_finite(stored, str(weights))
    if form == FORM:
        _same(said.get("fingerprint"), _fingerprint(said, stored, str(folder / DESCRIPTION)), folder)
    elif "fingerprint" in said:  # form 1 of image tokenizers: of the weights alone
        _same(said["fingerprint"], fingerprint(stored), folder)
    read = int8.Restored(stored, str(weights)) if int8.is_int8(stored) else widened(stored)
    return Opened(folder, kind_named(said["kind"], str(folder / DESCRIPTION)), said, read, form)


def describe(folder: str | Path, kind: str | None = None) -> tuple[dict[str, Any], int]:
    """What ``model.yaml`` says, and the folder's form. Raises CheckpointError when it is not of ``kind`` (any if None),
    of a kind that is not known, or of a later form."""
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a released model folder (it has no {DESCRIPTION}); `tools/train.py` "
                              "writes one at the end of a run" + (f", here {kind_named(kind, '').title}" if kind else
                                                                  ""))
    said = read_yaml(path)
    found = kind_named(said.get("kind"), str(path))
    if kind is not None and said["kind"] != kind:
        raise CheckpointError(f"{path}: does not describe {kind_named(kind, str(path)).title}, which is wanted here: "
                              f"it holds {found.title} (kind: {said['kind']})")
    form = said.get("format", 1)
    if form not in (1, FORM) or isinstance(form, bool):
        raise CheckpointError(f"{path}: is of form {str(form)[:40]}, and this version of vilg reads 1 and {FORM}; read "
                              "it with the version that wrote it, or update vilg")
    return said, form


def _parts_there(folder: Path) -> list[str]:
    """Names of the parts of the release that lies in ``folder``; none where there is none that can be read."""
    try:
        said, form = describe(folder)
    except VilgError:
        return []
    names = kind_named(said["kind"], str(folder)).old_parts if form == 1 else said.get("parts")
    return [name for name in names or () if isinstance(name, str) and Path(name).name == name]


def _write(folder: Path, contents: Contents, dtype: str | None) -> str:
    parts = {name: _write(folder / name, part, dtype) for name, part in contents.parts.items()}
    write_arrays(folder / WEIGHTS, _stored(contents, dtype, str(folder / WEIGHTS)), {"format": "vilg"})
    said = {"kind": contents.kind, "format": FORM}
    said |= {key: configs.to_dict(value) if is_dataclass(value) else value for key, value in contents.sections.items()}
    if contents.text_tokenizer is not None:
        contents.text_tokenizer.save(folder)
        said["vocabulary"] = contents.text_tokenizer.fingerprint()
    if parts:
        said["parts"] = parts
    path = folder / DESCRIPTION
    # What is written is read back, so that the fingerprint is over what a reader will find.
    path.write_text(yaml.safe_dump(said, sort_keys=False, allow_unicode=True), encoding="utf-8")
    mark = _fingerprint(read_yaml(path), Stored(folder / WEIGHTS, (*STORED, "I8")), str(path))
    path.write_text(yaml.safe_dump(said | {"fingerprint": mark}, sort_keys=False, allow_unicode=True),
                    encoding="utf-8")
    return mark


def _stored(contents: Contents, dtype: str | None, source: str) -> dict[str, np.ndarray]:
    if dtype != "int8":
        return as_stored(contents.weights, dtype, source)
    axes = contents.matrices
    exact = as_stored({name: contents.weights[name] for name in axes}, None, source)
    others = {name: value for name, value in contents.weights.items() if name not in axes}
    return int8.store(exact, axes) | as_stored(others, "float16", source)


def _fingerprint(said: dict[str, Any], stored: Mapping[str, np.ndarray], source: str) -> str:
    """A hash of what is said (but for the fingerprint itself) and of the weights to the bit: 16 hexadecimal digits."""
    said = {key: value for key, value in said.items() if key != "fingerprint"}
    plain = _plain(said, [MOST_VALUES], source)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode())
    for name in sorted(stored):
        array = np.ascontiguousarray(stored[name])
        digest.update(f"\n{name} {array.dtype.str} {list(array.shape)} ".encode("utf-8", "surrogatepass"))
        digest.update(array.data)
    return digest.hexdigest()[:16]


def _plain(value: Any, left: list[int], source: str) -> Any:
    """``value`` with text alone as keys, for a hash. Raises CheckpointError when aliases make it endless."""
    left[0] -= 1
    if left[0] < 0:
        raise CheckpointError(f"{source}: holds more than {MOST_VALUES} values, which no released model does")
    if isinstance(value, dict):
        return {f"{type(key).__name__} {key}": _plain(item, left, source) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, left, source) for item in value]
    return value if isinstance(value, (str, int, float, type(None))) else f"{type(value).__name__} {value}"


def _largest(value: Any) -> int:
    """The largest whole number in a section: no size or count is more than there are weights."""
    if isinstance(value, (dict, list)):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=0)
    return value if isinstance(value, int) else 0


def _same(written: Any, found: str, folder: Path) -> None:
    if written != found:
        raise CheckpointError(f"{folder / WEIGHTS} and {folder / DESCRIPTION}: together they have the fingerprint "
                              f"{found}, but {DESCRIPTION} says {str(written)[:40]}; one of them was changed or "
                              "belongs to another model, fetch or write both again")
