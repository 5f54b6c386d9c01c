"""Starts the ranks of one machine, ends them all when one dies, says why, and starts them again."""
import contextlib
import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from vilg.engine.checkpoints.files import make_directory
from vilg.errors import ConfigError
from vilg.progress import LIVE

log = logging.getLogger("vilg.supervisor")
POLL_SECONDS = 0.05
# A VilgError of the run: starting again would only meet it again.
EXIT_REFUSED = 2


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """Environment variables that make ``ranks`` processes on this machine one job, as Paddle's launcher sets them."""
    ports = _free_ports(ranks)
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    shared = {"PADDLE_TRAINERS_NUM": str(ranks), "PADDLE_LOCAL_SIZE": str(ranks),
              "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints), "PADDLE_MASTER": endpoints[0]}
    return [shared | {"PADDLE_TRAINER_ID": str(rank), "PADDLE_LOCAL_RANK": str(rank), "FLAGS_selected_gpus": str(rank),
                      "PADDLE_CURRENT_ENDPOINT": endpoints[rank]} for rank in range(ranks)]


class Supervisor:
    """Runs ``command`` as ``ranks`` processes (1: plainly), at most ``restarts`` times over after failures.

    Restarts add what ``again`` gives then to the command (``--resume auto``). Standard error of every rank goes to
    ``logs/rank-….log``, rank 0's also to the terminal.
    """

    def __init__(self, command: list[str], ranks: int, restarts: int, again: Callable[[], list[str]],
                 logs: Path):
        self.command, self.ranks, self.restarts, self.again, self.logs = command, ranks, restarts, again, logs
        self.processes: list[subprocess.Popen] = []
        self._tails: list[deque[str]] = []
        self._screen = _Screen()
        self._stopping = False

    def run(self) -> int:
        """Run to the end. Returns the exit status; after a failure the reason is the last line on standard error."""
        if "PADDLE_TRAINER_ID" in os.environ:
            raise ConfigError("--ranks and --restarts start ranks themselves; leave paddle.distributed.launch out")
        make_directory(self.logs)
        before = {name: signal.signal(name, self._pass_on) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            for attempt in range(self.restarts + 1):
                status, reason = self._attempt(self.command + (self.again() if attempt else []))
                if status == 0 or self._stopping or status == EXIT_REFUSED:
                    break
                if attempt < self.restarts:
                    log.warning("%s; restart %d of %d", reason, attempt + 1, self.restarts)
        finally:
            self._kill()
            for name, handler in before.items():
                signal.signal(name, handler)
        if status:
            print(f"error: {reason}", file=sys.stderr, flush=True)
        return status

    def _attempt(self, command: list[str]) -> tuple[int, str]:
        environments = rank_environments(self.ranks) if self.ranks > 1 else [{}]
        self._tails = [deque(maxlen=20) for _ in environments]
        readers, self.processes = [], []
        # Ctrl-C in a terminal reaches the ranks as well; they are to hear of it from here, as SIGTERM, and save.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for rank, environment in enumerate(environments):
            process = subprocess.Popen(command, env=os.environ | environment | self._screen.environment(),
                                       stderr=subprocess.PIPE)
            self.processes.append(process)
            # Carriage returns are to arrive as they are: what ends with one is a progress bar about to be redrawn.
            stream = io.TextIOWrapper(process.stderr, errors="replace", newline="")
            readers.append(threading.Thread(target=self._read, args=(rank, stream), daemon=True))
            readers[-1].start()
        signal.signal(signal.SIGINT, handler)
        failed = self._wait()
        if failed is not None:
            self._kill()
        for reader in readers:
            reader.join(timeout=5.0)
        if failed is None:
            return 0, ""
        return self._describe(failed)

    def _wait(self) -> int | None:
        """Until every rank ended (None) or one failed (its number)."""
        while True:
            codes = [process.poll() for process in self.processes]
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                return failed[0]
            if all(code == 0 for code in codes):
                return None
            time.sleep(POLL_SECONDS)

    def _describe(self, rank: int) -> tuple[int, str]:
        code, lines = self.processes[rank].returncode, [line for line in self._tails[rank] if line.strip()]
        if code < 0:
            return 128 - code, f"rank {rank} was killed by {signal.Signals(-code).name}"
        last = lines[-1].strip().removeprefix("error: ") if lines else "it said nothing"
        return code, last if code == EXIT_REFUSED else f"rank {rank} ended with status {code}: {last}"

    def _read(self, rank: int, stream: TextIO) -> None:
        for line in stream:
            text, passing = line.rstrip("\r\n"), line.endswith("\r")
            if not text:
                continue
            if not passing:
                self._tails[rank].append(text)
            if not (passing and self._screen.live):
                self._log(rank, text)
            # A rank's own last words come again as the supervisor's.
            if rank == 0 and not text.startswith("error: "):
                self._screen.show(text, passing)

    def _log(self, rank: int, text: str) -> None:
        # A full disk must not stop the reading, or the rank would block on its next word.
        with contextlib.suppress(OSError), open(self.logs / f"rank-{rank:05d}.log", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def _pass_on(self, number: int, _: object) -> None:
        if self._stopping and number == signal.SIGINT:  # a second Ctrl-C
            self._kill()
            return
        self._stopping = True
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        # SIGKILL: ranks that wait in a collective for a dead one would never get to handle anything milder.
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()


class _Screen:
    """Standard error: on a terminal a progress bar is drawn over the one before it, in a file each is a line."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._covered = 0

    def environment(self) -> dict[str, str]:
        """What a rank must know to draw its bar as if the terminal were its own."""
        return {LIVE: "1", "COLUMNS": str(shutil.get_terminal_size().columns)} if self.live else {}

    def show(self, text: str, passing: bool) -> None:
        """Print a line, or one that the next will cover."""
        with contextlib.suppress(OSError):
            if not self.live:
                print(text, file=sys.stderr, flush=True)
                return
            sys.stderr.write("\r" + text.ljust(self._covered) + ("" if passing else "\n"))
            sys.stderr.flush()
            self._covered = len(text) if passing else 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
