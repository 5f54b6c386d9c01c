"""Drawing and describing in half precision, where the device computes in it."""
from typing import Any

import paddle

from vilg import runtime
from vilg.errors import VilgError
from vilg.release.kinds.bidirectional import ReleasedModel

HALF = ("bfloat16", "float16")


def in_dtype(released: Any, dtype: str | None) -> Any:
    """A released model with the transformer's weights in ``dtype`` ("bfloat16", "float16"; None and "float32": as they
    are); the image tokenizer, and what else draws pixels, stay float32.

    Raises VilgError for another type, for what does not draw, and where the device does not compute in it.
    """
    if dtype in (None, "float32"):
        return released
    device = paddle.get_device()
    if not isinstance(released, ReleasedModel):
        raise VilgError(f"dtype is for models that draw, and this is {type(released).__name__}; leave it out")
    if dtype not in HALF:
        raise VilgError(f"dtype is float32, {' or '.join(HALF)}, not {dtype!r}")
    if not runtime.computes_in(dtype):
        instead = "; on a CPU cpu_math='bf16' is the fast one" if device == "cpu" else ""
        raise VilgError(f"the device {device} does not compute in {dtype}; leave dtype out{instead}")
    released.model.to(dtype=dtype)
    return released
