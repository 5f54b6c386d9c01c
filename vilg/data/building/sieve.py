"""The rules that look at one sample at a time, over a batch of rows: what is dropped and why, and what is left."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vilg.data.building.config import BuildConfig
from vilg.data.building.readers import Row
from vilg.data.building.translation import Translation
from vilg.data.filtering.pictures import PictureRules
from vilg.data.filtering.rules import SimilarityFilter
from vilg.data.filtering.texts import Reason, TextRules


class Encoder(Protocol):
    """What a dual encoder offers to a build, see :class:`vilg.app.dual_encoder.Matcher`."""

    def embed_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors [N, D] of images."""

    def paired_similarity(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """How well each text fits the image in its place, [N] in 0–1."""

    def calibrated(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines as similarities; refuses where the model is not calibrated."""


MakeEncoder = Callable[[str], Encoder]


@dataclass
class Kept:
    """A sample that is still in, with the captions that it has left by their place among its own; ``order`` is its
    place among all."""

    order: int
    row: Row
    captions: dict[int, str]
    image: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Drop:
    """What a rule took: a caption (``text``), or, where that is None, a whole sample; ``sample`` says whether the
    sample is gone with it."""

    order: int
    key: str
    source: str
    rule: str
    value: str
    text: str | None = None
    place: int = -1
    sample: bool = True


class Sieve:
    """The rules of a config; a model is made when the first batch wants it, and kept. Raises DataError for rules that
    cannot be applied."""

    def __init__(self, config: BuildConfig, make_encoder: MakeEncoder | None):
        self.config = config
        self.pictures = PictureRules(config.rules.pictures)
        self.texts = TextRules(config.rules.texts)
        self.translation = Translation(config.translate) if config.translate else None
        self.encoder, self.similarity = None, None
        if config.rules.similarity:
            self.encoder = make_encoder(config.rules.similarity.model)
            self.encoder.calibrated(np.zeros([1]))
            self.similarity = SimilarityFilter(self.encoder.paired_similarity, config.rules.similarity.more_than)

    def sift(self, rows: list[Row], first: int) -> tuple[list[Kept], list[Drop]]:
        """Rows whose orders begin at ``first`` → the samples that all rules leave, and what they take."""
        drops: list[Drop] = []
        kept = [sample for number, row in enumerate(rows) if (sample := self._look(row, first + number, drops))]
        if self.translation:
            self._translate(kept, drops)
            kept = [sample for sample in kept if sample.captions]
        for sample in kept:
            reasons = {place: self.texts.reason(text) for place, text in sample.captions.items()}
            drops += take(sample, {place: reason for place, reason in reasons.items() if reason})
        kept = [sample for sample in kept if sample.captions]
        if self.similarity and kept:
            pairs = [(sample, place) for sample in kept for place in sample.captions]
            reasons = self.similarity.reasons([sample.captions[place] for sample, place in pairs],
                                              [sample.image for sample, _ in pairs])
            for sample in kept:
                drops += take(sample, {place: reason for (owner, place), reason in zip(pairs, reasons)
                                       if owner is sample and reason})
            kept = [sample for sample in kept if sample.captions]
        return kept, sorted(drops, key=lambda drop: drop.order)  # so that nothing hangs on the size of a batch

    def _look(self, row: Row, order: int, drops: list[Drop]) -> Kept | None:
        """The sample of a row, unless it cannot be used or a rule of images is against it."""
        problem = row.problem or (None if row.said.captions else "no caption")
        found = Reason("damaged", problem) if problem else None
        image = None
        if found is None and self.config.images:
            looked = self.pictures.look(row.image, row.name)
            found, image = (looked, None) if isinstance(looked, Reason) else (None, looked)
        if found is not None:
            drops.append(Drop(order, row.key, row.name, *found))
            return None
        captions = dict(enumerate(dict.fromkeys(row.said.captions)))
        return Kept(order, row, captions, image, row.said.facts)

    def _translate(self, kept: list[Kept], drops: list[Drop]) -> None:
        pairs = [(sample, place) for sample in kept for place in sample.captions]
        sources = [sample.captions[place] for sample, place in pairs]
        results = self.translation(sources)
        for sample in kept:
            own = [(place, source, result) for (owner, place), source, result in zip(pairs, sources, results)
                   if owner is sample]
            good = {place: source for place, source, result in own if not isinstance(result, Reason)}
            drops += take(sample, {place: result for place, _, result in own if isinstance(result, Reason)})
            sample.captions = {place: result for place, _, result in own if not isinstance(result, Reason)}
            sample.facts = sample.facts | {"source_captions": list(good.values())}


def take(sample: Kept, reasons: dict[int, Reason]) -> list[Drop]:
    """Take captions from a sample, by their places; the last of them takes the sample with it."""
    drops = [Drop(sample.order, sample.row.key, sample.row.name, reason.rule, reason.value, sample.captions.pop(place),
                  place, False) for place, reason in sorted(reasons.items())]
    if drops and not sample.captions:
        drops[-1].sample = True
    return drops
