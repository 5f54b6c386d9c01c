"""Symmetric InfoNCE over several views of the same things (ERNIE-ViL 2.0, arXiv 2209.15270), plain or in exact tiles.

A batch is two views of N things as unit vectors [N, D]: row i of one belongs to row i of the other, and all other rows
are its negatives. The tiled form never holds the N × N scores: one sweep finds the log-sum-exps of all rows and
columns, another the gradients, each a tile of rows at a time. Value and gradients are those of the plain form. Both
compute in float32, whatever precision is on around them.

Where several ranks train, the rows of all of them are handed in (gathered with their gradient, in the same order for
every view), and every rank computes the whole loss.
"""
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer
from paddle.autograd.py_layer import once_differentiable

from vilg.config import configclass
from vilg.errors import ConfigError, DataError, ShapeError
from vilg.nn import functional

HIDDEN = -1e30  # the score of a negative that is none: its exp() is zero


@configclass
class ContrastiveConfig:
    """Weights of the pairs of views, 0 for a pair that is left out, and how each InfoNCE is computed.

    ``tile`` is how many rows of the scores are held at once, 0 for all of them. ``mask_equal`` takes rows of the same
    text or concept out of each other's negatives.
    """

    image_caption: float = 1.0
    image_image: float = 1.0
    image_tags: float = 1.0
    text_text: float = 1.0
    tile: int = 512
    mask_equal: bool = True

    def __post_init__(self) -> None:
        weights = self.weights.values()
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError("the weights image_caption, image_image, image_tags and text_text must not be negative, "
                             "and one of them must be above 0")
        if self.tile < 0:
            raise ValueError(f"tile must be 0 (all rows at once) or more, not {self.tile}")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every pair of views in :data:`PAIRS`."""
        return {"image_caption": self.image_caption, "image_image": self.image_image, "image_tags": self.image_tags,
                "text_text": self.text_text}


@dataclass
class Views:
    """The views of N things as unit vectors [N, D]; those of pairs with the weight 0 may be None.

    ``other_image`` is another view of the image (augmented, or in another style), ``other_caption`` of the caption
    (under other dropout, or in other words). ``tagged`` are the rows that have tags, int64 [T]; None for all.
    ``ids`` [N] or [N, K] int64: things that share an id, in any column, are no negatives of each other.
    """

    image: Tensor | None = None
    caption: Tensor | None = None
    other_image: Tensor | None = None
    other_caption: Tensor | None = None
    tags: Tensor | None = None
    tagged: Tensor | None = None
    ids: Tensor | None = None


@dataclass
class PairLoss:
    """The loss of one pair of views, and the share of rows of the first view whose own partner scores highest
    (a tie counts for its share, so that a collapsed model has chance)."""

    loss: Tensor
    accuracy: Tensor


PAIRS = {"image_caption": ("image", "caption"), "image_image": ("image", "other_image"),
         "image_tags": ("image", "tags"), "text_text": ("caption", "other_caption")}
"""The two views of every weight of :class:`ContrastiveConfig`."""


def multi_view_loss(views: Views, scale: Tensor, config: ContrastiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of every pair's :func:`info_nce`, and figures: loss and accuracy by pair, and the temperature.

    ``scale`` [1] is the factor on cosines. Raises ConfigError when a pair has a weight but not both views, and
    DataError when all rows have one id, so that there is nothing to tell apart.
    """
    ids = views.ids if config.mask_equal else None
    figures = {"temperature": scale.detach().reshape([])}
    total = paddle.zeros([])
    for name, weight in config.weights.items():
        if not weight:
            continue
        left, right = PAIRS[name]
        a, b = getattr(views, left), getattr(views, right)
        if a is None or b is None:
            raise ConfigError(f"loss.{name}: is {weight}, but the batch has no {left if a is None else right}; give it "
                              "that view, or set the weight to 0")
        refuse_one_thing(a.shape[0], ids)
        own = ids
        if name == "image_tags" and views.tagged is not None:
            if not views.tagged.shape[0]:
                continue
            a, b = paddle.gather(a, views.tagged), paddle.gather(b, views.tagged)
            own = None if ids is None else paddle.gather(ids, views.tagged)
        pair = info_nce(a, b, scale, own, config.tile)
        total = total + weight * pair.loss
        figures |= {f"{name}_loss": pair.loss.detach(), f"{name}_accuracy": pair.accuracy.detach()}
    return total, figures


def refuse_one_thing(rows: int, ids: Tensor | None) -> None:
    """Raise DataError for a batch without a single negative: one row, or rows that all share an id."""
    if rows < 2 or (ids is not None and bool((ids == ids[:1]).all(0).any())):
        what = "one row" if rows < 2 else f"{rows} rows of the same text or concept"
        raise DataError(f"a batch of {what} has no negatives, and a contrastive loss needs two different things; raise "
                        "train.batch_size, or mix sources that hold more than one text or concept")


