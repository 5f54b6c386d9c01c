"""The two ways in which captions are written down: JSON records and text files of one caption a line."""
import json
import os
from pathlib import Path

from vilg.data.sample import BrokenSample
from vilg.tokenizers.text.wordpiece import mend


def readable(path: str | os.PathLike) -> str:
    """A path as text to show and to write down; bytes of it that are not UTF-8 become ``\\xd0`` and the like."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def parse_record(line: str, place: str, named: str = "picture") -> tuple[str, list[str], list[tuple[str, str]]]:
    """What a JSON record says under ``named`` ("" for nothing), its captions, and its questions, blank ones left out.

    A value of null is as good as none. Raises BrokenSample naming ``place`` for what is no such record.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise BrokenSample(place, f'not a record like {{"{named}": "a.png", "captions": ["…"]}}')
    record = {key: value for key, value in record.items() if value is not None}
    name, pairs = record.get(named, ""), record.get("questions", [])
    texts = record.get("captions", record.get("caption", ""))
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(name, str) or not _are_texts(texts):
        raise BrokenSample(place, f"{named} must be text, and captions a list of texts")
    if not isinstance(pairs, list) or not all(_are_texts(pair) and len(pair) == 2 for pair in pairs):
        raise BrokenSample(place, 'questions must be pairs of texts like [["几只？", "一只"]]')
    pairs = [(mend(question), mend(answer)) for question, answer in pairs]
    return mend(name), [mend(text) for text in texts], [pair for pair in pairs if all(map(_visible, pair))]


def text_lines(content: bytes) -> list[str]:
    """The captions of a text file, one a line that ends at a line feed and at nothing else, as a table's lines do.
    Raises UnicodeDecodeError."""
    return [line.strip() for line in content.decode("utf-8-sig").split("\n") if line.strip()]


def caption_lines(path: Path, name: str) -> list[str]:
    """The captions of a text file, one a line. Raises BrokenSample under ``name`` when there are none."""
    try:
        texts = text_lines(path.read_bytes())
    except FileNotFoundError:
        raise BrokenSample(name, f"no caption file {readable(path.name)}") from None
    except (OSError, UnicodeDecodeError):
        raise BrokenSample(name, f"{readable(path.name)} cannot be read as UTF-8 text") from None
    if not texts:
        raise BrokenSample(name, f"{readable(path.name)} holds no caption")
    return texts


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _visible(text: str) -> bool:
    """Whether a text shows anything; neither spaces nor characters of no width are read by a tokenizer."""
    if text.isprintable():  # nearly always
        return bool(text) and not text.isspace()
    return any(letter.isprintable() and not letter.isspace() for letter in text)
