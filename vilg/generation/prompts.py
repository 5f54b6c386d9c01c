"""What every way of drawing makes of its inputs: random numbers of every row, tokens that are known, the empty text."""
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.generation.sampling import seed_each, uniforms
from vilg.nn.attention.patterns import Layout


def with_empty(text: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Texts [P, m] and lengths [P], followed by the empty text of guidance: [P + 1, m] and [P + 1]."""
    empty = text[:1].clone()
    empty[:, 1] = text[0, int(length[0]) - 1]  # [CLS] and the [SEP] that ends every text
    return paddle.concat([text, empty], axis=0), paddle.concat([length, paddle.to_tensor([2])])


def sample_uniforms(seeds: int | Sequence[int], prompts: int, samples: range, steps: int) -> np.ndarray:
    """Random numbers of every row and step: [prompts · samples, steps]."""
    return np.stack([uniforms(seed, sample, steps) for seed in seed_each(seeds, prompts) for sample in samples])


def known_tokens(layout: Layout, codes: Tensor | None, mask: Tensor | None, prompts: int,
           samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Known codes and which of them to keep, for every row: int64 and booleans [prompts · samples, n]."""
    shape = [prompts * samples, layout.image]
    if codes is None or mask is None:
        return np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    known, kept = codes.numpy(), mask.numpy().astype(bool)
    for name, given in (("known_codes", known), ("known_mask", kept)):
        if given.shape[-1] != shape[1]:
            raise ShapeError(f"{name} has {given.shape[-1]} tokens a picture, but the model's grid of "
                             f"{layout.rows}×"
                             f"{layout.columns} has {shape[1]}")
    known, kept = (np.broadcast_to(given, [prompts, shape[1]]) for given in (known, kept))
    return np.repeat(known, samples, axis=0), np.repeat(kept, samples, axis=0)
