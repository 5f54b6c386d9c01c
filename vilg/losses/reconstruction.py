"""How far a reconstruction is from its picture: pixel distances, and the dVAE's logit-Laplace likelihood."""
import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.errors import DataError

def pixel_loss(raw: Tensor, images: Tensor, l1: float, l2: float) -> Tensor:
    """l1 · mean|x̂ - x| + l2 · mean (x̂ - x)² of two [B, 3, H, W] → scalar."""
    error = raw - images
    parts = [weight * value() for weight, value in
             ((l1, lambda: error.abs().mean()), (l2, lambda: (error * error).mean())) if weight]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def logit_laplace_loss(raw: Tensor, values: Tensor, least_scale: float = 0.0) -> Tensor:
    """Mean negative log-likelihood |logit(x) - μ| / b + ln(2b·x(1 - x)) of ``values`` x [B, 3, H, W] in (0, 1).

    ``raw`` [B, 6, H, W] holds μ in channels 0–2 and ln(b - ``least_scale``) in channels 3–5. Raises DataError when a
    value is not inside (0, 1), where the logit does not exist.
    """
    if list(raw.shape) != [values.shape[0], 6, *values.shape[2:]] or values.shape[1] != 3:
        raise DataError(f"the logit-Laplace likelihood compares [B, 6, H, W] with pictures [B, 3, H, W], got "
                        f"{list(raw.shape)} and {list(values.shape)}")
    low, high = float(values.min()), float(values.max())
    if not 0.0 < low <= high < 1.0:
        raise DataError(f"the logit-Laplace likelihood needs values inside (0, 1), got {low:g} … {high:g}; map pixels "
                        "from [-1, 1] by vilg.tokenizers.image.pixels.to_laplace first")
    mean, log_scale = raw[:, :3], raw[:, 3:]
    if least_scale:
        log_scale = F.softplus(log_scale - math.log(least_scale)) + math.log(least_scale)
    logit = paddle.log(values) - paddle.log1p(-values)
    density = (logit - mean).abs() * paddle.exp(-log_scale) + log_scale + math.log(2.0)
    return (density + paddle.log(values) + paddle.log1p(-values)).mean()
