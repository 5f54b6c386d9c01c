"""No more memory for a model than its weights fill, whatever its config claims."""
import contextlib
import math
import threading
from collections.abc import Iterator

from paddle import nn

from vilg.errors import CheckpointError

# A config that does not fit shall be met by the sentence that names the tensors, unless it is far off.
FACTOR, ROOM = 2, 1_000_000
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def at_most(elements: int, source: str) -> Iterator[None]:
    """While this thread builds layers here, refuse (CheckpointError) parameters of far more than ``elements`` numbers
    in all: a config may claim any size, and the memory would be asked for before the weights are compared."""
    used, own = 0, threading.get_ident()

    def counted(layer: nn.Layer, shape, *given, **named):
        nonlocal used
        if threading.get_ident() == own:
            used += math.prod(int(side) for side in shape)
            check_size(used, limit(elements), source)
        return make(layer, shape, *given, **named)

    with _ONE_AT_A_TIME:
        make = nn.Layer.create_parameter
        nn.Layer.create_parameter = counted
        try:
            yield
        finally:
            nn.Layer.create_parameter = make


def limit(elements: int) -> int:
    """How many numbers a config may ask for whose weights are ``elements``."""
    return FACTOR * elements + ROOM


def check_size(asked: int, most: int, source: str) -> None:
    """Raise CheckpointError when ``asked`` numbers are more than ``most``."""
    if asked > most:
        raise CheckpointError(f"{source}: its config asks for more than {most} numbers, far more than its weights are; "
                              "use the config these weights were trained with")
