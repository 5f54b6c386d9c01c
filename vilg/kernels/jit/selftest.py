"""Compares every compiled loop with stock Paddle, forward and backward, on small shapes."""
import paddle.nn.functional as F

from vilg.kernels.jit import elementwise, groups, rows
from vilg.kernels.onednn import selftest
from vilg.kernels.onednn.elementwise import Softmax
from vilg.kernels.onednn.matmul import Linear, LinearAfterGelu
from vilg.kernels.onednn.norm import LayerNorm


def run() -> None:
    """Raise :class:`vilg.kernels.onednn.library.Unavailable` naming the first operator that disagrees with stock
    Paddle."""
    selftest.compare(_cases())


def _cases() -> list:
    def loop(silu: bool):
        return lambda x, w, b: groups.GroupNorm.apply(x, 3, w, b, 1e-6, silu)

    def stock(silu: bool):
        return lambda x, w, b: (F.silu if silu else lambda y: y)(F.group_norm(x, 3, 1e-6, w, b))

    # Sizes that fill vectors and leave a rest, and sizes that fill none.
    normalised = [(f"compiled group_norm{' with SiLU' if silu else ''}", loop(silu), stock(silu), [shape, (6,), (6,)])
                  for silu in (False, True) for shape in ((2, 6, 11, 13), (1, 6, 1, 3))]
    return [
        *normalised,
        ("compiled silu", lambda x: elementwise.Map.apply(x, elementwise.SILU), F.silu, [(7, 43)]),
        ("compiled quick gelu", lambda x: elementwise.Map.apply(x, elementwise.QUICK_GELU),
         lambda x: x * F.sigmoid(1.702 * x), [(7, 43)]),
        ("compiled gelu", lambda x: elementwise.Map.apply(x, elementwise.GELU), F.gelu, [(7, 43)]),
        ("compiled gelu before a linear map",
         lambda x, w, b: LinearAfterGelu.apply(x, w, b, elementwise, rows.add_column_sums),
         lambda x, w, b: F.linear(F.gelu(x), w, b), [(7, 43), (43, 5), (5,)]),
        ("compiled softmax", lambda x: Softmax.apply(x, rows.softmax, rows.softmax_gradient), F.softmax, [(5, 43)]),
        ("compiled sums of columns", lambda x, w, b: Linear.apply(x, w, b, rows.add_column_sums), F.linear,
         [(7, 5), (5, 300), (300,)]),
        ("compiled layer_norm", lambda x, w, b: LayerNorm.apply(x, w, b, 1e-5, rows.normalise),
         lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, 1e-5), [(5, 43), (43,), (43,)])]
