"""Drawing by mask-predict: all tokens at once, of which the surest are kept and the others guessed again.

The paper's decoder (Huang et al., ACM MM 2021) is Mask-Predict (arXiv:1904.09324) with a linear schedule; MaskGIT
(arXiv:2202.04200) keeps few tokens at first and chooses with noise. A step is a whole forward of the image.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import paddle
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.generation.decoding.decoder import evaluating
from vilg.generation.prompts import known_tokens, sample_uniforms, with_empty
from vilg.generation.sampling import MaskPredictConfig, SamplingConfig, guide, sample_token
from vilg.models.two_level.model import TwoLevelTransformer

LOGITS_AT_A_TIME = 2 ** 24
"""Numbers: 64 MB in float32."""
AfterStep = Callable[[int, np.ndarray, np.ndarray], object]
"""Takes the step (from 0), the codes int64 [R, n] as they would be were it the last, and booleans [R, n], True where
they will be guessed again."""


def masked_counts(tokens: int, steps: int, schedule: str) -> list[int]:
    """How many of ``tokens`` unknown tokens are masked on entering each of ``steps`` steps, at most one a token.

    linear: the paper's, ⌊tokens · (steps - t) / steps⌋. cosine: MaskGIT's, ⌊tokens · cos(π/2 · t / steps)⌋, at least
    one fewer than before and never none. Steps beyond the number of tokens find nothing to do.
    """
    if schedule == "linear":
        return [tokens * (steps - step) // steps for step in range(steps)]
    counts = [tokens]
    for step in range(1, steps):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * step / steps))
        counts.append(max(min(1, counts[-1]), min(counts[-1] - 1, wanted)))
    return counts


def predict_images(model: TwoLevelTransformer, text: Tensor, length: Tensor, num_images: int = 1,
                   seeds: int | Sequence[int] = 0, sampling: MaskPredictConfig = MaskPredictConfig(),
                   known_codes: Tensor | None = None, known_mask: Tensor | None = None,
                   progress: Callable[[int], object] | None = None, first_sample: int = 0,
                   after_step: AfterStep | None = None) -> Tensor:
    """Draw ``num_images`` pictures for each of P texts: codes int64 [P · num_images, n], text by text.

    All but ``sampling`` and ``after_step`` as in :func:`vilg.generation.autoregressive.generate_images`; known tokens
    may lie anywhere and are never guessed. Raises ShapeError as that does, and for more steps than the grid has tokens.
    """
    layout, prompts = model.layout, text.shape[0]
    check_steps(sampling.steps, layout.rows, layout.columns)
    random = sample_uniforms(seeds, prompts, range(first_sample, first_sample + num_images),
                             2 * sampling.steps * layout.image)
    random = random.reshape(len(random), sampling.steps, 2, layout.image)  # [R, T, 2, n]
    codes, known = known_tokens(layout, known_codes, known_mask, prompts, num_images)
    drawing = _Drawing(model, text, length, num_images, sampling, codes.copy(), known)
    with evaluating(model):
        for step in range(sampling.steps):
            drawing.step(step, random[:, step])
            if after_step is not None:
                after_step(step, drawing.codes.copy(), drawing.masked.copy())
            if progress is not None:
                progress(1)
    return paddle.to_tensor(drawing.codes)


def check_steps(steps: int, rows: int, columns: int) -> None:
    """Refuse more steps than a grid has tokens: a step settles one at least. Raises ShapeError with both numbers."""
    if steps > rows * columns:
        raise ShapeError(f"steps is {steps}, but the model's grid of {rows}×{columns} has {rows * columns} tokens to "
                         f"settle; give 1 to {rows * columns}")


class _Drawing:
    """The rows of one call: their codes so far [R, n], which of them are masked, and how sure the others were."""

    def __init__(self, model: TwoLevelTransformer, text: Tensor, length: Tensor, samples: int,
                 sampling: MaskPredictConfig, codes: np.ndarray, known: np.ndarray):
        self.model, self.sampling, self.codes = model, sampling, codes
        self.masked = ~known
        self.confidence = np.full(codes.shape, np.inf, dtype=np.float64)  # which known tokens keep
        rows = np.repeat(np.arange(text.shape[0]), samples)
        if sampling.guidance != 1:
            text, length = with_empty(text, length)
            rows = np.concatenate([rows, np.full(len(codes), text.shape[0] - 1)])
        rows = paddle.to_tensor(rows)
        self.text, self.length = paddle.gather(text, rows), paddle.gather(length, rows)
        counts = {int(unknown): masked_counts(int(unknown), sampling.steps, sampling.schedule)
                  for unknown in set(self.masked.sum(axis=1).tolist())}
        self.counts = np.array([counts[unknown] + [0] for unknown in self.masked.sum(axis=1).tolist()])  # [R, T + 1]

    def step(self, step: int, random: np.ndarray) -> None:
        """Guess every masked token, and mask those again that are least sure. ``random`` [R, 2, n]."""
        places = np.flatnonzero(self.masked)
        if not len(places):
            return
        hidden = self._hidden(places)
        at_a_time = max(1, LOGITS_AT_A_TIME // self.model.config.codebook_size)
        for start in range(0, len(places), at_a_time):
            part = slice(start, start + at_a_time)
            drawn, log_p = self._draw([side[part] for side in hidden], random[:, 0].reshape(-1)[places[part]])
            self.codes.reshape(-1)[places[part]] = drawn
            self.confidence.reshape(-1)[places[part]] = log_p
        self.masked = self._least_sure(step, random[:, 1])

    def _hidden(self, places: np.ndarray) -> list[Tensor]:
        """What the tokens at ``places`` [Q] of [R · n] are predicted from, [Q, D]: told, and with guidance free."""
        sides = len(self.text) // len(self.codes)
        hidden = self._all_hidden(sides)
        flat = hidden.reshape([-1, hidden.shape[-1]])  # [sides · R · n, D]
        return [paddle.gather(flat, paddle.to_tensor(places + side * self.codes.size)) for side in range(sides)]

    def _all_hidden(self, sides: int) -> Tensor:
        """Hidden vectors of all tokens [sides · R, n, D]."""
        codes, masked = (paddle.to_tensor(np.concatenate([x] * sides)) for x in (self.codes, self.masked))
        return self.model.text_to_image_hidden(self.text, self.length, codes, masked)

    def _draw(self, hidden: list[Tensor], random: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hidden vectors [Q, D] a side → tokens [Q] and their log-probabilities, which temperature does not touch."""
        logits = [self.model.image_logits(side).astype("float32").numpy() for side in hidden]
        logits = logits[0] if len(logits) == 1 else guide(*logits, self.sampling)
        drawn = sample_token(logits, SamplingConfig(temperature=self.sampling.temperature), random)
        top = logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(logits - top).sum(axis=-1, dtype=np.float64)) + top[:, 0]
        return drawn, np.take_along_axis(logits, drawn[:, None], axis=-1)[:, 0] - total

    def _least_sure(self, step: int, random: np.ndarray) -> np.ndarray:
        """Booleans [R, n]: the tokens to guess again, as many as the schedule says. Known ones never are; with the
        cosine schedule, nor is what an earlier step kept."""
        sure = self.confidence.copy()
        fading = self.sampling.choice_temperature * (1 - (step + 1) / self.sampling.steps)
        if fading:
            sure -= fading * np.log(-np.log(np.maximum(random, np.finfo(np.float64).tiny)))
        if self.sampling.schedule == "cosine":
            sure[~self.masked] = np.inf
        order = np.argsort(sure, axis=1, kind="stable")
        again = np.zeros_like(self.masked)
        np.put_along_axis(again, order, np.arange(sure.shape[1]) < self.counts[:, step + 1, None], axis=1)
        return again


