"""The two ways in which captions are written down: JSON records and text files of one caption a line."""
import json
import os
from pathlib import Path

from vilg.data.sample import BrokenSample


def readable(path: str | os.PathLike) -> str:
    """A path as text to show and to write down; bytes of it that are not UTF-8 become ``\\xd0`` and the like."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def parse_record(line: str, place: str) -> tuple[str, list[str], list[tuple[str, str]]]:
    """A JSON record's picture name ("" without one), captions and questions. Raises BrokenSample naming ``place``."""
    try:
        record = json.loads(line)
        name = record.get("picture", "")
        texts = record.get("captions", record.get("caption", ""))
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [(question, answer) for question, answer in record.get("questions", [])]
        strings = [name, *texts, *(text for pair in pairs for text in pair)]
    except (ValueError, TypeError, AttributeError):
        raise BrokenSample(place, 'not a record like {"picture": "a.png", "captions": ["…"]}') from None
    if not all(isinstance(text, str) for text in strings):
        raise BrokenSample(place, "picture, captions and questions must be text")
    return name, texts, pairs


def caption_lines(path: Path, name: str) -> list[str]:
    """The captions of a text file, one a line. Raises BrokenSample under ``name`` when there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise BrokenSample(name, f"no caption file {path.name}") from None
    except (OSError, UnicodeDecodeError):
        raise BrokenSample(name, f"{path.name} cannot be read as UTF-8 text") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise BrokenSample(name, f"{path.name} holds no caption")
    return texts
