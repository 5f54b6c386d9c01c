"""What a released folder holds, and the kinds there are: one registry, kind → class.

A kind is a subclass of :class:`Kind`, made known by :func:`register`, with three things: ``title`` (what the thing is,
for sentences), ``pack`` (the thing → :class:`Contents`) and ``restore`` (an opened folder → the thing).
"""
import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from paddle import Tensor, nn

from vilg.errors import CheckpointError
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer
from vilg.weights.files import Arrays

T = TypeVar("T", bound="type[Kind]")


@dataclass
class Contents:
    """What is written to a folder.

    ``sections``: what ``model.yaml`` says besides its kind, config dataclasses or plain values by key. ``weights``: by
    name. ``matrices``: those that may be stored in int8, and the axis that their scales lie along (the rows of a table,
    the columns of a map). ``parts``: folders within, by name. ``text_tokenizer``: goes to ``vocab.txt`` and
    ``tokenizer_config.json``.
    """

    kind: str
    sections: dict[str, Any]
    weights: Arrays
    parts: dict[str, "Contents"] = field(default_factory=dict)
    text_tokenizer: WordPieceTokenizer | None = None
    matrices: dict[str, int] = field(default_factory=dict)


class Kind(abc.ABC):
    """A kind of released folder, see the module. ``opened`` is a :class:`vilg.release.folder.Opened`;
    ``old_parts`` are the folders within that form 1 of this kind had."""

    title: str
    old_parts: tuple[str, ...] = ()

    @abc.abstractmethod
    def pack(self, thing: Any, replaced: dict[str, np.ndarray]) -> Contents:
        """What to write for ``thing``; ``replaced`` holds weights by name (an average) that go in the place of its
        own."""

    @abc.abstractmethod
    def restore(self, opened: Any, **beside: Any) -> Any:
        """The thing, in eval mode; ``beside`` is what a part is read with. Raises CheckpointError."""


KINDS: dict[str, Kind] = {}


def register(name: str) -> Callable[[T], T]:
    """Class decorator: folders whose ``model.yaml`` says ``kind: name`` are of this class."""
    def put(cls: T) -> T:
        KINDS[name] = cls()
        return cls
    return put


def kind_named(name: Any, source: str) -> Kind:
    """The kind of that name. Raises CheckpointError that begins with ``source`` when there is none."""
    if not isinstance(name, str) or name not in KINDS:
        raise CheckpointError(f"{source}: kind {str(name)[:40]!r} is none that this version of vilg knows "
                              f"({', '.join(sorted(KINDS))})")
    return KINDS[name]


def chosen(layer: nn.Layer, replaced: dict[str, np.ndarray], prefix: str = "") -> dict[str, Tensor | np.ndarray]:
    """The weights of ``layer``, those in ``replaced`` under ``prefix`` + name in the place of its own."""
    return {name: replaced.get(prefix + name, value) for name, value in layer.state_dict().items()}
