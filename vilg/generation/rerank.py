"""P(text | image) by the generator's own weights, to put the pictures drawn from a text in order."""
import paddle
from paddle import Tensor

from vilg.generation.decoding.decoder import evaluating
from vilg.losses.sequence import text_nll
from vilg.models.bidirectional import TextImageTransformer


def score_text(model: TextImageTransformer, image: Tensor, text: Tensor, length: Tensor,
               prefix: Tensor | None = None, unk_id: int | None = None, batch_size: int = 32) -> Tensor:
    """log P(text | image), summed over the target tokens: [B], higher is better.

    ``image`` [B, n …] as the model reads it (codes, or dense features), ``text`` [B, m], ``length`` [B]; the first
    ``prefix`` [B] tokens (none unless given) are source. Tokens ``unk_id`` say nothing about an image and are left out.
    """
    text = model.pad_text(text)
    prefix = paddle.zeros_like(length) if prefix is None else prefix
    scores = []
    with evaluating(model):
        for start in range(0, image.shape[0], batch_size):
            part = slice(start, start + batch_size)
            target = text[part], length[part], prefix[part]
            hidden = model.image_to_text_hidden(image[part], *target)
            scores.append(-text_nll(model, hidden, *target, unk_id).sum(axis=-1))
    return paddle.concat(scores)
