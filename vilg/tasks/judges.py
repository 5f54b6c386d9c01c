"""Differentiable judges of images: how well drawn ones fit their captions, with gradients to what drew them.

Frozen, and never the scene reader, which judges the outcome.
"""
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg import release
from vilg.errors import ConfigError
from vilg.losses.sequence import text_nll
from vilg.models.dual_encoder.pixels import differentiable
from vilg.release.folder import describe
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder
from vilg.release.kinds.two_level import ReleasedTwoLevel
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.weights.files import fingerprint


class Judge(Protocol):
    """``score(shares, text)``: shares of the codebook [B, n, K] and what :meth:`read` made of texts → float32 [B],
    larger where the image fits the text better; ``loss`` is what training descends. ``model`` is frozen."""

    model: nn.Layer

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → int64 [B, L], as the judge reads them."""

    def score(self, shares: Tensor, text: Tensor) -> Tensor:
        """See the class."""

    def loss(self, scores: Tensor) -> Tensor:
        """Scores [B] → losses [B]."""


class DualEncoderJudge:
    """Cosine of a dual encoder's vectors of the decoded image and the caption, as Huang et al. (ACM MM 2021) judge:
    the loss is -2.5 · relu(100 · cosine)."""

    def __init__(self, released: ReleasedDualEncoder, image_tokenizer: ImageTokenizer):
        self.model, self.words, self.length = released.model, released.text_tokenizer, released.text_length
        self.preprocess, self.size = released.preprocess, released.model.config.image.image_size
        self.image_tokenizer, self.table = image_tokenizer, code_vectors(image_tokenizer)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        return self.words.encode_batch(list(texts), self.length).ids

    def score(self, shares: Tensor, text: Tensor) -> Tensor:
        z = paddle.matmul(shares, self.table)  # [B, n, d]
        rows, columns = self.image_tokenizer.grid
        z = z.transpose([0, 2, 1]).reshape([z.shape[0], -1, rows, columns])  # [B, d, rows, columns]
        pixels = differentiable(self.image_tokenizer.decode_embeddings(z), self.size, self.preprocess)
        return (self.model.encode_image(pixels) * self.model.encode_text(text)).sum(axis=1)

    def loss(self, scores: Tensor) -> Tensor:
        return -2.5 * F.relu(100 * scores)


class ReverseJudge:
    """log P(text | image) a token under a frozen model that reads the codes' vectors, shared out as the image has
    them."""

    def __init__(self, released: ReleasedTwoLevel):
        self.model, self.words = released.model, released.text_tokenizer

    def read(self, texts: Sequence[str]) -> np.ndarray:
        return self.words.encode_batch(list(texts), self.model.layout.text).ids

    def score(self, shares: Tensor, text: Tensor) -> Tensor:
        length = (text != self.words.pad_id).astype("int64").sum(axis=1)
        prefix = paddle.zeros_like(length)
        hidden = self.model.image_to_text_hidden(shares, text, length, prefix)
        nll = text_nll(self.model, hidden, text, length, prefix, self.words.unk_id)
        return -nll.astype("float32").sum(axis=1) / paddle.clip(length - 1, min=1).astype("float32")

    def loss(self, scores: Tensor) -> Tensor:
        return -scores


def read_judge(folder: str, image_tokenizer: ImageTokenizer) -> Judge:
    """The judge in a released folder, frozen: a dual encoder, or a two-level model that reads ``image_tokenizer``'s
    codes. Raises ConfigError for another kind of folder, or codes of another tokenizer."""
    kind = describe(folder)[0]["kind"]
    if kind == "dual_encoder":
        judge = DualEncoderJudge(release.read(folder, kind), image_tokenizer)
        freeze(image_tokenizer)
    elif kind == "two_level":
        released = release.read(folder, kind)
        if released.model.config.features != "codes":
            raise ConfigError(f"task.judge: {folder} reads {released.model.config.features} features; a reverse judge "
                              "reads codes")
        theirs, ours = (fingerprint(one.state_dict()) for one in (released.image_tokenizer, image_tokenizer))
        if theirs != ours:
            raise ConfigError(f"task.judge: {folder} reads codes of the image tokenizer {theirs}, but {ours} is in "
                              "use; name a judge of the same tokenizer")
        judge = ReverseJudge(released)
    else:
        raise ConfigError(f"task.judge: {folder} is of kind {kind}; a judge is a dual_encoder or a two_level model")
    freeze(judge.model)
    return judge


def freeze(layer: nn.Layer) -> None:
    """Put a layer in eval mode; gradients pass through it and change nothing in it."""
    layer.eval()
    for parameter in layer.parameters():
        parameter.stop_gradient = True


def code_vectors(image_tokenizer: ImageTokenizer) -> Tensor:
    """Vector of every code of a tokenizer: [K, d]."""
    count, cells = image_tokenizer.codebook_size, image_tokenizer.grid[0] * image_tokenizer.grid[1]
    codes = np.arange(-(-count // cells) * cells) % count
    with paddle.no_grad():
        z = image_tokenizer.embed(paddle.to_tensor(codes.reshape(-1, cells)))  # [⌈K / n⌉, d, rows, columns]
        return z.flatten(2).transpose([0, 2, 1]).reshape([-1, z.shape[1]])[:count].detach()
