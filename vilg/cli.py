"""What every command-line tool shares: one clear sentence for an error, and the exit status."""
import logging
import os
import sys
import time
from collections.abc import Callable

from vilg.errors import VilgError

# Ranks of one job mostly fail alike; the others let rank 0 speak, and its exit ends them before they repeat it.
RANK_PATIENCE_SECONDS = 3.0


def run(main: Callable[[], int | None]) -> None:
    """Run a tool's ``main`` and leave the process with its status.

    A :class:`VilgError` becomes ``error: …`` on the last line of stderr and status 2, Ctrl-C becomes status 130;
    anything else is a bug of ours and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    try:
        status = main()
    except VilgError as error:
        if os.environ.get("PADDLE_TRAINER_ID", "0") != "0":
            time.sleep(RANK_PATIENCE_SECONDS)
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
