"""The sum of a step's losses."""
from collections.abc import Sequence

import paddle
from paddle import Tensor


def weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Σ weight · loss over pairs of a number and a scalar, in float32 whatever precision is on around it → scalar."""
    with paddle.amp.auto_cast(enable=False):
        parts = [weight * loss.astype("float32") for weight, loss in terms]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total
