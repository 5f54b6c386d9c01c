"""Checks of operators: attention in every pattern, role and type, and what is computed twice to keep less."""
from collections.abc import Iterator

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.evaluation.device.checks import Check, Skipped, demand, gpus_here, worst_error
from vilg.nn import memory_savers
from vilg.nn.attention import flashmask
from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import SOURCE, TARGET, Column, Convolution, Dense, Layout, Pattern, Role, Row
from vilg.nn.attention.sparse import block_sparse_attention
from vilg.nn.transformer import StreamAttention

LAYOUTS = (Layout(64, 32, 32), Layout(6, 5, 7), Layout(0, 8, 8))
PATTERNS = (Dense(), Row(), Column(), Convolution())
TOLERANCE = {"bfloat16": 4e-2, "float16": 8e-3, "float32": 2e-3}
"""Largest relative errors: a few roundings of the type, over sums of a thousand terms."""


def checks() -> Iterator[Check]:
    """The operators' checks."""
    yield Check("device: what this is", 0, what_this_is)
    for dtype in TOLERANCE:
        for layout in LAYOUTS[dtype == "float32" and not gpus_here():]:
            name = f"attention: {dtype} {layout.text}+{layout.rows}x{layout.columns} equals dense, with gradients"
            yield Check(name, int(dtype != "float32"), lambda dtype=dtype, layout=layout: _attention(dtype, layout))
    yield Check("attention: row, column and dense layers take FlashMask in half precision", 1, _flashmask_is_taken)
    yield Check("attention: a GPU before Ampere stays block-wise", 1, _old_gpus)
    yield Check("attention: dropout follows the seed", 1, _dropout)
    yield Check("attention: version 3 of the kernels gives the same, and no dropout", 1, _version_3)
    yield Check("operators: a map after GELU, and chunked cross-entropy, in float32", 0, lambda: _savers("float32"))
    for dtype in ("bfloat16", "float16"):
        yield Check(f"operators: a map after GELU, and chunked cross-entropy, in {dtype}", 1,
                    lambda dtype=dtype: _savers(dtype))


def what_this_is() -> str:
    """Versions, and the GPU's name, capability and memory."""
    facts = {"paddle": paddle.__version__, "FlashMask": hasattr(F, "flashmask_attention"), "GPUs": gpus_here()}
    if gpus_here():
        device = paddle.device.cuda
        facts |= {"CUDA": paddle.version.cuda(), "cuDNN": paddle.version.cudnn(), "NCCL": paddle.version.nccl(),
                  "name": device.get_device_name(), "capability": device.get_device_capability(),
                  "GB": round(device.get_device_properties().total_memory / 1e9, 1),
                  "flash attention": flashmask.kernel_version()}
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def attention_case(function, dtype: str, pattern: Pattern, role: Role, layout: Layout,
                   dropout: float = 0.0) -> list[Tensor]:
    """Result and gradients of q, k, v [2, L, 2, 64] of one attention function."""
    random = np.random.default_rng(0)
    length = paddle.to_tensor(np.array([layout.text, max(layout.text - 3, 0)], "int64"))
    prefix = paddle.to_tensor(np.array([min(2, layout.text), 0], "int64"))
    arrays = [paddle.to_tensor(random.normal(size=[2, layout.length, 2, 64]).astype("float32")) for _ in range(4)]
    parts = [array.astype(dtype) for array in arrays[:3]]
    for part in parts:
        part.stop_gradient = False
    out = function(*parts, StreamContext(layout, role, length, prefix), pattern, dropout=dropout)
    (out.astype("float32") * arrays[3]).sum().backward()
    return [out, *(part.grad for part in parts)]


def _attention(dtype: str, layout: Layout) -> str:
    worst = 0.0
    for pattern in PATTERNS:
        for role in (TARGET, SOURCE):
            found = attention_case(block_sparse_attention, dtype, pattern, role, layout)
            wanted = attention_case(dense_attention, "float32", pattern, role, layout)
            error = worst_error(zip(found, wanted))
            demand(error < TOLERANCE[dtype], f"{pattern.name} {role.name}: relative error {error:.1e}")
            worst = max(worst, error)
    return f"worst relative error {worst:.1e}"


