"""Vector quantizers: vectors of an encoder → the nearest codes of a codebook, and how the codebook learns.

Eq. 1 of the paper: ‖sg[E(x)] − z_emb‖² moves the codebook (or a moving average of the vectors does), and
β·‖sg[z_emb] − E(x)‖² commits the encoder to its codes.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.nn import functional
from vilg.nn.layers import Conv2D, Embedding, as_table

USAGE_DECAY = 0.99  # a step, of the choices that codebook_usage and perplexity are counted from


@configclass
class QuantizerConfig:
    """How codes are chosen and learned.

    ``straight_through`` learns the codebook by gradient, ``ema`` by a moving average with ``decay``, ``gumbel`` by a
    Gumbel-softmax over projected logits. ``beta`` weighs the commitment term; ``normalize`` puts vectors and codes on
    the unit sphere. Every ``revive_every`` steps (0: never) a code used less than ``revive_below`` times the mean,
    or times once a step where the mean is more, moves to an encoder output, a badly quantized one as a rule: drawn by
    squared distance to its code, like the seeds of k-means++, or many codes would come to mean nearly the same common
    patch. ``kl_weight``, ``temperature`` and the
    temperature's end and length (cosine) are for ``gumbel`` alone.
    """

    kind: Literal["straight_through", "ema", "gumbel"] = "ema"
    codebook_size: int = 1024
    beta: float = 0.25
    decay: float = 0.99
    normalize: bool = False
    revive_every: int = 10
    revive_below: float = 0.1
    kl_weight: float = 1e-8
    temperature: float = 0.9
    temperature_end: float = 1e-5
    temperature_steps: int = 200_000

    def __post_init__(self):
        if self.codebook_size < 2:
            raise ValueError("codebook_size must be at least 2")
        if self.beta < 0:
            raise ValueError("beta weighs the commitment term and cannot be negative")
        if not 0 <= self.decay < 1:
            raise ValueError("decay must lie in [0, 1)")
        if min(self.temperature, self.temperature_end) <= 0:
            raise ValueError("the temperature must stay above zero: a Gumbel-softmax divides by it")
        if self.temperature_steps < 1 or self.revive_every < 0:
            raise ValueError("temperature_steps must be positive and revive_every not negative")
        if self.kind == "gumbel" and self.normalize:
            raise ValueError("normalize is for codes chosen by distance; a gumbel quantizer chooses by logits")


@dataclass
class Quantized:
    """z [B, d, rows, columns] that the gradient passes through, codes [B, n], and the quantizer's own loss (scalar)."""

    z: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantizer(nn.Layer):
    """Nearest-code quantizer; ``codebook`` [K, d] is a parameter (straight_through) or a buffer (ema).

    In training mode ``forward`` remembers vectors and codes; :meth:`update`, called once after an optimizer step,
    moves the averages and revives dead codes from them. ``gather``, when set, concatenates a tensor over all ranks,
    so that every rank makes the same update.
    """

    def __init__(self, config: QuantizerConfig, code_dim: int):
        super().__init__()
        self.config, self.code_dim = config, code_dim
        size, bound = config.codebook_size, 1.0 / config.codebook_size
        if config.kind == "straight_through":
            self.codebook = as_table(self.create_parameter(
                [size, code_dim], default_initializer=nn.initializer.Uniform(-bound, bound)))
        else:
            self.register_buffer("codebook", paddle.uniform([size, code_dim], min=-bound, max=bound))
        self.register_buffer("counts", paddle.zeros([size]), persistable=False)
        self.register_buffer("sums", paddle.zeros([size, code_dim]), persistable=False)
        # Counts of the vectors' own choices alone, for the log: a revived code has counts before anything chooses it.
        self.register_buffer("chosen", paddle.zeros([size]), persistable=False)
        self.gather: Callable[[Tensor], Tensor] | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []

    @paddle.no_grad()
    def hold(self) -> None:
        """Let every code stand as if it had been chosen before: a codebook that was trained is moved by what it sees,
        and not replaced by it, nor are the codes revived that the first steps do not choose."""
        self.counts.set_value(paddle.ones_like(self.counts))
        self.sums.set_value(self.codebook.astype("float32"))

    def codes_of(self, z: Tensor) -> Tensor:
        """Vectors [N, d] → the nearest codes [N]."""
        with paddle.amp.auto_cast(enable=False):  # half precision cannot tell near codes apart
            table, z = self.table().astype("float32"), z.astype("float32")
            z = F.normalize(z, axis=-1) if self.config.normalize else z
            # The vector's own norm is the same for every code and is left out.
            distance = (table * table).sum(-1) - 2.0 * functional.matmul(z, table, transpose_y=True)  # [N, K]
            return distance.argmin(-1)

    def table(self) -> Tensor:
        """The codebook [K, d] as it is looked up: on the unit sphere when the config says so."""
        return F.normalize(self.codebook, axis=-1) if self.config.normalize else self.codebook

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [...] → their vectors [..., d]."""
        return F.embedding(codes, self.table())

    def encode(self, z: Tensor) -> Tensor:
        """z [B, d, rows, columns] → codes [B, n]."""
        return self.codes_of(_rows(z)).reshape([z.shape[0], -1])

    def forward(self, z: Tensor, step: int = 0) -> Quantized:
        """z [B, d, rows, columns] → :class:`Quantized`; eq. 1's last two terms are its loss.
        ``step`` changes nothing."""
        vectors = _rows(z)                                                     # [N, d]
        vectors = F.normalize(vectors, axis=-1) if self.config.normalize else vectors
        with paddle.no_grad():
            codes = self.codes_of(vectors)
        chosen = self.embed(codes)
        with paddle.amp.auto_cast(enable=False):
            near, code = vectors.astype("float32"), chosen.astype("float32")
            loss = self.config.beta * F.mse_loss(near, code.detach())
            if self.config.kind == "straight_through":
                loss = loss + F.mse_loss(code, near.detach())
        if self.training:
            self._seen.append((vectors.detach().astype("float32"), codes))
        passed = vectors + (chosen - vectors).detach()
        return Quantized(_grid(passed, z), codes.reshape([z.shape[0], -1]), loss)

    @paddle.no_grad()
    def update(self, step: int) -> dict[str, float]:
        """Move averages, revive dead codes; returns codebook usage and perplexity of what vectors chose, each step
        weighing 0.99 of the one after it: about the last hundred steps. A revived code counts once it is chosen.

        Deterministic in (state, what was seen, step). Vectors that are not finite, as a step that was skipped for them
        leaves behind, are passed over.
        """
        if not self._seen:
            return {}
        vectors, codes = (paddle.concat(parts) for parts in zip(*self._seen))
        self._seen = []
        if self.gather is not None:
            vectors, codes = self.gather(vectors), self.gather(codes)
        finite = paddle.isfinite(vectors).all(-1)
        if not finite.all():
            vectors, codes = vectors[finite], codes[finite]
            if not codes.shape[0]:
                return {}
        size, decay = self.config.codebook_size, self.config.decay
        batch_counts = paddle.bincount(codes, minlength=size).astype("float32")
        batch_sums = paddle.scatter_nd(codes.unsqueeze(-1), vectors, [size, self.code_dim])
        self.chosen.set_value(USAGE_DECAY * self.chosen + batch_counts)
        self.counts.set_value(decay * self.counts + (1 - decay) * batch_counts)
        self.sums.set_value(decay * self.sums + (1 - decay) * batch_sums)
        if self.config.kind == "ema":
            held = (self.counts > 1e-6).unsqueeze(-1)
            mean = self.sums / self.counts.clip(min=1e-6).unsqueeze(-1)
            self.codebook.set_value(paddle.where(held, mean, self.codebook))
        if self.config.revive_every and step % self.config.revive_every == 0:
            self._revive(vectors, codes, np.random.default_rng(step))
        return usage_figures(self.chosen.numpy())

    def _revive(self, vectors: Tensor, codes: Tensor, rng: np.random.Generator) -> None:
        counts = self.counts.numpy()
        mean = vectors.shape[0] / self.config.codebook_size
        dead = np.flatnonzero(counts < self.config.revive_below * min(mean, 1.0))
        if not dead.size:
            return
        distance = ((vectors - self.embed(codes)) ** 2).sum(-1).numpy().astype("float64") + 1e-12
        # With replacement only where the draw could not be filled otherwise.
        chosen = rng.choice(distance.size, dead.size, replace=dead.size > distance.size, p=distance / distance.sum())
        fresh = vectors.numpy()[chosen]
        # Two codes on one spot would share its vectors by the order of the table alone: a little noise parts them.
        fresh = fresh + rng.normal(0.0, 1e-3 * (fresh.std() + 1e-6), fresh.shape).astype(fresh.dtype)
        codebook, sums = self.codebook.numpy(), self.sums.numpy()
        codebook[dead], counts[dead] = fresh, mean
        sums[dead] = fresh * mean
        for tensor, array in ((self.codebook, codebook), (self.counts, counts), (self.sums, sums)):
            tensor.set_value(array)


class GumbelQuantizer(nn.Layer):
    """Chooses codes by logits: a 1×1 projection, a Gumbel-softmax in training, the likeliest code otherwise.

    The gradient passes straight through the hard choice; the loss is ``kl_weight`` · KL(q(k | x) ‖ uniform).
    """

    def __init__(self, config: QuantizerConfig, in_channels: int, code_dim: int):
        super().__init__()
        self.config, self.code_dim = config, code_dim
        self.project = Conv2D(in_channels, config.codebook_size, 1)
        self.codebook = Embedding(config.codebook_size, code_dim, std=1.0)
        self.gather: Callable[[Tensor], Tensor] | None = None
        self._seen: list[Tensor] = []

    def temperature_at(self, step: int) -> float:
        """The temperature falls from ``temperature`` to ``temperature_end`` along a cosine of ``temperature_steps``."""
        return cosine_schedule(step, self.config.temperature, self.config.temperature_end,
                               self.config.temperature_steps)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [...] → their vectors [..., d]."""
        return self.codebook(codes)

    def encode(self, z: Tensor) -> Tensor:
        """z [B, C, rows, columns] → the likeliest codes [B, n]."""
        return self.project(z).argmax(1).reshape([z.shape[0], -1])

    def forward(self, z: Tensor, step: int = 0) -> Quantized:
        """z [B, C, rows, columns] → :class:`Quantized`, at the temperature of ``step``."""
        logits = _rows(self.project(z))                                        # [N, K]
        size = self.config.codebook_size
        if self.training:
            weights = gumbel_softmax(logits, self.temperature_at(step), hard=True)
            self._seen.append(weights.detach().argmax(-1))
        else:
            weights = F.one_hot(logits.argmax(-1), size)
        chosen = functional.matmul(weights, self.codebook.weight)              # [N, d]
        codes = weights.argmax(-1).reshape([z.shape[0], -1])
        return Quantized(_grid(chosen, z), codes, divergence(logits, self.config.kl_weight))

    @paddle.no_grad()
    def update(self, step: int) -> dict[str, float]:
        """Usage and perplexity of the codes drawn since the last call; nothing moves here."""
        if not self._seen:
            return {}
        codes = paddle.concat(self._seen)
        self._seen = []
        codes = codes if self.gather is None else self.gather(codes)
        return usage_figures(paddle.bincount(codes, minlength=self.config.codebook_size).numpy())


