"""The end-to-end path: hidden vectors of the image tokens become a picture without an id between (paper 1, "Text→image:
two paths", path 2).

Which hidden vector stands for a token the paper does not say. ``reads`` "own" is its likelier reading ("the hidden
embeddings of the image tokens", contextual where the codebook's are not; gold sequences are *fed*): the slot whose input
the token is, p + 1 for token p, and one slot more for the last. "predicting" is slot p, which predicts token p and has
not seen it. All are vectors of the text→image stream after the final norm. Training takes them from
:meth:`~vilg.models.bidirectional.BidirectionalTransformer.text_to_image_own_hidden`, and
:func:`vilg.generation.autoregressive.generate_images` keeps them while it draws, so a picture costs no second pass.
"""
from typing import Literal

import paddle
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.errors import ShapeError
from vilg.models.bidirectional import BidirectionalTransformer
from vilg.nn import functional
from vilg.nn.layers import Embedding, LayerNorm, Linear
from vilg.tokenizers.image.base import ImageTokenizer, Reconstructor
from vilg.tokenizers.image.kinds import build_image_tokenizer


@configclass
class ReconstructorConfig:
    """The map from hidden vectors to code vectors, and where the network behind it starts.

    The map has ``map_layers`` hidden layers of ``map_ratio`` · D units. ``start``: the network that turns code vectors
    into a picture has the weights of the image tokenizer's own at first ("tokenizer"), or random ones ("fresh").

    ``anchor``: what the map's output is added to. Nothing ("none", the paper's path): the code vectors come from hidden
    vectors alone. Or the vector of the token that stands there ("token", an addition of this project): the map starts
    at zero, so that training begins with the two-stage picture, and learns what the hidden vector knows beyond the
    token. The gradient still reaches the transformer, by the map.

    ``reads``: the hidden vectors of the slots whose input the tokens are ("own"), or of those that predict them.
    ``map``: "mlp", or "soft_codes", which adds to it a mixture of the tokenizer's code vectors, weighted by the softmax
    of a linear layer; the mlp then starts at zero, and nothing is looked up. With ``reads`` "predicting" that layer
    starts as the transformer's head over the codebook, so that training begins with the expected picture.
    """

    map_layers: int = 2
    map_ratio: int = 2
    start: Literal["tokenizer", "fresh"] = "tokenizer"
    anchor: Literal["none", "token"] = "none"
    reads: Literal["own", "predicting"] = "predicting"
    map: Literal["mlp", "soft_codes"] = "mlp"

    def __post_init__(self) -> None:
        if self.map_layers < 1:
            raise ValueError(f"map_layers must be at least 1 (the map is not linear), not {self.map_layers}")
        if self.map_ratio < 1:
            raise ValueError(f"map_ratio must be at least 1, not {self.map_ratio}")
        if self.map == "soft_codes" and self.anchor == "token":
            raise ValueError("map: soft_codes is there to do without the tokens' own vectors; set anchor: none")


