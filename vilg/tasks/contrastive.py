"""Multi-view contrastive training of a dual encoder (ERNIE-ViL 2.0, arXiv 2209.15270): images, captions, tags."""
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from vilg import release
from vilg.config import configclass
from vilg.data.augment import AugmentConfig, augment
from vilg.data.sample import BrokenSample, Sample
from vilg.data.twins import TWIN
from vilg.engine.task import Batch, LogPicture, Phase, StepOutput
from vilg.errors import ConfigError, DataError
from vilg.losses.contrastive import ContrastiveConfig, Views, multi_view_loss
from vilg.models.dual_encoder.model import DualEncoder, DualEncoderConfig
from vilg.models.dual_encoder.preprocess import PreprocessConfig, normalise
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder, start_dual_encoder
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer


@configclass
class ContrastiveTaskConfig:
    """What a dual encoder trains on: which views it compares, and how they are made.

    ``other_image``: the second image of image–image is the same one, augmented again, or where the data know one a twin
    (the concept in another style). ``other_caption``: the second text of text–text is the same caption under another
    dropout mask, or another caption of the sample. ``tags_prefix`` stands before the tags, which are shuffled;
    ``most_tags`` of them are taken. ``chunk``: images and texts that a tower computes at once, forgetting activations
    until backward (0: all of them, remembered); a batch may then be as large as its vectors. ``init_from``: a released
    folder to start from. ``text_length`` counts [CLS] and [SEP].
    """

    kind: Literal["contrastive"] = "contrastive"
    model: DualEncoderConfig
    vocabulary: str
    text_length: int = 48
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    other_image: Literal["twin", "augmented"] = "twin"
    other_caption: Literal["dropout", "written"] = "dropout"
    tags_prefix: str = "图里有"
    most_tags: int = 8
    chunk: int = 0
    init_from: str | None = None
    preview_images: int = 4

    def __post_init__(self) -> None:
        text = self.model.text
        if not 2 <= self.text_length <= text.positions:
            raise ValueError(f"text_length must be from 2 to model.text.positions ({text.positions}), not "
                             f"{self.text_length}")
        if self.loss.text_text and self.other_caption == "dropout" and not text.dropout_rate:
            raise ValueError("loss.text_text compares a caption with itself under another dropout mask, and the text "
                             "tower has none; set model.text.dropout above 0 and model.text.frozen: false, "
                             "other_caption: written, or loss.text_text: 0")
        if self.chunk < 0 or self.most_tags < 1 or self.preview_images < 0:
            raise ValueError("chunk and preview_images must not be negative, most_tags at least 1")
        if self.model.image.frozen and self.model.text.frozen and self.model.projection is None:
            raise ValueError("model.image.frozen and model.text.frozen leave nothing to train without a projection")


@dataclass
class ContrastiveView:
    """Two views uint8 [S, S, 3] of an image, and what is said about it; "" where there is no second text, no tags.

    ``same``: what samples of the same thing share.
    """

    image: np.ndarray
    other_image: np.ndarray | None
    caption: str
    other_caption: str
    tags: str
    same: str


@dataclass
class ContrastiveBatch(Batch):
    """Images are pixels float32 [B, 3, S, S] as the model reads them, texts ids int64 [B, L]; those of views that have
    no weight are None. ``tagged`` int64 [B]: 1 where there are tags. ``same`` int64 [B, 3]: hashes of what is shown,
    of the caption and of the tags; samples that share one are no negatives of each other."""

    image: Tensor | np.ndarray
    caption: Tensor | np.ndarray
    tagged: Tensor | np.ndarray
    same: Tensor | np.ndarray
    other_image: Tensor | np.ndarray | None = None
    other_caption: Tensor | np.ndarray | None = None
    tags: Tensor | np.ndarray | None = None