def build_quantizer(config: QuantizerConfig, in_channels: int, code_dim: int) -> VectorQuantizer | GumbelQuantizer:
    """The quantizer that ``config.kind`` names. A nearest-code quantizer needs vectors as wide as its codes."""
    if config.kind == "gumbel":
        return GumbelQuantizer(config, in_channels, code_dim)
    return VectorQuantizer(config, code_dim)


def gumbel_softmax(logits: Tensor, temperature: float, hard: bool) -> Tensor:
    """Sample of the Gumbel-softmax over the last axis; ``hard`` gives one-hot values with the soft gradient."""
    with paddle.amp.auto_cast(enable=False):
        logits = logits.astype("float32")  # in half precision uniform numbers round to 1, whose noise is infinite
        uniform = paddle.rand(logits.shape, dtype=logits.dtype).clip(1e-9, 1.0 - 1e-7)
        soft = functional.softmax((logits - (-uniform.log()).log()) / temperature)
        if not hard:
            return soft
        one_hot = F.one_hot(soft.detach().argmax(-1), logits.shape[-1])
        return soft + (one_hot - soft).detach()


def divergence(logits: Tensor, weight: float) -> Tensor:
    """``weight`` · KL(softmax(logits) ‖ uniform), the mean over rows [N, K] → scalar, in float32."""
    with paddle.amp.auto_cast(enable=False):
        probabilities = functional.softmax(logits.astype("float32"))
        return weight * (probabilities * (probabilities * logits.shape[-1] + 1e-10).log()).sum(-1).mean()


def cosine_schedule(step: int, start: float, end: float, steps: int) -> float:
    """From ``start`` at step 0 to ``end`` at ``steps`` and after, along half a cosine."""
    share = min(max(step / steps, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + float(np.cos(np.pi * share)))


def usage_figures(counts: np.ndarray) -> dict[str, float]:
    """Counts of K codes → the share of codes with a hundredth of the mean count or more, and the perplexity."""
    counts = counts.astype("float64")
    share = counts / max(counts.sum(), 1e-12)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum()
    return {"codebook_usage": float((share > 0.01 / share.size).mean()), "perplexity": float(np.exp(entropy))}


def _rows(z: Tensor) -> Tensor:
    """[B, d, rows, columns] → [B·n, d]."""
    return z.transpose([0, 2, 3, 1]).reshape([-1, z.shape[1]])


def _grid(vectors: Tensor, z: Tensor) -> Tensor:
    """[B·n, d] → [B, d, rows, columns], batch and grid as in ``z``."""
    batch, _, rows, columns = z.shape
    return vectors.reshape([batch, rows, columns, -1]).transpose([0, 3, 1, 2])
