"""A transformer that draws by mask-predict and describes from dense features (Huang et al., ACM MM 2021).

Two levels of granularity: image→text reads a dense vector of every cell of the grid, so that nothing is lost to
quantization; text→image predicts discrete ids, and reads those that are known. Drawing is a role, not a network of its
own: the image sees itself both ways, with one learned vector in the place of every token that is still to be guessed
(:data:`vilg.nn.attention.patterns.MASKED`). Image→text is that of :mod:`vilg.models.bidirectional`.
"""
from typing import Literal

import paddle
from paddle import Tensor

from vilg.config import configclass
from vilg.errors import ShapeError
from vilg.models.bidirectional import BidirectionalConfig, TextImageTransformer
from vilg.nn.attention.patterns import MASKED, SOURCE
from vilg.nn.layers import Embedding, LayerNorm, Linear

FeatureKind = Literal["codes", "encoder", "vit"]


@configclass
class TwoLevelConfig(BidirectionalConfig):
    """Shape of a :class:`TwoLevelTransformer`.

    ``features``: what image→text reads: the discrete codes, the vectors of the image tokenizer's encoder before they
    are quantized, or the patches of a dual encoder's image tower; ``feature_width`` is the width of the latter two.
    """

    features: FeatureKind = "codes"
    feature_width: int = 0

    def __post_init__(self) -> None:
        BidirectionalConfig.__post_init__(self)
        if (self.features == "codes") != (self.feature_width == 0):
            raise ValueError(f"feature_width is the width of dense features, and 0 for codes; features is "
                             f"{self.features} and feature_width {self.feature_width}")
        if self.feature_width < 0:
            raise ValueError(f"feature_width must not be negative, not {self.feature_width}")


class TwoLevelTransformer(TextImageTransformer):
    """Draws by mask-predict, see the module; text ids, codes, ``length`` and ``prefix`` as in the base class.

    ``masked`` are booleans [B, n], True where a token is to be predicted, whose code then does not matter. Where the
    config says dense features, ``image`` is float32 [B, n, feature_width], else codes int64 [B, n], or
    shares of the codebook [B, n, K]; another shape is
    refused with ShapeError.
    """

    config: TwoLevelConfig

    def text_to_image_hidden(self, text: Tensor, length: Tensor, codes: Tensor, masked: Tensor) -> Tensor:
        """Text [B, m], and codes some of which are masked → hidden [B, n, D]; slot p predicts token p."""
        x = paddle.concat([self.embed_text(self.pad_text(text)), self.embed_masked(codes, masked)], axis=1)
        x = self._run(x, [self.context(MASKED, length)])
        return self.norm(x[:, self.layout.text:])

    def both_hidden(self, text: Tensor, length: Tensor, codes: Tensor, masked: Tensor, image: Tensor,
                    target_text: Tensor, target_length: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams in one pass: what :meth:`text_to_image_hidden` of text, length, codes and masked returns, and
        :meth:`image_to_text_hidden` of the rest: [B, n, D] and [B, M, D]."""
        batch, m = codes.shape[0], self.layout.text
        words = self.embed_text(paddle.concat([self.pad_text(text), self.pad_text(target_text)], axis=0))
        images = paddle.concat([self.embed_masked(codes, masked), self.embed_source(image)], axis=0)
        x = self._run(paddle.concat([words, images], axis=1),
                      [self.context(MASKED, length), self.context(SOURCE, target_length, prefix)])
        return self.norm(x[:batch, m:]), self.norm(x[batch:, :m])

    def embed_masked(self, codes: Tensor, masked: Tensor) -> Tensor:
        """Codes [B, n], the mask vector in the place of the masked ones → [B, n, D]."""
        self.check_grid(codes.shape[1])
        blank = self.mask_vector(paddle.zeros([1, 1], "int64"))  # [1, 1, D]
        tokens = paddle.where(masked.unsqueeze(-1), blank, self.image_embedding(codes))
        return self._drop(tokens + self.image_positions())

    def embed_source(self, image: Tensor) -> Tensor:
        """What image→text reads of an image → [B, n, D]."""
        width = self.config.feature_width
        if not width:
            return self.embed_image(image) if image.ndim == 2 else self._embed_mixture(image)
        if image.ndim != 3 or image.shape[-1] != width:
            raise ShapeError(f"features of shape {list(image.shape)} do not fit the model, which reads [batch, "
                             f"{self.layout.image}, {width}]")
        self.check_grid(image.shape[1])
        return self._drop(self.feature_norm(self.feature_map(image)) + self.image_positions())

    def _embed_mixture(self, shares: Tensor) -> Tensor:
        """Shares of the codebook [B, n, K], as a relaxed drawing has them → [B, n, D]; one-hot ones are codes."""
        codes = self.config.codebook_size
        if shares.ndim != 3 or shares.shape[-1] != codes:
            raise ShapeError(f"shares of codes of shape {list(shares.shape)} do not fit the model, which reads [batch, "
                             f"{self.layout.image}, {codes}]")
        self.check_grid(shares.shape[1])
        return self._drop(paddle.matmul(shares, self.image_embedding.weight) + self.image_positions())

    def _add_image_inputs(self, width: int) -> None:
        self.mask_vector = Embedding(1, width)
        if self.config.feature_width:
            self.feature_map = Linear(self.config.feature_width, width, std=self.config.feature_width ** -0.5)
            self.feature_norm = LayerNorm(width)
