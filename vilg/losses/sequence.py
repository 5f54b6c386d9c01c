"""Negative log-likelihood of the target tokens of either direction (paper 1: no loss on the source).

Sums and means are float32, whatever precision the model computes in.
"""
from typing import Protocol

import paddle
from paddle import Tensor

from vilg.nn.layers import OutputHead

# Target slots go through the head in whole multiples of this: every other number of them would be a shape of its own,
# for which operators are made and kept and memory is cut up anew, step after step.
TARGET_GRAIN = 64
NO_LOSS = -100  # the label of a slot that counts for nothing


class Heads(Protocol):
    """A model with an output head for either kind of token."""

    image_head: OutputHead
    text_head: OutputHead


def text_to_image_loss(model: Heads, hidden: Tensor, codes: Tensor) -> Tensor:
    """The mean NLL of codes [B, n], each predicted by its own slot of ``hidden`` [B, n, D]."""
    nll = model.image_head(hidden.reshape([-1, hidden.shape[-1]]), codes.reshape([-1]))  # [B·n]
    with paddle.amp.auto_cast(enable=False):
        return nll.mean()


def masked_image_loss(model: Heads, hidden: Tensor, codes: Tensor, masked: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean smoothed NLL of the codes [B, n] that are ``masked`` (booleans [B, n]), each predicted by its own slot
    of ``hidden`` [B, n, D]; zero when none is. Only masked slots go through the head."""
    flat = hidden.reshape([-1, hidden.shape[-1]])  # [B · n, D]
    chosen = paddle.nonzero(masked.reshape([-1])).reshape([-1])
    if chosen.shape[0] == 0:
        return flat.astype("float32").sum() * 0
    filled = -chosen.shape[0] % TARGET_GRAIN
    labels = paddle.concat([paddle.gather(codes.reshape([-1]), chosen), paddle.full([filled], NO_LOSS, "int64")])
    rows = paddle.concat([chosen, paddle.zeros([filled], "int64")])
    nll = model.image_head(paddle.gather(flat, rows), labels, smoothing)
    with paddle.amp.auto_cast(enable=False):  # half precision counts to 256 and no further
        return nll.sum() / chosen.shape[0]


def text_targets(text: Tensor, length: Tensor, prefix: Tensor, unk_id: int | None = None) -> Tensor:
    """Which slots j of ``text`` [B, M] predict a target: booleans [B, M-1], True where prefix ≤ j+1 < length.

    Token 0 ([CLS]) is given, never predicted; so is the question, the first ``prefix`` tokens. Nor is ``unk_id``: a
    model that learns where unknown words stand learns to write [UNK].
    """
    predicted = paddle.arange(1, text.shape[1], dtype="int64").unsqueeze(0)
    targets = paddle.logical_and(predicted >= prefix.unsqueeze(1), predicted < length.unsqueeze(1))
    return targets if unk_id is None else paddle.logical_and(targets, text[:, 1:] != unk_id)


def text_nll(model: Heads, hidden: Tensor, text: Tensor, length: Tensor, prefix: Tensor,
             unk_id: int | None = None) -> Tensor:
    """NLL of every text token by the slot before it: [B, M-1], zero where the token is no target (``unk_id`` is none).

    ``hidden`` is [B, M, D], ``text`` [B, M], ``length`` and ``prefix`` [B]. Only target slots go through the head.
    """
    batch, slots, width = hidden.shape
    chosen = paddle.nonzero(text_targets(text, length, prefix, unk_id).reshape([-1])).reshape([-1])
    if chosen.shape[0] == 0:
        return hidden[:, 1:].astype("float32").sum(-1) * 0
    total, filled = batch * (slots - 1), -chosen.shape[0] % TARGET_GRAIN
    labels = paddle.concat([paddle.gather(text[:, 1:].reshape([-1]), chosen), paddle.full([filled], NO_LOSS, "int64")])
    rows = paddle.concat([chosen, paddle.zeros([filled], "int64")])
    places = paddle.concat([chosen, paddle.full([filled], total, "int64")])
    flat = paddle.gather(hidden[:, :-1].reshape([-1, width]), rows)
    nll = model.text_head(flat, labels)
    with paddle.amp.auto_cast(enable=False):
        spread = paddle.scatter(paddle.zeros([total + 1], nll.dtype), places, nll)
        return spread[:total].reshape([batch, slots - 1])  # [B, M-1]


def image_to_text_loss(model: Heads, hidden: Tensor, text: Tensor, length: Tensor, prefix: Tensor,
                       unk_id: int | None = None) -> Tensor:
    """The mean NLL over all target tokens of the batch; zero when there is none. See :func:`text_nll`."""
    nll = text_nll(model, hidden, text, length, prefix, unk_id)
    with paddle.amp.auto_cast(enable=False):  # half precision counts to 256 and no further
        count = text_targets(text, length, prefix, unk_id).astype("float32").sum()
        return nll.sum() / paddle.clip(count, min=1.0)
