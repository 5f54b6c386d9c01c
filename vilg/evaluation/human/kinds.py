"""What people are asked of each kind of output, and what keeps a kit, its key and its ratings together."""
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class Criterion:
    """Whole numbers from ``low`` to ``high`` that raters give; ``question`` as they read it, ``labels`` of the numbers
    where they have names."""

    name: str
    low: int
    high: int
    question: str
    labels: tuple[str, ...] = ()


KINDS: dict[str, tuple[Criterion, ...]] = {
    "images": (Criterion("clarity", 1, 5, "清晰度 clarity"), Criterion("texture", 1, 5, "质感 texture"),
               Criterion("relevance", 1, 5, "与文字相符 relevance")),
    "captions": (Criterion("fluency", 0, 2, "通顺 fluency"), Criterion("relevance", 0, 2, "与图片相符 relevance"),
                 Criterion("richness", 0, 2, "丰富 richness")),
    "answers": (Criterion("human", 0, 1, "谁回答的？who answered?", ("机器 machine", "人 human")),
                Criterion("score", 0, 2, "回答得对吗？score")),
}
ABOUT_TEXT = {"images": "relevance", "captions": "relevance", "answers": "score"}
"""Kind → the criterion that a text of another item fails."""


@dataclass(frozen=True)
class Item:
    """One output of one system: a prompt and its picture, a picture and its caption, or a question and its answer.

    ``gold`` says, by criterion, the lowest and highest number that a careful rater may give; such an item is no
    system's."""

    item: str
    system: str
    image: Path
    text: str
    question: str = ""
    gold: dict[str, tuple[int, int]] = field(default_factory=dict)


def fingerprint_of(key: dict[str, Any]) -> str:
    """A hash of all that a key says, but for its fingerprint."""
    said = {name: value for name, value in key.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(said, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:32]


def salt_of(fingerprint: str, rater: int | str) -> str:
    """What a rater's page mixes into the digest of its export, so that a number changed by hand shows."""
    return hashlib.sha256(f"{fingerprint}/{rater}".encode()).hexdigest()[:16]
