"""Sequence-level training of a two-level model (Huang et al., ACM MM 2021): whole captions by self-critical CIDEr,
whole images by the soft decoding path and a differentiable judge."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor

from vilg.config import configclass
from vilg.data.sample import Sample
from vilg.engine.task import StepOutput
from vilg.errors import DataError
from vilg.generation.autoregressive import GREEDY, generate_text
from vilg.generation.mask_predict import predict_softly
from vilg.generation.sampling import MaskPredictConfig, SamplingConfig
from vilg.losses.self_critical import CaptionReward, self_critical_loss, up_to_end
from vilg.losses.sequence import masked_image_loss, text_nll
from vilg.models.two_level.model import TwoLevelTransformer
from vilg.tasks.judges import Judge, freeze, read_judge
from vilg.tasks.two_level import TwoLevelBatch, TwoLevelStep, TwoLevelTask, TwoLevelTaskConfig
from vilg.tokenizers.image.quantize import gumbel_softmax
from vilg.weights.files import fingerprint

Turn = Literal["captions", "images", "masked"]


@configclass
class SequenceLevelTaskConfig(TwoLevelTaskConfig):
    """What a sequence-level run trains: one of ``turns`` a step, over and over (the paper: captions, images, masked).

    captions: self-critical CIDEr-D, whose document frequencies are those of ``corpus`` samples of the training data.
    images: drawn in the sampling's steps with gradients, relaxed by Gumbel noise at ``relaxation`` (the paper's τ = 1),
    decoded, and scored by ``judge``: the folder of a dual encoder, or of a two-level model, whose P(text | image) it
    is; ``judge_weight`` scales that loss. masked: masked codes as in token-level training. ``init_from`` is a model
    that token-level training made.
    """

    kind: Literal["sequence_level"] = "sequence_level"
    turns: list[Turn] = field(default_factory=lambda: ["captions", "images", "masked"])
    judge: str | None = None
    judge_weight: float = 0.01
    relaxation: float = 1.0
    corpus: int = 2000

    def __post_init__(self) -> None:
        TwoLevelTaskConfig.__post_init__(self)
        if not self.turns:
            raise ValueError("turns is empty; name at least one of captions, images and masked")
        if ("images" in self.turns) != (self.judge is not None):
            raise ValueError("judge names who scores the images of turns: images, and is left out without that turn")
        if self.relaxation <= 0 or self.judge_weight <= 0:
            raise ValueError(f"relaxation and judge_weight are above 0, not {self.relaxation} and {self.judge_weight}")
        if self.corpus < 2:
            raise ValueError(f"corpus is a number of captioned samples, at least 2, not {self.corpus}")
        if self.image_to_text_every or self.directions != "both":
            raise ValueError("image_to_text_every and directions say what token-level training does; here turns does")


@dataclass
class SequenceLevelBatch(TwoLevelBatch):
    """A two-level batch, and: ``references`` int64 [B, R, M], the captions of every image, padded with rows of 0;
    ``judged`` int64 [B, L], the caption to draw from as the judge reads it; ``seeds`` int64 [B]."""

    references: Tensor | np.ndarray | None = None
    judged: Tensor | np.ndarray | None = None
    seeds: Tensor | np.ndarray | None = None


class SequenceLevelStep(TwoLevelStep):
    """The phase's module: a batch → the loss of the step's turn."""

    config: SequenceLevelTaskConfig

    def __init__(self, model: TwoLevelTransformer, config: SequenceLevelTaskConfig, sampling: MaskPredictConfig,
                 words, judge: Judge | None):
        super().__init__(model, config, words.unk_id)
        self.words, self.sampling, self._judge = words, sampling, [judge]  # a list: no sublayer
        self.reward: CaptionReward | None = None

    def forward(self, batch: SequenceLevelBatch, step: int) -> StepOutput:
        return {"captions": self._captions, "images": self._images, "masked": self._masked}[
            self.config.turns[step % len(self.config.turns)]](batch)

    def _captions(self, batch: SequenceLevelBatch) -> StepOutput:
        if self.reward is None:
            raise DataError("turns: captions needs the document frequencies of a corpus; call read_corpus first")
        sampled = self.write(batch, SamplingConfig())
        end = self.words.sep_id
        references = [[up_to_end(row[None, 1:], end)[0] for row in given if row[0] == self.words.cls_id]
                      for given in batch.references.numpy()]
        reward = self.reward(up_to_end(sampled, end), references)
        baseline = self.reward(up_to_end(self.write(batch, GREEDY), end), references)
        text, length = self._text(sampled)
        prefix = paddle.zeros_like(length)
        hidden = self.model.image_to_text_hidden(batch.read, text, length, prefix)
        loss = self_critical_loss(text_nll(self.model, hidden, text, length, prefix), reward, baseline)
        return StepOutput(loss, {"reward": paddle.to_tensor(reward.mean(), "float32"),
                                 "baseline": paddle.to_tensor(baseline.mean(), "float32")})

    def write(self, batch: SequenceLevelBatch, sampling: SamplingConfig) -> np.ndarray:
        """Captions of the batch's images, without gradient: int64 [B, T], the tokens behind [CLS]."""
        count = batch.seeds.shape[0]
        prompt = paddle.full([count, 1], self.words.cls_id, "int64")
        return generate_text(self.model, batch.read, prompt, paddle.zeros([count], "int64"), sampling,
                             seeds=batch.seeds.numpy().tolist(), end_id=self.words.sep_id,
                             never=self.words.unk_id).numpy()

    def _text(self, written: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] behind [CLS] → text [B, M] and its length [B]."""
        rows = [[self.words.cls_id, *row] for row in up_to_end(written, self.words.sep_id)]
        text = np.zeros([len(rows), self.model.layout.text], "int64")
        for place, row in enumerate(rows):
            text[place, :len(row)] = row
        return paddle.to_tensor(text), paddle.to_tensor(np.array([len(row) for row in rows], "int64"))

    def _images(self, batch: SequenceLevelBatch) -> StepOutput:
        logits, _ = predict_softly(self.model, batch.t2i_text, batch.t2i_length, batch.seeds.numpy().tolist(),
                                   self.sampling)
        judge = self._judge[0]
        scores = judge.score(gumbel_softmax(logits, self.config.relaxation, hard=False), batch.judged)
        told = (batch.t2i_length > 2).astype("float32")  # an empty caption, [CLS] [SEP], has nothing to fit
        told = told / paddle.clip(told.sum(), min=1)
        return StepOutput(self.config.judge_weight * (judge.loss(scores) * told).sum(),
                          {"judge": (scores * told).sum().detach()})

    def _masked(self, batch: SequenceLevelBatch) -> StepOutput:
        hidden = self.model.text_to_image_hidden(batch.t2i_text, batch.t2i_length, batch.codes, batch.masked)
        loss = masked_image_loss(self.model, hidden, batch.codes, batch.masked, self.config.label_smoothing)
        return StepOutput(loss, {"loss_t2i": loss.detach()})


class SequenceLevelTask(TwoLevelTask):
    """Sequence-level training of :class:`TwoLevelTransformer`. Raises ConfigError as a two-level run does, and for a
    judge that cannot judge."""

    batch_type = SequenceLevelBatch
    config: SequenceLevelTaskConfig

    def _build(self) -> tuple[TwoLevelTransformer, SequenceLevelStep]:
        model, _ = super()._build()
        self.judge = read_judge(self.config.judge, self.image_tokenizer) if self.config.judge else None
        freeze(self.image_tokenizer)
        return model, SequenceLevelStep(model, self.config, self.sampling, self.words, self.judge)

    def read_corpus(self, captions: Iterable[Sequence[str]]) -> None:
        """Take the document frequencies of the reward from the captions of training images. Raises DataError when
        fewer than two have any."""
        if "captions" in self.config.turns:
            self.step.reward = CaptionReward([self._encoded(given) for given in captions])

    def collate(self, samples: list[Sample], seeds: list[int]) -> SequenceLevelBatch:
        """A two-level batch with what rewards and judges read. Raises DataError for an image without captions where
        captions are trained."""
        batch, length = super().collate(samples, seeds), self.config.model.text_length
        batch.seeds = np.array(seeds, "int64")
        if "captions" in self.config.turns:
            bare = [sample.key for sample in samples if not sample.captions]
            if bare:
                raise DataError(f"data.sources: {bare[0]} has no captions, and turns: captions compares with them")
            most = max(len(sample.captions) for sample in samples)
            batch.references = np.zeros([len(samples), most, length], "int64")
            for row, sample in enumerate(samples):
                batch.references[row, :len(sample.captions)] = self.words.encode_batch(sample.captions, length).ids
        if self.judge is not None:
            batch.judged = self.judge.read([self.words.decode(row.tolist()) for row in batch.t2i_text])
        return batch

    def _encoded(self, captions: Sequence[str]) -> list[list[int]]:
        if not captions:
            return []
        ids = self.words.encode_batch(captions, self.config.model.text_length).ids
        return up_to_end(ids[:, 1:], self.words.sep_id)

    def fingerprints(self) -> dict[str, str]:
        judge = {} if self.judge is None else {"judge": fingerprint(self.judge.model.state_dict())}
        return super().fingerprints() | judge