class ContrastiveStep(nn.Layer):
    """The phase's module: a batch → the weighted InfoNCE of its views, over the rows of all ranks.

    ``gather``, when set, concatenates a tensor over ranks, with its gradient; ``forgetting`` computes a part of a
    tower's batch and forgets its activations until backward. The engine sets both.
    """

    def __init__(self, model: DualEncoder, config: ContrastiveTaskConfig):
        super().__init__()
        self.model, self.loss, self.chunk = model, config.loss, config.chunk
        self.gather: Callable[[Tensor], Tensor] | None = None
        self.forgetting: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None

    def forward(self, batch: ContrastiveBatch, step: int) -> StepOutput:
        images = self._encode(self.model.encode_image, {"image": batch.image, "other_image": batch.other_image})
        texts = self._encode(self.model.encode_text, {"caption": batch.caption, "other_caption": batch.other_caption,
                                                      "tags": batch.tags})
        tagged = paddle.nonzero(self._of_all(batch.tagged)).reshape([-1]) if batch.tags is not None else None
        views = Views(**images, **texts, tagged=tagged, ids=self._of_all(batch.same))
        return StepOutput(*multi_view_loss(views, self.model.temperature(), self.loss))

    def _encode(self, encode: Callable[[Tensor], Tensor], inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Every input that is there as vectors [N, D] of all ranks, by the same name; one pass through the tower."""
        there = {name: value for name, value in inputs.items() if value is not None}
        together = paddle.concat(list(there.values()))  # [views · B, ...]
        rows = together.shape[0]
        if self.chunk and self.chunk < rows and self.forgetting is not None:
            vectors = paddle.concat([self.forgetting(encode, together[start:start + self.chunk])
                                     for start in range(0, rows, self.chunk)])
        else:
            vectors = encode(together)
        parts = paddle.split(vectors, len(there)) if len(there) > 1 else [vectors]
        return {name: self._of_all(part) for name, part in zip(there, parts)}

    def _of_all(self, tensor: Tensor) -> Tensor:
        return tensor if self.gather is None else self.gather(tensor)


class ContrastiveTask:
    """Training of :class:`DualEncoder`, see :class:`vilg.engine.task.Task`.

    Raises ConfigError when the text tower does not fit the vocabulary, CheckpointError when ``init_from`` does not fit.
    """

    reads_text = True

    def __init__(self, config: ContrastiveTaskConfig):
        self.config = config
        self.words = WordPieceTokenizer.from_folder(config.vocabulary)
        _check_fit(config, self.words)
        self.least_side = config.model.image.image_size
        self.model = DualEncoder(config.model)
        if config.init_from:
            start_dual_encoder(self.model, config.init_from, self.words)
        self.step = ContrastiveStep(self.model, config)
        # What takes no gradient needs neither optimizer states nor an average, and is not exchanged among ranks.
        trained = {name: value for name, value in self.model.named_parameters() if not value.stop_gradient}
        self.phases = [Phase("model", self.step, trained)]
        self.texts_cut = 0

    def view(self, sample: Sample, seed: int) -> ContrastiveView:
        """Two random views of the image, one or two captions, and the tags. Raises DataError for codes."""
        if sample.image is None:
            raise DataError(f"{sample.key}: holds codes, and a dual encoder trains on images; name the data themselves")
        config, rng = self.config, np.random.default_rng([seed, 2])
        first = int(rng.integers(len(sample.captions)))
        caption, second = sample.captions[first], ""
        if config.loss.text_text:
            others = sample.captions[:first] + sample.captions[first + 1:]
            written = config.other_caption == "written" and others
            second = others[int(rng.integers(len(others)))] if written else caption
        tags = self._tags(sample, rng) if config.loss.image_tags else ""
        texts = [caption, second, tags]
        size, other = self.least_side, None
        image = augment(sample.image, size, texts, config.augment, rng)
        if config.loss.image_image:
            other = augment(self._second_image(sample, seed), size, texts, config.augment, rng)
        return ContrastiveView(image, other, caption, second, tags, same_of(sample))

    def _second_image(self, sample: Sample, seed: int) -> np.ndarray:
        twin = sample.facts.get(TWIN) if self.config.other_image == "twin" else None
        try:
            found = None if twin is None else twin.sample(seed).image
        except BrokenSample:
            found = None
        return sample.image if found is None else found

    def _tags(self, sample: Sample, rng: np.random.Generator) -> str:
        """The tags in a random order behind their prefix, "" where there are none."""
        tags = sample.facts.get("tags")
        tags = [tag for tag in tags if isinstance(tag, str) and tag] if isinstance(tags, list) else []
        if not tags:
            return ""
        return self.config.tags_prefix + "、".join(tags[i] for i in rng.permutation(len(tags))[:self.config.most_tags])

    def collate(self, views: list[ContrastiveView], seeds: list[int]) -> ContrastiveBatch:
        """Pixels and ids of the views, and what tells equal ones."""
        weights = self.config.loss
        texts = {"caption": [view.caption for view in views]}
        if weights.text_text:
            texts["other_caption"] = [view.other_caption for view in views]
        if weights.image_tags:
            texts["tags"] = [view.tags for view in views]
        encoded = self.words.encode_batch([text for each in texts.values() for text in each], self.config.text_length)
        self.texts_cut += int((encoded.cut > 0).sum())
        ids = encoded.ids[:, :encoded.length.max()]  # nobody reads the padding behind the longest
        rows = {name: ids[number * len(views):(number + 1) * len(views)] for number, name in enumerate(texts)}
        images = {"image": self._pixels([view.image for view in views])}
        if weights.image_image:
            images["other_image"] = self._pixels([view.other_image for view in views])
        same = [[_hash("thing", view.same), _hash("text", view.caption),
                 _hash("tags", view.tags or f"none {number} {seed}")]
                for number, (view, seed) in enumerate(zip(views, seeds))]
        return ContrastiveBatch(**images, **rows, same=np.array(same, "int64"),
                                tagged=np.array([bool(view.tags) for view in views], "int64"))

    def _pixels(self, images: list[np.ndarray]) -> np.ndarray:
        return normalise(np.stack(images), self.config.preprocess)

    def prepare(self, batch: ContrastiveBatch) -> ContrastiveBatch:
        return batch

    def after_step(self, step: int) -> dict[str, float]:
        """Keep the temperature in its range; a factor that drifts away makes every later step useless."""
        self.model.temperature.clamp()
        return {"texts_cut": float(self.texts_cut)}

    def tokens(self, batch: ContrastiveBatch) -> int:
        return batch.image.shape[0] * (1 + self.config.model.image.patches)

    def preview(self, batch: ContrastiveBatch) -> Iterator[LogPicture]:
        """The batch's first images, each with the caption of the batch that it is nearest to."""
        self.model.eval()
        with paddle.no_grad():
            images = self.model.encode_image(batch.image[:self.config.preview_images])
            nearest = (images @ self.model.encode_text(batch.caption).t()).argmax(1).numpy().tolist()
        self.model.train()
        pixels, preprocess = batch.image.numpy(), self.config.preprocess
        for row, caption in enumerate(nearest):
            levels = pixels[row].transpose(1, 2, 0) * np.array(preprocess.std) + np.array(preprocess.mean)
            yield LogPicture(f"nearest_{row}", np.clip(np.rint(levels * 255), 0, 255).astype("uint8"),
                             self.words.decode(batch.caption[caption].numpy().tolist()))

    def export(self, directory: str, average: dict[str, np.ndarray] | None = None) -> None:
        released = ReleasedDualEncoder(self.model, self.words, self.config.preprocess, self.config.text_length)
        release.write(directory, "dual_encoder", released, average)

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def fingerprints(self) -> dict[str, str]:
        return {"vocabulary": self.words.fingerprint()}


def same_of(sample: Sample) -> str:
    """What samples of the same thing share: a concept, a scene's objects in their cells; else the sample's own key."""
    facts = sample.facts
    if facts.get("concept") is not None:
        return f"concept {facts['concept']}"
    return f"scene {facts['scene'].facts()}" if "scene" in facts else f"key {sample.key}"


def _hash(kind: str, text: str) -> int:
    digest = hashlib.blake2b(f"{kind}\n{text}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _check_fit(config: ContrastiveTaskConfig, words: WordPieceTokenizer) -> None:
    text = config.model.text
    if text.vocab_size < words.vocab_size or text.pad_id != words.pad_id:
        raise ConfigError(f"task.model.text.vocab_size: is {text.vocab_size} with pad_id {text.pad_id}, but the "
                          f"vocabulary {config.vocabulary} has {words.vocab_size} tokens and pads with {words.pad_id}; "
                          f"set task.model.text.vocab_size={words.vocab_size} and pad_id={words.pad_id}")
