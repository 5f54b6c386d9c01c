"""Choosing the next token where the logits are, so that a drawing loop never waits for a device.

The same choice as :mod:`vilg.generation.sampling` makes on the host, from the same uniform numbers; of several tokens
that are the k-th likeliest alike, all may be drawn.
"""
import paddle
from paddle import Tensor

from vilg.generation.sampling import DrawingConfig, SamplingConfig

BELOW_ONE = 1 - 2.0 ** -53  # a share of the total weight below all of it


def guide(told: Tensor, free: Tensor, config: DrawingConfig) -> Tensor:
    """Logits with the text [R, V] and without it → guided logits [R, V], as :func:`vilg.generation.sampling.guide`."""
    guided = free + config.guidance * (told - free)
    if config.guidance_min_p:
        least = told.max(axis=-1, keepdim=True) + paddle.to_tensor(config.guidance_min_p, "float32").log()
        guided = paddle.where(told >= least, guided, paddle.full_like(guided, -float("inf")))
    return guided


def sample_token(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """One token a row: logits float32 [R, V] and uniform numbers float64 [R] → int64 [R]."""
    if config.temperature == 0:
        return logits.argmax(axis=-1)
    cumulative = paddle.cumsum(_weights(logits, config).astype("float64"), axis=-1)
    total = cumulative[:, -1]
    point = paddle.minimum(uniform * total, total * BELOW_ONE)
    return (cumulative <= point.unsqueeze(1)).astype("int64").sum(axis=-1)


def _weights(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Weight of every token [R, V]; 0 excludes it."""
    scaled = logits / config.temperature
    weights = paddle.exp(scaled - scaled.max(axis=-1, keepdim=True))
    if 0 < config.top_k < logits.shape[-1]:
        least = paddle.topk(logits, config.top_k, axis=-1)[0][:, -1:]
        weights = paddle.where(logits >= least, weights, paddle.zeros_like(weights))
    if config.top_p < 1:
        ordered = paddle.sort(weights, axis=-1, descending=True)
        before = paddle.cumsum(ordered.astype("float64"), axis=-1) - ordered.astype("float64")
        kept = before < config.top_p * ordered.astype("float64").sum(axis=-1, keepdim=True)
        least = paddle.where(kept, ordered, paddle.full_like(ordered, float("inf"))).min(axis=-1, keepdim=True)
        weights = paddle.where(weights >= least, weights, paddle.zeros_like(weights))
    return weights
