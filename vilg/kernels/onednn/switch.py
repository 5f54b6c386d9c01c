"""Whether the fast path is on: allowed by the user, loadable, and in agreement with stock Paddle."""
import contextlib
import logging
import os
import threading
from collections.abc import Iterator

from vilg.kernels.onednn.library import Unavailable, load

logger = logging.getLogger("vilg.onednn")


class _State:
    allowed = os.environ.get("VILG_ONEDNN", "1") != "0"
    decided: bool | None = None
    reason = ""
    left_out = 0  # contexts that are open in which stock operators run
    lock = threading.Lock()


def active() -> bool:
    """Is the fast path on? Decided at the first call; one debug line says why not."""
    if _State.left_out:
        return False
    return _State.decided if _State.decided is not None else _decide()


def reason() -> str:
    """Why the fast path is off; empty when it is on."""
    return "" if active() else _State.reason


def allow(on: bool) -> None:
    """Turn the fast path on (where it works) or off, for the whole process. ``VILG_ONEDNN=0`` keeps it off."""
    _State.allowed = on and os.environ.get("VILG_ONEDNN", "1") != "0"
    _State.decided = None


@contextlib.contextmanager
def stock_operators() -> Iterator[None]:
    """Inside this context the operators are stock Paddle's, which have second derivatives; in all threads."""
    with _State.lock:
        _State.left_out += 1
    try:
        yield
    finally:
        with _State.lock:
            _State.left_out -= 1


def _decide() -> bool:
    _State.reason = _find_reason()
    _State.decided = not _State.reason
    if _State.reason:
        logger.debug("stock operators on the CPU: %s", _State.reason)
    return _State.decided


def _find_reason() -> str:
    if not _State.allowed:
        return "turned off (VILG_ONEDNN=0 or runtime.onednn: false)"
    try:
        load()
        from vilg.kernels.onednn import selftest  # needs the operators, which need this package to be importable
        selftest.run()
    except Unavailable as error:
        return str(error)
    except Exception as error:  # the library is internal to the wheel: whatever it does must not stop the user
        return f"the self-test failed ({type(error).__name__}: {error})"
    return ""