def _flashmask_is_taken() -> str:
    if paddle.device.cuda.get_device_capability() < flashmask.OLDEST_CAPABILITY:
        raise Skipped("this GPU is older than Ampere")
    layout, lengths = Layout(8, 8, 8), paddle.to_tensor([8, 8])
    called, original = [], F.flashmask_attention
    F.flashmask_attention = lambda *inputs, **options: (called.append(1), original(*inputs, **options))[1]
    try:
        for pattern in (Row(), Column(), Dense()):
            attend = StreamAttention([StreamContext(layout, TARGET, lengths, paddle.zeros_like(lengths))], [pattern])
            attend(0, paddle.randn([2, layout.length, 3, 2, 64]).astype("bfloat16"))
    finally:
        F.flashmask_attention = original
    demand(len(called) == 3, f"{len(called)} of 3 patterns took it")
    return "3 of 3"


def _old_gpus() -> str:
    if paddle.device.cuda.get_device_capability() >= flashmask.OLDEST_CAPABILITY:
        raise Skipped("this GPU is an Ampere or newer")
    demand(not flashmask.usable(paddle.zeros([1, 1, 1, 64], "float16"), Row(), LAYOUTS[1]), "FlashMask would be taken")
    return _attention("float16", LAYOUTS[1])


def _dropout() -> str:
    def once(seed: int) -> np.ndarray:
        paddle.seed(seed)
        return attention_case(block_sparse_attention, "bfloat16", Row(), TARGET, LAYOUTS[1],
                              0.3)[0].astype("float32").numpy()

    demand(np.array_equal(once(1), once(1)), "the same seed gives other numbers")
    demand(not np.array_equal(once(1), once(2)), "another seed gives the same numbers")
    return ""


def _version_3() -> str:
    if paddle.device.cuda.get_device_capability()[0] != 9:
        raise Skipped("needs a Hopper GPU (capability 9.0)")
    before = flashmask.kernel_version()
    paddle.set_flags({"FLAGS_flash_attn_version": 3})
    try:
        dropped = paddle.zeros([1, 1, 1, 64], "bfloat16")
        demand(not flashmask.usable(dropped, Row(), LAYOUTS[1], 0.1), "dropout would reach version 3")
        return _attention("bfloat16", LAYOUTS[0])
    finally:
        paddle.set_flags({"FLAGS_flash_attn_version": before})


def _savers(dtype: str) -> str:
    random = np.random.default_rng(0)
    arrays = [paddle.to_tensor(random.normal(size=shape).astype("float32") / 8) for shape in ([40, 64], [64, 96], [96])]
    labels = paddle.to_tensor(random.integers(0, 96, 40))
    worst = 0.0
    for ours, stock in ((lambda x, w, b: memory_savers.LinearAfterGelu.apply(x, w, b),
                         lambda x, w, b: F.linear(F.gelu(x), w, b)),
                        (lambda x, w, b: memory_savers.LinearCrossEntropy.apply(x, w, b, labels),
                         lambda x, w, b: F.cross_entropy(F.linear(x, w, b), labels, reduction="none"))):
        found, wanted = (_with_gradients(*pair, arrays) for pair in ((ours, dtype), (stock, "float32")))
        worst = max(worst, worst_error(zip(found, wanted)))
    demand(worst < TOLERANCE[dtype], f"relative error {worst:.1e}")
    return f"worst relative error {worst:.1e}"


def _with_gradients(function, dtype: str, arrays: list[Tensor]) -> list[Tensor]:
    operands = [array.astype(dtype).detach() for array in arrays]
    for operand in operands:
        operand.stop_gradient = False
    out = function(*operands)
    out.astype("float32").sum().backward()
    return [out, *(operand.grad for operand in operands)]
