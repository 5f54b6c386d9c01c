"""Training the one transformer in both directions: pictures from text, text about pictures, answers to questions."""
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from vilg import release
from vilg.config import configclass
from vilg.data.noise import code_noise, word_noise
from vilg.data.sample import Sample
from vilg.data.transforms import centre_crop, from_model, to_model
from vilg.engine.task import Batch, LogPicture, Phase, StepOutput
from vilg.errors import ConfigError, DataError
from vilg.generation.autoregressive import generate_images, generate_text
from vilg.generation.sampling import SamplingConfig
from vilg.losses.sequence import image_to_text_loss, text_to_image_loss
from vilg.losses.total import weighted_sum
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.release.kinds.bidirectional import ReleasedModel, start_from
from vilg.tasks.unknown_words import report_unknown
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer
from vilg.weights.files import fingerprint


@configclass
class BidirectionalTaskConfig:
    """What a bidirectional run trains, and on what its two tokenizers are.

    ``question_share``: how often a sample that carries questions trains image→text on one of them instead of a caption.
    ``caption_dropout``: how often text→image sees an empty caption, which guidance needs later. ``code_noise`` and
    ``word_noise``: the mean share of codes that drawing reads wrong, and of words that writing does, while what is to
    be predicted stays right; at most 0.5. A model that cannot trust what it drew so far leans more on the caption.
    ``written_captions``: image→text learns any of a sample's captions, or only its first (an exact name before key
    words); text→image draws from any of them either way. ``init_from``: a released model folder to start from
    (fine-tuning); its image tokenizer must be this run's, and its vocabulary too, or a part of it. ``other_codes``: it
    may have another image tokenizer of as many codes, from which this run's was trained further: codes then mean nearly
    what they meant.
    """

    kind: Literal["bidirectional"] = "bidirectional"
    model: BidirectionalConfig
    image_tokenizer: str
    vocabulary: str
    directions: Literal["both", "text_to_image", "image_to_text"] = "both"
    text_to_image_weight: float = 1.0
    image_to_text_weight: float = 1.0
    question_share: float = 0.3
    caption_dropout: float = 0.1
    code_noise: float = 0.0
    word_noise: float = 0.0
    written_captions: Literal["any", "first"] = "any"
    init_from: str | None = None
    other_codes: bool = False
    preview_captions: int = 4

    def __post_init__(self) -> None:
        for name in ("question_share", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, from 0 to 1")
        for name in ("code_noise", "word_noise"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is a mean share, from 0 to 0.5 (samples draw theirs from 0 to twice that)")


@dataclass
class BidirectionalBatch(Batch):
    """Ids, lengths and codes are int64; M is the text length, n = rows · columns.

    ``t2i_text`` [B, M], ``t2i_length`` [B]: the captions to draw from, padded, and their tokens.
    ``i2t_text`` [B, M], ``i2t_length`` [B], ``i2t_prefix`` [B]: what to write about the image, its tokens, and those of
    the question that it begins with (0 for a caption). ``i2t_read`` [B, M]: what is read while writing, where words are
    noised. ``code_noise`` [B, n]: the codes to read instead of the true ones, -1 where those stay, where codes are
    noised. ``image`` float32 [B, 3, H, W] in [-1, 1] or ``codes`` [B, n]; after ``prepare`` the codes are there.
    """

    t2i_text: Tensor | np.ndarray
    t2i_length: Tensor | np.ndarray
    i2t_text: Tensor | np.ndarray
    i2t_length: Tensor | np.ndarray
    i2t_prefix: Tensor | np.ndarray
    i2t_read: Tensor | np.ndarray | None = None
    code_noise: Tensor | np.ndarray | None = None
    image: Tensor | np.ndarray | None = None
    codes: Tensor | np.ndarray | None = None


class BidirectionalStep(nn.Layer):
    """The phase's module: a batch → L = w₁·L_t2i + w₂·L_i2t (paper 1, the mean NLL of each stream's targets)."""

    def __init__(self, model: BidirectionalTransformer, config: BidirectionalTaskConfig, unk_id: int | None = None):
        super().__init__()
        self.model, self.unk_id = model, unk_id
        self.directions = config.directions
        self.weights = (config.text_to_image_weight, config.image_to_text_weight)

    def forward(self, batch: BidirectionalBatch, step: int) -> StepOutput:
        return self.generation(batch, *self.hidden(batch))

    def generation(self, batch: BidirectionalBatch, drawn: Tensor | None, described: Tensor | None) -> StepOutput:
        """The loss of what :meth:`hidden` gave for ``batch``."""
        figures, losses = {}, []
        if drawn is not None:
            loss = text_to_image_loss(self.model, drawn, batch.codes)
            figures["loss_t2i"] = loss.detach()
            losses.append((self.weights[0], loss))
        if described is not None:
            loss = image_to_text_loss(self.model, described, batch.i2t_text, batch.i2t_length, batch.i2t_prefix,
                                      self.unk_id)
            figures["loss_i2t"] = loss.detach()
            losses.append((self.weights[1], loss))
        return StepOutput(weighted_sum(losses), figures)

    def hidden(self, batch: BidirectionalBatch) -> tuple[Tensor | None, Tensor | None]:
        """Hidden vectors of text→image [B, n, D] and image→text [B, M, D], None for a direction left out."""
        codes, drawn = batch.codes, read_codes(batch)
        source = (batch.t2i_text, batch.t2i_length)
        if self.directions == "text_to_image":
            return self.model.text_to_image_hidden(*source, drawn), None
        if self.directions == "image_to_text":
            return None, self.described(batch)
        return self.model.both_hidden(*source, codes, *written(batch), None if batch.code_noise is None else drawn)

    def described(self, batch: BidirectionalBatch) -> Tensor:
        """Hidden vectors of image→text alone [B, M, D]."""
        return self.model.image_to_text_hidden(batch.codes, *written(batch))


def written(batch: BidirectionalBatch) -> tuple[Tensor, Tensor, Tensor]:
    """What image→text reads of its text [B, M], its length [B] and its prefix [B]."""
    return batch.i2t_text if batch.i2t_read is None else batch.i2t_read, batch.i2t_length, batch.i2t_prefix


def read_codes(batch: BidirectionalBatch) -> Tensor:
    """The codes [B, n] that drawing reads: the true ones, but where they are noised."""
    noise = batch.code_noise
    return batch.codes if noise is None else paddle.where(noise >= 0, noise, batch.codes)


class BidirectionalTask:
    """Training of :class:`BidirectionalTransformer`, see :class:`vilg.engine.task.Task`.

    ``making`` is the context in which the model is made, unless it starts from another's weights. Raises ConfigError
    when the model's vocabulary, codebook or grid is not that of the tokenizers it is given.
    """

    batch_type = BidirectionalBatch
    reads_text = True

    def __init__(self, config: BidirectionalTaskConfig, sampling: SamplingConfig,
                 making: Callable[[], AbstractContextManager] = nullcontext):
        self.config, self.sampling = config, sampling
        self.words = WordPieceTokenizer.from_folder(config.vocabulary)
        self.image_tokenizer = release.read(config.image_tokenizer, "image_tokenizer")
        self.image_tokenizer.eval()
        self.least_side = self.image_tokenizer.image_size
        _check_fit(config.model, self.image_tokenizer, self.words)
        with nullcontext() if config.init_from else making():
            self.model, self.step = self._build()
        self.phases = [Phase("model", self.step, dict(self.model.named_parameters()))]
        self.captions_cut = self.words_read = self.words_unknown = 0

    def survey(self, samples: Iterable[Sample]) -> None:
        """Read the texts of the first samples before training, and warn of words that the vocabulary lacks: they train
        nothing."""
        report_unknown(self.words, self.config.vocabulary, samples)

    def _build(self) -> tuple[nn.Layer, nn.Layer]:
        """The model, with the weights it starts from, and the phase's module."""
        model = BidirectionalTransformer(self.config.model)
        if self.config.init_from:
            start_from(model, self.config.init_from, self.image_tokenizer, self.words, self.config.other_codes)
        return model, BidirectionalStep(model, self.config, self.words.unk_id)

    def view(self, sample: Sample, seed: int) -> Sample:
        """The sample with the largest centred square of its image, uint8 [S, S, 3] (ERNIE-ViLG, section 2.1)."""
        return sample if sample.image is None else replace(sample, image=centre_crop(sample.image, self.least_side))

    def collate(self, samples: list[Sample], seeds: list[int]) -> BidirectionalBatch:
        """One caption a sample for text→image, and for image→text that caption or one of its questions."""
        captions, written, questions, answers = [], [], [], []
        for sample, seed in zip(samples, seeds):
            rng = np.random.default_rng(seed)
            captions.append(sample.captions[rng.integers(len(sample.captions))] if sample.captions else "")
            written.append(sample.captions[0] if sample.captions and self.config.written_captions == "first"
                           else captions[-1])
            asks = bool(sample.questions) and (rng.random() < self.config.question_share or not sample.captions)
            question, answer = sample.questions[rng.integers(len(sample.questions))] if asks else (None, None)
            questions.append(question)
            answers.append(answer)
        length = self.config.model.text_length
        dropped = [np.random.default_rng([seed, 1]).random() < self.config.caption_dropout for seed in seeds]
        sources = self.words.encode_batch(["" if drop else text for text, drop in zip(captions, dropped)], length)
        targets = self.words.encode_batch(written, length)
        text, text_length, prefix = targets.ids, targets.length, np.zeros_like(targets.length)
        # A question of which the tokenizer keeps nothing, such as accents alone, leaves its row to the caption.
        rows = [row for row, question in enumerate(questions) if question is not None and self.words.reads(question)]
        if rows:
            asked = self.words.encode_questions([questions[r] for r in rows], [answers[r] for r in rows], length)
            text[rows], text_length[rows], prefix[rows] = asked.ids, asked.length, asked.prefix
        self.captions_cut += int((targets.cut > 0).sum())
        read = np.concatenate([sources.ids, text])  # [2B, M]
        self.words_read += int((~np.isin(read, [self.words.pad_id, self.words.cls_id, self.words.sep_id])).sum())
        self.words_unknown += int((read == self.words.unk_id).sum())
        batch = self.batch_type(sources.ids, sources.length, text, text_length, prefix, **self._images(samples))
        self._add_noise(batch, seeds)
        return batch

    def _add_noise(self, batch: BidirectionalBatch, seeds: list[int]) -> None:
        config = self.config
        if config.code_noise and config.directions != "image_to_text":
            model = config.model
            batch.code_noise = code_noise(seeds, model.rows * model.columns, model.codebook_size, config.code_noise)
        if config.word_noise and config.directions != "text_to_image":
            batch.i2t_read = word_noise(seeds, batch.i2t_text, batch.i2t_length, batch.i2t_prefix,
                                        self.words.ordinary_ids, config.word_noise)

    def _images(self, samples: list[Sample]) -> dict[str, np.ndarray]:
        if all(sample.codes is not None for sample in samples):
            return {"codes": np.stack([sample.codes for sample in samples])}
        if any(sample.image is None for sample in samples):
            raise DataError("data.sources: some hold codes and some images; encode them all with "
                            "tools/encode_images.py")
        return {"image": to_model(np.stack([sample.image for sample in samples]))}

    def prepare(self, batch: BidirectionalBatch) -> BidirectionalBatch:
        """Turn images into codes with the frozen image tokenizer, where the data did not bring codes along."""
        if batch.codes is not None:
            return batch
        with paddle.no_grad():
            return replace(batch, image=None, codes=self.image_tokenizer.encode(batch.image))

    def after_step(self, step: int) -> dict[str, float]:
        return {"captions_cut": float(self.captions_cut), "unknown_share": self.words_unknown / max(self.words_read, 1)}

    def tokens(self, batch: BidirectionalBatch) -> int:
        streams = 2 if self.config.directions == "both" else 1
        layout = self.config.model
        return streams * batch.t2i_text.shape[0] * (layout.text_length + layout.rows * layout.columns)

    def preview(self, batch: BidirectionalBatch) -> Iterator[LogPicture]:
        """Draw the first captions of the batch, and describe its first images."""
        few = batch.map(lambda value: value[:self.config.preview_captions])
        count, captions, codes = few.codes.shape[0], few.t2i_text, few.codes
        self.model.eval()
        with paddle.no_grad():
            if self.config.directions != "image_to_text":
                for row, picture in enumerate(self._decode(self._drawn(captions, few.t2i_length))):
                    yield LogPicture(f"drawn_{row}", picture, self.words.decode(captions[row].numpy().tolist()))
            if self.config.directions != "text_to_image":
                prompts = paddle.full([count, 1], self.words.cls_id, dtype="int64")
                texts = generate_text(self.model, self._read(few), prompts, paddle.zeros([count], dtype="int64"),
                                      end_id=self.words.sep_id, never=self.words.unk_id)
                for row, (picture, ids) in enumerate(zip(self._decode(codes), texts.numpy().tolist())):
                    yield LogPicture(f"described_{row}", picture, self.words.decode(ids))
        self.model.train()

    def _drawn(self, text: Tensor, length: Tensor) -> Tensor:
        """Codes [P, n] drawn for texts."""
        return generate_images(self.model, text, length, sampling=self.sampling).codes

    def _read(self, batch: BidirectionalBatch) -> Tensor:
        """What image→text reads of a batch's images."""
        return batch.codes

    def _decode(self, codes: Tensor) -> list[np.ndarray]:
        return [from_model(image) for image in self.image_tokenizer.decode(codes).numpy()]

    def export(self, directory: str, ema: dict[str, np.ndarray] | None = None) -> None:
        release.write(directory, "bidirectional", self.released(), ema)

    def released(self) -> ReleasedModel:
        """What is exported."""
        return ReleasedModel(self.model, self.image_tokenizer, self.words, self.sampling)

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def fingerprints(self) -> dict[str, str]:
        return {"image_tokenizer": fingerprint(self.image_tokenizer.state_dict()),
                "vocabulary": self.words.fingerprint()}


def _check_fit(model: BidirectionalConfig, image_tokenizer: ImageTokenizer, words: WordPieceTokenizer) -> None:
    for key, ours, theirs, owner in (
            ("vocab_size", model.vocab_size, words.vocab_size, "the vocabulary"),
            ("codebook_size", model.codebook_size, image_tokenizer.codebook_size, "the image tokenizer"),
            ("rows", model.rows, image_tokenizer.grid[0], "the image tokenizer"),
            ("columns", model.columns, image_tokenizer.grid[1], "the image tokenizer")):
        if ours != theirs:
            raise ConfigError(f"task.model.{key}: is {ours}, but {owner} has {theirs}; set task.model.{key}={theirs}")
