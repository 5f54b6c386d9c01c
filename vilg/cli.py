"""What every command-line tool shares: one clear sentence for an error, and the exit status."""
import argparse
import errno
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vilg.config import Setting, settings_of
from vilg.errors import VilgError

# Ranks of one job mostly fail alike; the others let rank 0 speak, and its exit ends them before they repeat it.
RANK_PATIENCE_SECONDS = 3.0


def check_folder(folder: str | Path, option: str) -> None:
    """Refuse a folder that can neither be made nor written to, before the work whose results go there; makes nothing.
    Raises VilgError naming the option."""
    if not _may_hold_files(Path(folder)):
        raise VilgError(f"{folder}: is not a folder that can be written to; name another with {option}")


def check_file(file: str | Path, option: str) -> None:
    """Refuse a file that cannot be written, as :func:`check_folder` does a folder."""
    writable = os.access(file, os.W_OK) if os.path.exists(file) else _may_hold_files(Path(file).parent)
    if os.path.isdir(file) or not writable:
        raise VilgError(f"{file}: is not a file that can be written; name another with {option}")


def _may_hold_files(folder: Path) -> bool:
    places = (folder, *folder.parents)
    nearest = next((place for place in places if os.path.exists(place)), places[-1])
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def add_settings(parser: argparse.ArgumentParser, *classes: type) -> None:
    """Offer every :class:`~vilg.config.Setting` of some config classes as an option; left out means the model's own."""
    for one in _settings(classes):
        parser.add_argument("--" + one.name.replace("_", "-"), type=one.type, choices=one.choices or None,
                            help=f"{one.meaning} (the model's own)")


def settings_given(arguments: argparse.Namespace, *classes: type) -> dict[str, Any]:
    """What was said on the command line of the options that :func:`add_settings` made."""
    return {one.name: getattr(arguments, one.name) for one in _settings(classes)
            if getattr(arguments, one.name) is not None}


def report(results: list[dict[str, Any]], json_file: str | None, lines: list[str] | None = None) -> None:
    """Write results as JSON lines to a file where one is named, and print them for people, as ``lines`` where those are
    given; with ``json_file`` "-" the JSON lines are printed instead. Raises VilgError where the file cannot be written.
    """
    if json_file == "-":
        unicode = sys.stdout.encoding.lower().replace("-", "") == "utf8"  # elsewhere JSON's own escapes
        print("\n".join(json.dumps(result, ensure_ascii=not unicode) for result in results))
        return
    if json_file:
        content = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
        try:
            Path(json_file).parent.mkdir(parents=True, exist_ok=True)
            Path(json_file).write_text(content, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise VilgError(f"{json_file}: cannot be written ({error.strerror or error}); "
                            "name another file with --json") from None
    for line in lines or ["  ".join(str(value) for value in result.values()) for result in results]:
        print(line)


def _settings(classes: tuple[type, ...]) -> list[Setting]:
    """The settings of all classes, each name once."""
    return list({one.name: one for cls in classes for one in settings_of(cls)}.values())


def run(main: Callable[[], int | None]) -> None:
    """Run a tool's ``main`` and leave the process with its status.

    A :class:`VilgError` becomes ``error: …`` on the last line of stderr and status 2, Ctrl-C becomes status 130;
    anything else is a bug of ours and keeps its traceback. What standard output and error cannot take (a closed pipe,
    a terminal without the character) is left out, and the work goes on; a disk that is full is said at the end.
    """
    outputs = open_outputs()
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    try:
        status = main()
        _check_written(outputs)
    except VilgError as error:
        if os.environ.get("PADDLE_TRAINER_ID", "0") != "0":
            time.sleep(RANK_PATIENCE_SECONDS)
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)


def open_outputs() -> "list[_Output]":
    """Make standard output and error take whatever is printed; returns what lies below them."""
    outputs = []
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # started with it closed: the next file that is opened would get its number, and the prints
            _open_nowhere(number)
            stream = open(number, "w", encoding="utf-8", closefd=False)
        elif stream is not getattr(sys, f"__{name}__"):  # whoever put another there has it take what it can
            continue
        stream.flush()
        output = _Output(number)
        outputs.append(output)
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(output), encoding=stream.encoding,
                                            errors="backslashreplace", line_buffering=stream.line_buffering or
                                            number == 2))
    return outputs


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


class _Output(io.FileIO):
    """Standard output or error: the first write that fails is kept in ``failure``, and the rest goes nowhere."""

    def __init__(self, number: int):
        super().__init__(number, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            _open_nowhere(self.fileno())
            return len(data)


def _check_written(outputs: list[_Output]) -> None:
    """Raise VilgError when results that were printed are lost and the reader cannot know."""
    sys.stdout.flush()
    for output in outputs:
        if output.fileno() == 1 and output.failure is not None and output.failure.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VilgError(f"standard output could not be written ({output.failure.strerror}), so what was printed is "
                            "not whole; all else is done")
