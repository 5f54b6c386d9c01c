"""Captions through a class that the user names, and an example of one, with a dictionary of its own."""
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vilg.data.building.config import TranslateConfig
from vilg.data.filtering.texts import Reason
from vilg.errors import DataError


class Translation:
    """The worker class of a :class:`TranslateConfig`, called in batches; a batch that it fails on is given to it again
    text by text. Raises DataError when the class cannot be made, gives something else than texts, or fails on too many
    rows in a row."""

    def __init__(self, config: TranslateConfig):
        self.config = config
        self.worker = _made(config)
        self._failed = 0

    def __call__(self, texts: Sequence[str]) -> list[str | Reason]:
        """The translation of each text, or why there is none."""
        results: list[str | Reason] = []
        for start in range(0, len(texts), self.config.batch):
            batch = list(texts[start:start + self.config.batch])
            try:
                results += self._batch(batch)
                self._failed = 0
            except Exception:
                results += [self._one(text) for text in batch]
        return results

    def _batch(self, texts: list[str]) -> list[str]:
        given = self.worker.translate(texts)
        if len(given) != len(texts) or not all(isinstance(text, str) for text in given):
            raise ValueError(f"{len(texts)} texts gave {len(given)} results, not a text for each")
        return list(given)

    def _one(self, text: str) -> str | Reason:
        try:
            result = self._batch([text])[0].strip()
            problem = "" if result else "an empty text"
        except Exception as error:
            result, problem = "", f"{type(error).__name__}: {error}"[:200]
        if not problem:
            self._failed = 0
            return result
        self._failed += 1
        if self._failed >= self.config.failures:
            raise DataError(f"translate.worker: {self.config.worker} failed on {self._failed} rows in a row, last on "
                            f"{text[:60]!r}: {problem}; mend it and run the same command with --resume")
        return Reason("translation", problem)


class Dictionary:
    """An example of a worker: words by a .tsv of (source, target), the longest first, and everything else as it is. It
    shows the form; use a translation model for sentences."""

    def __init__(self, path: str):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as a dictionary ({error}); translate.options.path names a .tsv of "
                            "source and target") from None
        rows = [line.split("\t")[:2] for line in lines if "\t" in line]
        self.words = {source.strip().lower(): target.strip() for source, target in rows}
        longest = sorted(map(re.escape, self.words), key=len, reverse=True)
        self._pattern = re.compile(rf"\b(?:{'|'.join(longest)})\b") if longest else None

    def translate(self, texts: list[str]) -> list[str]:
        """Texts with every word that is known replaced. Raises KeyError naming a text of which no word is known."""
        results = []
        for text in texts:
            found, count = "", 0
            if self._pattern:
                found, count = self._pattern.subn(lambda hit: self.words[hit[0]], text.lower())
            if not count:
                raise KeyError(f"no word of {text[:60]!r} is in the dictionary")
            results.append(re.sub(r"(?<=[\u4e00-\u9fff]) +(?=[\u4e00-\u9fff])", "", found))
        return results


def _made(config: TranslateConfig) -> Any:
    module, separator, name = config.worker.partition(":")
    if not separator or not module or not name:
        raise DataError(f"translate.worker: {config.worker} is not module:Class, as in my_translation:Worker")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the command
    try:
        made = getattr(importlib.import_module(module), name)(**config.options)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"translate.worker: {config.worker} cannot be made ({type(error).__name__}: {error}); the "
                        "module must be importable on every node, and translate.options are its arguments") from None
    if not callable(getattr(made, "translate", None)):
        raise DataError(f"translate.worker: {config.worker} has no method translate(texts: list[str]) -> list[str]")
    return made
