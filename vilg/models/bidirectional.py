"""ERNIE-ViLG: one transformer that draws from text and writes about pictures (paper 1, "Model")."""
import paddle
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.errors import ShapeError
from vilg.nn.attention.dense import StreamContext
from vilg.nn.attention.patterns import SOURCE, TARGET, Convolution, Dense, Layout, Pattern, Role, layer_patterns
from vilg.nn.layers import Embedding, LayerNorm, Linear, OutputHead
from vilg.nn.program import Program, pre_norm
from vilg.nn.transformer import Stack, StreamAttention


@configclass
class BidirectionalConfig:
    """Shape of a :class:`BidirectionalTransformer`."""

    layers: int
    width: int
    heads: int
    vocab_size: int  # text vocabulary V
    codebook_size: int  # image vocabulary K
    text_length: int  # text slots M
    rows: int  # image grid
    columns: int
    sparse: bool = True  # the row, column and convolutional patterns; otherwise dense
    conv_window: int = Convolution.window  # side of the last layer's neighbourhood, odd
    mlp_ratio: int = 4
    dropout: float = 0.0  # on attention weights, embeddings and both residual branches

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "vocab_size", "codebook_size", "rows", "columns", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.text_length < 2:
            raise ValueError(f"text_length must be at least 2 ([CLS] and [SEP]), not {self.text_length}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        Convolution(self.conv_window)  # refuses a window that has no middle, of a dense model too
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def layout(self) -> Layout:
        """The stream that the model is made for."""
        return Layout(self.text_length, self.rows, self.columns)

    @property
    def patterns(self) -> list[Pattern]:
        """What the image slots of every layer see."""
        return layer_patterns(self.layers, Convolution(self.conv_window)) if self.sparse else [Dense()] * self.layers

    @property
    def program(self) -> Program:
        """What a block computes."""
        return pre_norm(self.width, self.heads, self.mlp_ratio)


class TextImageTransformer(nn.Layer):
    """One stack for both directions, with embeddings and output heads of their own for text and image; how images are
    drawn is a subclass's.

    Text ids are int64 [B, m] with m ≤ M, codes int64 [B, n] in raster order; ``length`` and ``prefix`` are int64 [B]:
    real text tokens, and those of them that are source when the picture is the source (a question; 0 for a caption).
    Every method raises ShapeError for text longer than M and for codes that are not n long.
    """

    def __init__(self, config: BidirectionalConfig):
        super().__init__()
        self.config, self.layout = config, config.layout
        width = config.width
        self.patterns = config.patterns
        self.text_embedding = Embedding(config.vocab_size, width)
        self.text_position = Embedding(config.text_length, width)
        self.image_embedding = Embedding(config.codebook_size, width)
        self.row_position = Embedding(config.rows, width)
        self.column_position = Embedding(config.columns, width)
        self._add_image_inputs(width)
        self.stack = Stack(config.layers, config.program, config.dropout)
        self.norm = LayerNorm(width)
        self.image_head = OutputHead(width, config.codebook_size)
        self.text_head = OutputHead(width, config.vocab_size)

    def image_to_text_hidden(self, image: Tensor, text: Tensor, length: Tensor, prefix: Tensor) -> Tensor:
        """A picture, as :meth:`embed_source` takes it, and the text about it [B, m] → hidden [B, M, D]; slot j predicts
        text token j+1."""
        x = paddle.concat([self.embed_text(self.pad_text(text)), self.embed_source(image)], axis=1)
        x = self._run(x, [self.context(SOURCE, length, prefix)])
        return self.norm(x[:, :self.layout.text])

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Hidden [..., D] → logits over the codebook [..., K]."""
        return self.image_head(hidden)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Hidden [..., D] → logits over the text vocabulary [..., V]."""
        return self.text_head(hidden)

    def round_to_int8(self) -> None:
        """Hold the weights of all linear maps in int8, as they are now, for drawing and writing where int8 is on."""
        for layer in self.sublayers():
            if isinstance(layer, Linear):
                layer.round_to_int8()

    def embed_text(self, text: Tensor) -> Tensor:
        """Text ids [B, m] at slots 0 … m-1 → [B, m, D]."""
        return self._drop(self.text_embedding(text) + self.text_position(paddle.arange(text.shape[1])))

    def image_positions(self) -> Tensor:
        """Row plus column embedding of every image token: [n, D]."""
        rows, columns = paddle.arange(self.layout.rows), paddle.arange(self.layout.columns)
        grid = self.row_position(rows).unsqueeze(1) + self.column_position(columns).unsqueeze(0)
        return grid.reshape([self.layout.image, self.config.width])  # [n, D]

    def embed_image(self, codes: Tensor) -> Tensor:
        """Codes [B, n] → e_0 … e_{n-1} [B, n, D], the same in both streams."""
        self.check_grid(codes.shape[1])
        return self._drop(self.image_embedding(codes) + self.image_positions())

    def check_grid(self, tokens: int) -> None:
        """Raise ShapeError for a picture of another number of tokens than the model's grid has."""
        layout = self.layout
        if tokens != layout.image:
            raise ShapeError(f"a picture of {tokens} tokens does not fit the model's grid of "
                             f"{layout.rows}×{layout.columns} = {layout.image}")

    def embed_source(self, image: Tensor) -> Tensor:
        """What image→text reads of a picture → [B, n, D]: its codes [B, n], where a subclass says nothing else."""
        return self.embed_image(image)

    def pad_text(self, text: Tensor) -> Tensor:
        """Text ids [B, m] → [B, M], filled up with id 0. Raises ShapeError when m > M."""
        missing = self.layout.text - text.shape[1]
        if missing < 0:
            raise ShapeError(f"a text of {text.shape[1]} tokens is longer than the {self.layout.text} "
                             "that the model reads; shorten it")
        return paddle.concat([text, paddle.zeros([text.shape[0], missing], text.dtype)], axis=1) if missing else text

    def context(self, role: Role, length: Tensor, prefix: Tensor | None = None) -> StreamContext:
        """The context of a whole stream; ``prefix`` is zero unless given."""
        return StreamContext(self.layout, role, length, paddle.zeros_like(length) if prefix is None else prefix)

    def _add_image_inputs(self, width: int) -> None:
        """Make what a subclass puts into image slots besides codes. Called between embeddings and stack, so that a seed
        gives the same weights whoever asks."""

    def _run(self, x: Tensor, contexts: list[StreamContext]) -> Tensor:
        dropout = self.config.dropout if self.training else 0.0
        return self.stack(x, StreamAttention(contexts, self.patterns, dropout))

    def _drop(self, x: Tensor) -> Tensor:
        dropout = self.config.dropout
        return nn.functional.dropout(x, dropout) if dropout and self.training else x


class BidirectionalTransformer(TextImageTransformer):
    """Draws token by token: text→image is causal, its image slots shifted by a begin-of-image vector."""

    def text_to_image_hidden(self, text: Tensor, length: Tensor, codes: Tensor) -> Tensor:
        """Text [B, m] and the picture it should become → hidden [B, n, D]; slot p predicts token p."""
        image = self.embed_image(codes)
        x = paddle.concat([self.embed_text(self.pad_text(text)), self._shifted(image)], axis=1)
        x = self._run(x, [self.context(TARGET, length)])
        return self.norm(x[:, self.layout.text:])

    def text_to_image_own_hidden(self, text: Tensor, length: Tensor, codes: Tensor) -> Tensor:
        """As :meth:`text_to_image_hidden`, with one slot more, whose input is the last token → hidden [B, n + 1, D].

        Slot p predicts token p, and slot p + 1 is the one whose input token p is: it has seen the token.
        """
        layout = self.layout.with_a_row_more()
        image = self.embed_image(codes)
        unused = paddle.zeros([codes.shape[0], layout.columns - 1, self.config.width], image.dtype)
        begin = self.begin_of_image(paddle.zeros([codes.shape[0], 1], "int64"))
        x = paddle.concat([self.embed_text(self.pad_text(text)), begin, image, unused], axis=1)  # [B, M + n + columns, D]
        x = self._run(x, [StreamContext(layout, TARGET, length, paddle.zeros_like(length))])
        return self.norm(x[:, layout.text:layout.text + self.layout.image + 1])

    def both_hidden(self, text: Tensor, length: Tensor, codes: Tensor, target_text: Tensor, target_length: Tensor,
                    prefix: Tensor, drawn_codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both streams of the same pictures in one pass: what the two methods above return, [B, n, D] and [B, M, D].

        ``text`` and ``length`` are what the picture is drawn from, ``target_text``, ``target_length`` and ``prefix``
        what is written about it (the same caption, or a question with its answer). ``drawn_codes`` [B, n]: what
        drawing reads as the codes before each one, where that is not ``codes``.
        """
        batch, m = codes.shape[0], self.layout.text
        image = self.embed_image(codes)
        drawn = image if drawn_codes is None else self.embed_image(drawn_codes)
        words = self.embed_text(paddle.concat([self.pad_text(text), self.pad_text(target_text)], axis=0))
        x = paddle.concat([words, paddle.concat([self._shifted(drawn), image], axis=0)], axis=1)
        x = self._run(x, [self.context(TARGET, length), self.context(SOURCE, target_length, prefix)])
        return self.norm(x[:batch, m:]), self.norm(x[batch:, :m])

    def _add_image_inputs(self, width: int) -> None:
        self.begin_of_image = Embedding(1, width)

    def _shifted(self, image: Tensor) -> Tensor:
        """e_0 … e_{n-1} → begin-of-image, e_0 … e_{n-2} (both [B, n, D])."""
        begin = self.begin_of_image(paddle.zeros([image.shape[0], 1], "int64"))
        return paddle.concat([begin, image[:, :-1]], axis=1)