class HiddenMap(nn.Layer):
    """Hidden vectors [B, n, D] → code vectors [B, n, d]: GELU layers, a norm, a linear layer.

    The output starts as noise with the mean and deviation that it is told (those of the tokenizer's code vectors), so
    that a reconstructor which knows such vectors is not started on others.
    """

    def __init__(self, width: int, code_dim: int, layers: int, ratio: int):
        super().__init__()
        wide = width * ratio
        self.layers = nn.LayerList(Linear(width if number == 0 else wide, wide, std=(width if number == 0 else wide)
                                          ** -0.5) for number in range(layers))
        self.norm = LayerNorm(wide)
        self.out = Linear(wide, code_dim, std=wide ** -0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = functional.gelu(layer(hidden))
        return self.out(self.norm(hidden))

    @paddle.no_grad()
    def start_like(self, vectors: Tensor) -> None:
        """Give the output the mean and deviation of ``vectors`` [N, d], dimension by dimension."""
        mean = vectors.mean(0)
        deviation = ((vectors - mean) ** 2).mean(0).sqrt()  # Tensor.std warns of a type promotion of its own
        self.out.weight.set_value(self.out.weight * deviation)
        self.out.bias.set_value(mean)

    @paddle.no_grad()
    def start_at_zero(self) -> None:
        """Make the output zero until it learns otherwise."""
        self.out.weight.set_value(paddle.zeros_like(self.out.weight))


class CodeMixture(nn.Layer):
    """Hidden vectors [B, n, D] → the mean of code vectors [K, d], weighted by a softmax over K: [B, n, d]."""

    def __init__(self, width: int, vectors: Tensor):
        super().__init__()
        self.weigh = Linear(width, vectors.shape[0], std=width ** -0.5)
        self.vectors = Linear(*vectors.shape)
        self.vectors.weight.set_value(vectors)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.vectors(nn.functional.softmax(self.weigh(hidden), axis=-1))

    @paddle.no_grad()
    def start_as(self, head: Linear) -> None:
        """Weigh the codes as ``head`` [D → K] does."""
        self.weigh.weight.set_value(head.weight)
        self.weigh.bias.set_value(head.bias)


class EndToEndReconstructor(nn.Layer):
    """Hidden vectors [B, n, D] → map → z [B, d, rows, columns] → the raw output of the tokenizer's architecture.

    ``width`` is D. The architecture, the grid and d are those of ``tokenizer``, which stays as it is;
    ``tokenizer.picture_of`` turns the raw output into pictures. ``codes`` [B, n], the tokens that the hidden vectors
    predicted, are read with ``anchor`` "token" alone; leaving them out then raises ShapeError.
    """

    def __init__(self, config: ReconstructorConfig, width: int, tokenizer: ImageTokenizer):
        super().__init__()
        self.config, self.width = config, width
        self.grid, self.code_dim = tokenizer.grid, tokenizer.code_dim
        self.map = HiddenMap(width, tokenizer.code_dim, config.map_layers, config.map_ratio)
        self.network: Reconstructor = build_image_tokenizer(tokenizer.config).reconstructor
        self.token_embedding, self.mixture = None, None
        if config.start == "tokenizer":
            self.network.set_state_dict(tokenizer.reconstructor.state_dict())
        if config.anchor == "token":
            self.token_embedding = Embedding(tokenizer.codebook_size, tokenizer.code_dim)
            self.token_embedding.weight.set_value(_code_vectors(tokenizer)[:tokenizer.codebook_size])
            self.map.start_at_zero()
        elif config.map == "soft_codes":
            self.mixture = CodeMixture(width, _code_vectors(tokenizer)[:tokenizer.codebook_size])
            self.map.start_at_zero()
        elif config.start == "tokenizer":
            self.map.start_like(_code_vectors(tokenizer))

    @property
    def behind_the_map(self) -> list[Tensor]:
        """All weights but the map's and the mixture's: what began as the image tokenizer's."""
        table = [] if self.token_embedding is None else [self.token_embedding.weight]
        return [*table, *self.network.parameters()]

    def embed(self, hidden: Tensor, codes: Tensor | None = None) -> Tensor:
        """Hidden [B, n, D] → z [B, d, rows, columns]. Raises ShapeError for another grid or width."""
        rows, columns = self.grid
        if list(hidden.shape[1:]) != [rows * columns, self.width]:
            raise ShapeError(f"the reconstructor takes hidden vectors [B, {rows * columns}, {self.width}] (a "
                             f"{rows}×{columns} grid), got {list(hidden.shape)}; use the transformer it was trained "
                             "with")
        z = self.map(hidden)                                                                      # [B, n, d]
        if self.mixture is not None:
            z = z + self.mixture(hidden)
        if self.token_embedding is not None:
            if codes is None:
                raise ShapeError("this reconstructor adds to the vectors of tokens (anchor: token); give it the codes "
                                 "that the hidden vectors predicted")
            z = z + self.token_embedding(codes)
        return z.transpose([0, 2, 1]).reshape([hidden.shape[0], self.code_dim, rows, columns])

    def features(self, hidden: Tensor, codes: Tensor | None = None) -> Tensor:
        """Hidden [B, n, D] → the input of the network's last layer."""
        return self.network.features(self.embed(hidden, codes))

    def forward(self, hidden: Tensor, codes: Tensor | None = None) -> Tensor:
        return self.network.last(self.features(hidden, codes))


class EndToEndModel(nn.Layer):
    """A generator and the reconstructor that its hidden vectors go to.

    Raises ShapeError when the generator's width or grid is not what the reconstructor was made for.
    """

    def __init__(self, generator: BidirectionalTransformer, reconstructor: EndToEndReconstructor):
        super().__init__()
        layout = generator.layout
        for name, ours, theirs in (("width", generator.config.width, reconstructor.width),
                                   ("grid", (layout.rows, layout.columns), tuple(reconstructor.grid))):
            if ours != theirs:
                raise ShapeError(f"the transformer's {name} is {ours} and the reconstructor's {theirs}; use a "
                                 "reconstructor that was trained with this transformer")
        self.generator, self.reconstructor = generator, reconstructor

    def forward(self, text: Tensor, length: Tensor, codes: Tensor) -> Tensor:
        """Text ids [B, m], real tokens [B] and the codes [B, n] drawn for them → raw output [B, 3 or 6, H, W].

        One pass over all tokens (teacher forcing); the same picture as from the hidden vectors kept while drawing.
        """
        return self.reconstructor(token_vectors(self.generator, self.reconstructor, text, length, codes), codes)


def token_vectors(generator: BidirectionalTransformer, reconstructor: EndToEndReconstructor, text: Tensor,
                  length: Tensor, codes: Tensor) -> Tensor:
    """Text [B, m], real tokens [B] and codes [B, n] → the hidden vectors [B, n, D] that ``reconstructor`` reads."""
    if reconstructor.config.reads == "own":
        return generator.text_to_image_own_hidden(text, length, codes)[:, 1:]
    return generator.text_to_image_hidden(text, length, codes)


def _code_vectors(tokenizer: ImageTokenizer) -> Tensor:
    """The vectors of all codes, [N, d], N ≥ K (the last picture is filled up with codes from the first on)."""
    rows, columns = tokenizer.grid
    pictures = -(-tokenizer.codebook_size // (rows * columns))
    codes = paddle.arange(pictures * rows * columns) % tokenizer.codebook_size
    with paddle.no_grad():
        z = tokenizer.embed(codes.reshape([pictures, rows * columns]))
    return z.transpose([0, 2, 3, 1]).reshape([-1, tokenizer.code_dim])
