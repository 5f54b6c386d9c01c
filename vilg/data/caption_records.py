"""The two ways in which captions are written down: JSON records and text files of one caption a line."""
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilg.data.sample import BrokenSample, Sample
from vilg.tokenizers.text.characters import is_blank, mend

IMAGE_KEYS = ("picture", "image", "file_name")
TEXT_KEYS = ("captions", "caption", "text")
QUESTION_KEYS = ("questions", "conversations")
OWN_KEYS = frozenset({"key", *IMAGE_KEYS, *TEXT_KEYS, *QUESTION_KEYS})
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")


@dataclass
class Record:
    """What a JSON record says: the name of what it is about ("" for none), captions and (question, answer) pairs
    without blank ones, and as ``facts`` all other keys."""

    name: str
    captions: list[str]
    questions: list[tuple[str, str]]
    facts: dict[str, Any]


def readable(path: str | os.PathLike) -> str:
    """A path as text to show and to write down; bytes of it that are not UTF-8 become ``\\xd0`` and the like."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def parse_record(line: str, place: str, named: tuple[str, ...] = IMAGE_KEYS) -> Record:
    """Read a JSON record whose name stands under one of ``named``, captions under one of :data:`TEXT_KEYS`, questions
    as pairs, as ``{"question": …, "answer": …}`` or as LLaVA's ``conversations``.

    A value of null is as good as none. Raises BrokenSample naming ``place`` for what is no such record.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        example = f'"{named[0]}": "a.png", ' if named else ""
        raise BrokenSample(place, f'not a record like {{{example}"captions": ["…"]}}')
    record = {mend(key): value for key, value in record.items() if value is not None}
    name = next((record[key] for key in named if key in record), "")
    if not isinstance(name, str):
        raise BrokenSample(place, f"{' or '.join(named)} must be text")
    facts = {key: value for key, value in record.items() if key not in OWN_KEYS}
    return Record(mend(name), _captions(record, place), _questions(record, place), facts)


def write_record(sample: Sample, **names: str) -> str:
    """A sample's texts and facts as a JSON record that :func:`parse_record` reads, with ``names`` before them. Facts
    that JSON has no form for, such as a scene, are left out."""
    texts = {"captions": sample.captions, "questions": sample.questions}
    return json.dumps(names | texts | _plain(sample.facts), ensure_ascii=False)


def visible(texts: list[str]) -> list[str]:
    """Texts without the space around them, and without those that a tokenizer reads nothing of."""
    return [text.strip() for text in map(mend, texts) if not is_blank(text)]


def text_lines(content: bytes) -> list[str]:
    """The captions of a text file, one a line that ends at a line feed and at nothing else, as a table's lines do.
    Raises UnicodeDecodeError."""
    return visible(content.decode("utf-8-sig").split("\n"))


def caption_lines(path: Path, name: str) -> list[str]:
    """The captions of a text file, one a line. Raises BrokenSample under ``name`` when there are none."""
    try:
        texts = text_lines(path.read_bytes())
    except FileNotFoundError:
        raise BrokenSample(name, f"no caption file {readable(path.name)}", "no caption file") from None
    except (OSError, UnicodeDecodeError):
        raise BrokenSample(name, f"{readable(path.name)} cannot be read as UTF-8 text",
                           "a caption file that is no UTF-8 text") from None
    if not texts:
        raise BrokenSample(name, f"{readable(path.name)} holds no caption", "an empty caption file")
    return texts


def _captions(record: dict[str, Any], place: str) -> list[str]:
    for key in (key for key in TEXT_KEYS if key in record):
        texts = [record[key]] if isinstance(record[key], str) else record[key]
        if not _are_texts(texts):
            raise BrokenSample(place, f"{key} must be a text or a list of texts")
        if shown := visible(texts):
            return shown
    return []


def _questions(record: dict[str, Any], place: str) -> list[tuple[str, str]]:
    pairs = record.get("questions", [])
    if isinstance(pairs, list):
        pairs = [[pair.get("question"), pair.get("answer")] if isinstance(pair, dict) else pair for pair in pairs]
    if not isinstance(pairs, list) or not all(_are_texts(pair) and len(pair) == 2 for pair in pairs):
        raise BrokenSample(place, 'questions must be pairs of texts like [["几只？", "一只"]]')
    pairs = [(mend(question), mend(answer)) for question, answer in [*pairs, *_turns(record.get("conversations"))]]
    return [pair for pair in pairs if not any(map(is_blank, pair))]


def _turns(turns: Any) -> list[tuple[str, str]]:
    """The questions of a LLaVA conversation, each with the answer that follows it; whatever else it is, none."""
    said = [(turn.get("from"), turn.get("value")) for turn in turns if isinstance(turn, dict)
            ] if isinstance(turns, list) else []
    return [(asked.replace("<image>", "").strip(), answered.strip())
            for (who, asked), (other, answered) in zip(said, said[1:])
            if who in ASKING and other in ANSWERING and isinstance(asked, str) and isinstance(answered, str)]


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in facts.items():
        if key in OWN_KEYS:
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            continue
        plain[key] = value
    return plain


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
