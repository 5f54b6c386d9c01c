"""Negative log-likelihood of the target tokens of either direction (paper 1: no loss on the source)."""
import paddle
from paddle import Tensor

from vilg.nn import functional
from vilg.nn.layers import Linear


def image_loss(hidden: Tensor, head: Linear, codes: Tensor) -> Tensor:
    """Text→image: the mean NLL of codes [B, n], each predicted by its own slot of ``hidden`` [B, n, D]."""
    flat = hidden.reshape([-1, hidden.shape[-1]])
    return functional.linear_cross_entropy(flat, head.weight, head.bias, codes.reshape([-1])).mean()


def text_targets(text_length: int, length: Tensor, prefix: Tensor) -> Tensor:
    """Which slots j predict a target: booleans [B, M-1], True where prefix ≤ j+1 < length.

    Token 0 ([CLS]) is given, never predicted; so is the question, the first ``prefix`` tokens.
    """
    predicted = paddle.arange(1, text_length, dtype="int64").unsqueeze(0)
    return paddle.logical_and(predicted >= prefix.unsqueeze(1), predicted < length.unsqueeze(1))


def text_nll(hidden: Tensor, head: Linear, text: Tensor, length: Tensor, prefix: Tensor) -> Tensor:
    """NLL of every text token by the slot before it: [B, M-1], zero where the token is no target.

    ``hidden`` is [B, M, D], ``text`` [B, M], ``length`` and ``prefix`` [B]. Only target slots go through the head.
    """
    batch, slots, width = hidden.shape
    chosen = paddle.nonzero(text_targets(slots, length, prefix).reshape([-1])).reshape([-1])
    if chosen.shape[0] == 0:
        return hidden[:, 1:].sum(-1) * 0
    flat = paddle.gather(hidden[:, :-1].reshape([-1, width]), chosen)
    labels = paddle.gather(text[:, 1:].reshape([-1]), chosen)
    nll = functional.linear_cross_entropy(flat, head.weight, head.bias, labels)
    return paddle.scatter(paddle.zeros([batch * (slots - 1)], nll.dtype), chosen, nll).reshape([batch, slots - 1])


def text_loss(hidden: Tensor, head: Linear, text: Tensor, length: Tensor, prefix: Tensor) -> Tensor:
    """Image→text: the mean NLL over all target tokens of the batch; zero when there is none. See :func:`text_nll`."""
    count = text_targets(hidden.shape[1], length, prefix).astype(hidden.dtype).sum()
    return text_nll(hidden, head, text, length, prefix).sum() / paddle.clip(count, min=1.0)


def bidirectional_loss(loss_t2i: Tensor, loss_i2t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L = L_t2i + L_i2t and the two as figures."""
    return loss_t2i + loss_i2t, {"loss_t2i": loss_t2i.detach(), "loss_i2t": loss_i2t.detach()}