def info_nce(a: Tensor, b: Tensor, scale: Tensor, ids: Tensor | None = None, tile: int = 0) -> PairLoss:
    """½ (cross-entropy of scale · a·bᵀ by rows + by columns), averaged over N; a and b are [N, D], ``scale`` is [1].

    ``ids`` [N] or [N, K]: pairs that share an id in any column, off the diagonal, are left out of the sums. ``tile``:
    rows of scores held at once, 0 (or at least N) for the plain form. Raises ShapeError for views that do not match.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ShapeError(f"two views of the same rows have one shape [N, D], not {list(a.shape)} and {list(b.shape)}")
    if ids is not None and (ids.ndim not in (1, 2) or ids.shape[0] != a.shape[0]):
        raise ShapeError(f"{a.shape[0]} rows need as many ids, [N] or [N, K], not {list(ids.shape)}")
    with paddle.amp.auto_cast(enable=False):
        a, b, scale = (x.astype("float32") for x in (a, b, scale))
        equal = None if ids is None else _Equal(ids)
        if not tile or tile >= a.shape[0]:
            return _plain(a, b, scale, equal)
        return PairLoss(*_TiledInfoNCE.apply(a, b, scale, equal, tile))


class _Equal:
    """Which pairs share an id. (An object, so that a PyLayer does not take the ids for an input with a gradient.)"""

    def __init__(self, ids: Tensor):
        self.ids = ids.detach()

    def hide(self, scores: Tensor, start: int) -> Tensor:
        """Scores [T, N] of the rows from ``start`` on, with :data:`HIDDEN` for equal pairs off the diagonal."""
        count = scores.shape[0]
        same = self.ids[start:start + count].unsqueeze(1) == self.ids.unsqueeze(0)  # [T, N] or [T, N, K]
        same = same.any(-1) if same.ndim == 3 else same
        own = paddle.arange(count), paddle.arange(start, start + count)
        return paddle.masked_fill(scores, paddle.index_put(same, own, paddle.zeros([count], "bool")), HIDDEN)


def _hits(scores: Tensor, start: int, highest: Tensor) -> Tensor:
    """How far each row [T, N] prefers its own column (start …): 1, or 1/k when it ties with k - 1 others, or 0: [T].

    ``highest`` [T, 1] is each row's maximum.
    """
    own = paddle.diagonal(scores, offset=start).unsqueeze(1)  # [T, 1]
    found = (own >= highest).astype("float32") / (scores >= own).astype("float32").sum(1, keepdim=True)
    return found.reshape([-1])


def _plain(a: Tensor, b: Tensor, scale: Tensor, equal: _Equal | None) -> PairLoss:
    # Not the house's matmul, whose backward runs in bf16 where that is on.
    scores = paddle.matmul(a * scale, b, transpose_y=True)  # [N, N]
    scores = scores if equal is None else equal.hide(scores, 0)
    labels = paddle.arange(a.shape[0])
    loss = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.t(), labels)) / 2
    return PairLoss(loss, _hits(scores.detach(), 0, scores.detach().max(1, keepdim=True)).mean())


def _product(x: Tensor, y: Tensor, **transposed: bool) -> Tensor:
    with functional.full_precision(), paddle.amp.auto_cast(enable=False):  # a backward may run under either
        return functional.matmul(x, y, **transposed)


def _scores(part: Tensor, b: Tensor, scale: Tensor, equal: _Equal | None, start: int) -> Tensor:
    """Scores of the rows ``part`` [T, D], which begin at ``start``, with all of b: [T, N]."""
    scores = _product(part * scale, b, transpose_y=True)
    return scores if equal is None else equal.hide(scores, start)


class _TiledInfoNCE(PyLayer):
    """(loss, accuracy) with memory for ``tile`` rows of the scores at a time.

    Sums run as products with ones, which on a CPU are several times faster than reductions.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, equal: _Equal | None, tile: int
                ) -> tuple[Tensor, Tensor]:
        rows, hits, ones = [], [], paddle.ones([b.shape[0], 1])
        top, total = paddle.full([b.shape[0]], HIDDEN), paddle.zeros([b.shape[0]])  # of the columns, so far
        for start in range(0, a.shape[0], tile):
            scores = _scores(a[start:start + tile], b, scale, equal, start)
            highest = scores.max(1, keepdim=True)  # [T, 1]
            hits.append(_hits(scores, start, highest))
            rows.append(highest + paddle.log(_product((scores - highest).exp_(), ones)))
            higher = paddle.maximum(top, scores.max(0))
            inside = _product(ones[:scores.shape[0]], scores.subtract_(higher).exp_(), transpose_x=True)  # [1, N]
            total, top = total * paddle.exp(top - higher) + inside.reshape([-1]), higher
        row, column = paddle.concat(rows).reshape([-1]), top + paddle.log(total)  # [N] each
        own = (a * b).sum(1) * scale
        ctx.save_for_backward(a, b, scale, row, column)
        ctx.equal, ctx.tile = equal, tile
        ctx.needs = [not x.stop_gradient for x in (a, b, scale)]
        accuracy = paddle.concat(hits).mean()
        ctx.mark_non_differentiable(accuracy)
        return ((row - own) + (column - own)).mean() / 2, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        a, b, scale, row, column = ctx.saved_tensor()
        to_a, to_b = [], paddle.zeros_like(b)
        for start in range(0, a.shape[0], ctx.tile):
            part = a[start:start + ctx.tile]
            scores = _scores(part, b, scale, ctx.equal, start)
            shares = (scores - row[start:start + ctx.tile].unsqueeze(1)).exp_()  # of each row's sum: [T, N]
            shares.add_(scores.subtract_(column).exp_())  # and of each column's
            to_a.append(_product(shares, b))
            to_b.add_(_product(shares, part, transpose_x=True))
        to_a = paddle.concat(to_a).subtract_(2 * b)
        to_b.subtract_(2 * a)
        factor = gradient / (2 * a.shape[0])
        to_scale = ((to_a * a).sum() * factor).reshape(scale.shape)  # Σ shares · cosine, less the diagonal's
        found = to_a.multiply_(scale * factor), to_b.multiply_(scale * factor), to_scale
        return tuple(value if needed else None for value, needed in zip(found, ctx.needs))
