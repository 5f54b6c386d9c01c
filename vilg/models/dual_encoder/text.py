"""The text tower: ERNIE (arXiv 1904.09223, in its 3.0 sizes) without token-type and task embeddings."""
from typing import Literal

import paddle
from paddle import Tensor

from vilg.config import configclass
from vilg.errors import ShapeError
from vilg.models.dual_encoder.tower import Tower, TowerConfig, TowerStack
from vilg.nn.layers import Embedding, LayerNorm, Linear


@configclass
class TextTowerConfig(TowerConfig):
    """Shape of a :class:`TextTower`."""

    vocab_size: int
    positions: int  # longest text in tokens
    pad_id: int = 0
    norm_order: Literal["pre", "post"] = "post"
    dropout: float = 0.1
    pooling: Literal["cls_tanh", "cls", "mean"] = "cls_tanh"  # tanh(Linear(CLS)); CLS; mean over the real tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id {self.pad_id} must be an id of the vocabulary, from 0 to {self.vocab_size - 1}")


class TextTower(Tower):
    """Text ids int64 [B, L], ``[CLS] … [SEP]`` and then padding → one vector a text [B, D]."""

    def __init__(self, config: TextTowerConfig):
        super().__init__(config)
        self.word_embedding = Embedding(config.vocab_size, config.width)
        self.position_embedding = Embedding(config.positions, config.width)
        self.norm = LayerNorm(config.width, config.norm_eps)
        self.stack = TowerStack(config)
        self.pooler = Linear(config.width, config.width) if config.pooling == "cls_tanh" else None
        self.freeze()

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, L] → [B, D]. Raises ShapeError for texts longer than the tower has positions."""
        length, pooling = ids.shape[1], self.config.pooling
        if length > self.config.positions:
            raise ShapeError(f"a text of {length} tokens is longer than the {self.config.positions} "
                             "that the text tower reads; shorten it")
        padded = ids == self.config.pad_id  # [B, L]
        x = self.word_embedding(ids) + self.position_embedding(paddle.arange(length))
        x = self.stack(self.drop(self.norm(x)), padded, first_only=pooling != "mean")
        if pooling == "mean":
            real = (~padded).astype(x.dtype).unsqueeze(-1)  # [B, L, 1]
            return (x * real).sum(1) / real.sum(1).clip(min=1)
        return x[:, 0] if self.pooler is None else paddle.tanh(self.pooler(x[:, 0]))
