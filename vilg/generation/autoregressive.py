"""Drawing pictures from text and writing text about pictures, token by token, by one model."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.generation.decoding.decoder import evaluating, image_decoder, text_decoder
from vilg.generation.decoding.drawing import DeviceDrawing, HostDrawing
from vilg.generation.decoding.source import prefill_image, prefill_text
from vilg.generation.prompts import known_tokens, sample_uniforms, with_empty
from vilg.generation.sampling import SamplingConfig, sample_token
from vilg.models.bidirectional import BidirectionalTransformer, TextImageTransformer
from vilg.nn.attention.cached import Source

GREEDY = SamplingConfig(temperature=0.0)
Hidden = Literal["predicting", "own"]


@dataclass
class GeneratedImages:
    """Pictures drawn for P texts, S each: text by text, so row i·S + j is sample j of text i."""

    codes: Tensor  # int64 [P·S, n]
    hidden: Tensor  # [P·S, n, D], the tokens' hidden vectors, see keep_hidden; [P·S, 0, D] unless asked for


def generate_images(model: BidirectionalTransformer, text: Tensor, length: Tensor, num_images: int = 1,
                    seeds: int | Sequence[int] = 0, sampling: SamplingConfig = SamplingConfig(),
                    known_codes: Tensor | None = None, known_mask: Tensor | None = None,
                    keep_hidden: Hidden | None = None, progress: Callable[[int], object] | None = None,
                    first_sample: int = 0) -> GeneratedImages:
    """Draw ``num_images`` pictures for every text: samples ``first_sample`` and on.

    ``text`` int64 [P, m] with ``length`` [P] real tokens; ``seeds``: one for all texts or one each. Sample j of a text
    depends on the text, its seed, j and the settings, not on the batch. ``known_codes`` [P or 1, n] are kept where
    ``known_mask`` (booleans [n] or [P or 1, n]) says so and the rest is drawn in raster order around them.
    ``keep_hidden``: keep the vectors that the tokens were "predicting" from, or their "own", of the slots whose input
    they are, which takes one step more. ``progress(1)`` is called after every token. Raises ShapeError for a text too
    long, codes of another grid, or another number of seeds than texts.
    """
    prompts, steps = text.shape[0], model.layout.image
    random = sample_uniforms(seeds, prompts, range(first_sample, first_sample + num_images), steps)
    known, mask = known_tokens(model.layout, known_codes, known_mask, prompts, num_images)
    with evaluating(model):
        source = _image_source(model, text, length, sampling)
        own = keep_hidden == "own"
        decoder = image_decoder(model, source, num_images, model.layout.with_a_row_more() if own else None)
        drawing = (HostDrawing if source.on_host else DeviceDrawing)(decoder, sampling, known, mask, random)
        x, hidden = model.begin_of_image.weight, []
        for step in range(steps):
            decoder.step(step, x)
            if keep_hidden and (step or not own):
                hidden.append(decoder.hidden()[:len(known)])
            x = drawing.next(step)
            if progress is not None:
                progress(1)
        if own:
            decoder.step(steps, x)
            hidden.append(decoder.hidden()[:len(known)])
    width = model.config.width
    kept = paddle.stack(hidden, axis=1) if keep_hidden else paddle.zeros([len(known), 0, width])
    return GeneratedImages(drawing.codes(), kept)


def generate_text(model: TextImageTransformer, image: Tensor, prompt: Tensor, prefix: Tensor,
                  sampling: SamplingConfig = GREEDY, seeds: int | Sequence[int] = 0, end_id: int | None = None,
                  max_tokens: int | None = None, progress: Callable[[int], object] | None = None,
                  never: int | None = None) -> Tensor:
    """Write about pictures: int64 [B, T], the new tokens after each prompt, T at most ``max_tokens``.

    ``image`` [B, n …] as the model reads it (codes, or dense features); ``prompt`` [B, m] starts with [CLS] and its
    first ``prefix`` [B] tokens are source (a question through its [SEP], which may differ in length from row to row; 0
    for a caption, whose prompt is [CLS] alone). A row
    that has written ``end_id``, or filled the model's text length, goes on with ``end_id`` (0 when there is none) until
    all have. The token ``never`` ([UNK], of which no text can be made) is not written. Greedy unless ``sampling`` says
    otherwise. Raises ShapeError when a prompt or ``max_tokens`` leaves no room for a token.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ShapeError(f"max_tokens is {max_tokens}, but a text has at least 1; leave it out for as many as fit")
    batch, slots = prompt.shape[0], model.layout.text
    start = np.maximum(prefix.numpy() - 1, 0)  # the slot whose hidden vector predicts the first new token
    if start.max() + 1 >= slots:
        raise ShapeError(f"a prompt of {start.max() + 1} tokens leaves no room in the {slots} that the model reads; "
                         "shorten it")
    steps = min(slots - 1 - int(start.min()), max_tokens or slots)
    random = sample_uniforms(seeds, batch, range(1), steps)
    filler = 0 if end_id is None else end_id
    with evaluating(model):
        decoder = text_decoder(model, prefill_image(model, image, prompt, prefix), steps)
        written, ended = np.zeros([batch, steps], dtype=np.int64), np.zeros([batch], dtype=bool)
        token = prompt.numpy()[np.arange(batch), start]
        for step in range(steps):
            decoder.step(step, decoder.embed(token, np.minimum(start + step, slots - 1)))
            ended |= start + step + 1 >= slots
            token = sample_token(_without(decoder.logits(), never), sampling, random[:, step])
            token = written[:, step] = np.where(ended, filler, token)
            ended |= (token == end_id) if end_id is not None else False
            if progress is not None:
                progress(1)
            if ended.all():
                break
    return paddle.to_tensor(written[:, :step + 1])


def _image_source(model: BidirectionalTransformer, text: Tensor, length: Tensor, sampling: SamplingConfig) -> Source:
    """The prefilled texts; with guidance, followed by as many empty ones, which are prefilled once."""
    if sampling.guidance == 1:
        return prefill_text(model, text, length)
    source = prefill_text(model, *with_empty(text, length))
    prompts = text.shape[0]
    return source.take([*range(prompts), *[prompts] * prompts])


def _without(logits: np.ndarray, never: int | None) -> np.ndarray:
    """Logits [R, V] under which token ``never`` cannot be drawn."""
    return logits if never is None else np.where(np.arange(logits.shape[-1]) == never, np.float32(-np.inf), logits)
