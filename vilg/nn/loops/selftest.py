"""Compares every compiled loop with stock Paddle, forward and backward, on small shapes."""
import paddle.nn.functional as F

from vilg.nn.loops import elementwise, groups
from vilg.nn.onednn import selftest


def run() -> None:
    """Raise :class:`vilg.nn.onednn.library.Unavailable` naming the first operator that disagrees with stock Paddle."""
    selftest.compare(_cases())


def _cases() -> list:
    def loop(silu: bool):
        return lambda x, w, b: groups.GroupNorm.apply(x, 3, w, b, 1e-6, silu)

    def stock(silu: bool):
        return lambda x, w, b: (F.silu if silu else lambda y: y)(F.group_norm(x, 3, 1e-6, w, b))

    # Sizes that fill vectors and leave a rest, and sizes that fill none.
    normalised = [(f"compiled group_norm{' with SiLU' if silu else ''}", loop(silu), stock(silu), [shape, (6,), (6,)])
                  for silu in (False, True) for shape in ((2, 6, 11, 13), (1, 6, 1, 3))]
    return [*normalised, ("compiled silu", elementwise.SiLU.apply, F.silu, [(7, 43)])]