def predict_softly(model: TwoLevelTransformer, text: Tensor, length: Tensor, seeds: Sequence[int],
                   sampling: MaskPredictConfig) -> tuple[Tensor, Tensor]:
    """One picture a text as :func:`predict_images` draws it, with gradients: logits [P, n, K] and codes int64 [P, n].

    Every position keeps the logits of the step that last predicted it (Huang et al., ACM MM 2021, "Sequence-level
    training"). Which codes are read, and which are guessed again, are choices and pass no gradient. Without guidance,
    which training does not know. Raises ShapeError as :func:`predict_images` does.
    """
    layout, prompts = model.layout, text.shape[0]
    check_steps(sampling.steps, layout.rows, layout.columns)
    random = sample_uniforms(seeds, prompts, range(1), 2 * sampling.steps * layout.image)
    random = random.reshape(prompts, sampling.steps, 2, layout.image)  # [P, T, 2, n]
    codes, known = known_tokens(layout, None, None, prompts, 1)
    drawing = _SoftDrawing(model, text, length, 1, replace(sampling, guidance=1.0), codes.copy(), known)
    for step in range(sampling.steps):
        drawing.step(step, random[:, step])
    return model.image_logits(drawing.kept).astype("float32"), paddle.to_tensor(drawing.codes)


class _SoftDrawing(_Drawing):
    """Keeps of every token the hidden vector [R, n, D] that last predicted it."""

    kept: Tensor | None = None

    def _all_hidden(self, sides: int) -> Tensor:
        hidden = super()._all_hidden(sides)
        masked = paddle.to_tensor(self.masked).unsqueeze(-1)
        self.kept = hidden if self.kept is None else paddle.where(masked, hidden, self.kept)
        return hidden.detach()
