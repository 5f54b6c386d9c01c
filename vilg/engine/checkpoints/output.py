"""A run's output: its folders can be folders, and no other process is using it."""
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
from pathlib import Path

from vilg.engine.checkpoints.files import make_directory
from vilg.errors import ConfigError

log = logging.getLogger("vilg.train")
LOCK = ".lock"
FOLDERS = ("checkpoints", "logs", "model", "post_mortem", "previews", "ranks", "visualdl")
FILES = ("metrics.jsonl",)
_held: dict[Path, int] = {}
"""The descriptor of the lock of every output that this process uses. The system gives a process's locks back when it
ends, however it ends, and one process may take its own again; closing any descriptor of the file would lose it, so
there is one."""


def claim(output: Path) -> None:
    """Make the folder and take it for this process, until :func:`release`. Raises ConfigError when it cannot be
    written, when something in it is not what a run leaves there, or when another process uses it."""
    make_directory(output)
    for names, kind, belongs in ((FOLDERS, stat.S_ISDIR, "a folder"), (FILES, stat.S_ISREG, "a file")):
        for path in (output / name for name in names):
            if os.path.lexists(path) and not (path.exists() and kind(path.stat().st_mode)):
                raise ConfigError(f"output: {path} is not {belongs}, which the run would write there; move it away or "
                                  "choose another output")
    key = output.resolve()
    if key not in _held:
        _held[key] = _lock(output)


def release(output: Path) -> None:
    """Let other processes use the folder."""
    descriptor = _held.pop(output.resolve(), None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.truncate(descriptor, 0)
        os.close(descriptor)


def _lock(output: Path) -> int:
    path = output / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written ({error.strerror}); remove it or choose another output"
                          ) from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            log.warning("%s cannot be locked (%s): see to it that no other run writes there", output, error.strerror)
            return descriptor
        holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        os.close(descriptor)
        raise ConfigError(f"output: {output} is in use by another run{f' ({holder})' if holder else ''}; wait until it "
                          "ends, or choose another output") from None
    with contextlib.suppress(OSError):  # who holds it is a courtesy; on a full disk it goes unsaid
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
