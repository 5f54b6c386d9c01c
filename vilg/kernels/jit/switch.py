"""Whether compiled loops are used: allowed by the user, worth loading, loadable, and in agreement with stock Paddle."""
import logging
import os

from vilg.kernels.onednn import switch
from vilg.kernels.onednn.library import Unavailable

logger = logging.getLogger("vilg.loops")

WORTH_LOADING = 1 << 32
"""Values that pass without a gradient before the loops are loaded. They save 0.1 to 0.3 ns a value, and loading takes
about a second: by then going without has cost as much. The shipped model gets there after 12 thousand pictures."""


class _State:
    allowed = os.environ.get("VILG_JIT", "1") != "0"
    decided: bool | None = None
    reason = ""
    passed = 0
    trains = False
    """Has this process recorded an operator for a gradient, or said that it will?"""


def use(size: int, gradient: bool) -> bool:
    """Are the loops to be used for an operator on ``size`` values? Those that are recorded for a gradient load them at
    once, others when :data:`WORTH_LOADING` values have passed."""
    if use_in_training(gradient):
        return True
    if _State.decided is not None:
        return _State.decided
    _State.passed += size
    return _State.passed >= WORTH_LOADING and _decide()


def use_in_training(gradient: bool) -> bool:
    """Are the loops to be used for an operator of a transformer? Where gradients are recorded, and from then on always.
    Not before: a server's results must not change with the hour at which :func:`use` loads them."""
    if gradient:
        _State.trains = True
    return _State.trains and active()


def start_training() -> None:
    """Load the loops now, where the first operator that is recorded would.

    What comes before it in a training (encoding, the first forward of a recomputed block) would run on the library in
    the first step and on the loops in all others, and a resumed run would differ by a rounding from one that was not.
    """
    use_in_training(gradient=True)


def active() -> bool:
    """Can the loops be used? Loads them if that was not decided; one debug line says why not."""
    return _State.decided if _State.decided is not None else _decide()


def reason() -> str:
    """Why the loops are off; empty when they are on. Loads them if that was not decided."""
    return "" if active() else _State.reason


def allow(on: bool) -> None:
    """Turn the loops on (where they work) or off, for the whole process. ``VILG_JIT=0`` keeps them off."""
    _State.allowed = on and os.environ.get("VILG_JIT", "1") != "0"
    _State.decided = None


def _decide() -> bool:
    _State.reason = _find_reason()
    _State.decided, _State.passed = not _State.reason, WORTH_LOADING
    if _State.reason:
        logger.debug("no compiled loops: %s", _State.reason)
    return _State.decided


def _find_reason() -> str:
    if not _State.allowed:
        return "turned off (VILG_JIT=0 or runtime.jit: false)"
    if not switch.active():
        return "off with the oneDNN operators"
    try:
        from vilg.kernels.jit import selftest  # needs the operators, which need this package to be importable

        selftest.run()
    except Unavailable as error:
        return str(error)
    except Exception as error:  # whatever a compiler does on some machine must not stop the user
        return f"the self-test failed ({type(error).__name__}: {error})"
    return ""
