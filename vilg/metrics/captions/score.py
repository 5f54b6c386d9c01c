"""All scores of a set of captions at once, with a signature that says what was computed.

The scores are those of coco-caption (BLEU, METEOR, ROUGE-L, CIDEr), which ERNIE-ViLG's table of captioning uses
(arXiv 2112.15283, section 4); SPICE reads English only and is left out.
"""
import hashlib
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vilg.errors import DataError
from vilg.metrics.captions import bleu, cider, meteor, rouge
from vilg.metrics.captions.cut import Cut, find_cut, refuse_uncut
from vilg.metrics.captions.ngrams import count_ngrams

log = logging.getLogger("vilg.metrics")
NAMED = 3
"""How many images a refusal names."""
NOTHING = 1e-12
"""BLEU-1 below this is that of a set without a match."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set, from 0 to 1 (CIDEr: to 10), and of each image, in the order of ``images``: [N] each.

    ``cider_d`` is what coco-caption and papers call CIDEr; ``cider_plain`` has neither clipping nor length penalty.
    ``empty`` counts hypotheses without a word, which score 0.
    """

    bleu: tuple[float, float, float, float]
    meteor: float
    rouge_l: float
    cider_d: float
    cider_plain: float
    empty: int
    signature: str
    images: tuple[Hashable, ...]
    each: dict[str, np.ndarray]

    def figures(self) -> dict[str, float | int | str]:
        """The set's scores as one flat mapping."""
        return {**{f"bleu_{length}": score for length, score in enumerate(self.bleu, 1)}, "meteor": self.meteor,
                "rouge_l": self.rouge_l, "cider_d": self.cider_d, "cider_plain": self.cider_plain,
                "images": len(self.images), "empty_hypotheses": self.empty, "signature": self.signature}


def score_captions(references: Mapping[Hashable, Sequence[str]],
                   hypotheses: Mapping[Hashable, str] | Iterable[tuple[Hashable, str]], cut: str) -> CaptionScores:
    """Score one hypothesis an image against its references; ``cut`` is a name of ``vilg.metrics.captions.cut.CUTS``.

    Raises DataError, naming images, when an image has no hypothesis, two, or none of its references is given; when an
    image has no reference or an empty one; when text comes uncut where words are wanted; for fewer than two images.
    """
    protocol = find_cut(cut)
    said = _once(hypotheses)
    _check(references, said, protocol)
    images = tuple(references)
    words = [protocol.hypothesis(said[image]) for image in images]
    wanted = [[protocol.reference(text) for text in references[image]] for image in images]
    empty = [str(image) for image, texts in zip(images, wanted) if not all(texts)]
    if empty:
        raise DataError(f"a reference of {_some(empty)} has no word to score against; take it out of the references")
    counts, wanted_counts = [count_ngrams(own) for own in words], [[*map(count_ngrams, texts)] for texts in wanted]
    bleus, each_bleu = bleu.bleu(counts, wanted_counts)
    if bleus[0] < NOTHING:
        log.warning("no word of any hypothesis is in its references, so all scores are 0: %s says %r and its reference "
                    "%r; are both in one language, cut and encoding?", images[0], said[images[0]],
                    references[images[0]][0])
    consensus = cider.cider(counts, wanted_counts)
    meteor_all, each_meteor = meteor.meteor([" ".join(own) for own in words],
                                            [[" ".join(text) for text in texts] for texts in wanted])
    each = {**{f"bleu_{length}": column for length, column in enumerate(each_bleu.T, 1)}, "meteor": each_meteor,
            "rouge_l": rouge.rouge_l(words, wanted), "cider_d": consensus.clipped, "cider_plain": consensus.plain}
    return CaptionScores(
        bleu=tuple(float(score) for score in bleus), meteor=meteor_all, rouge_l=float(each["rouge_l"].mean()),
        cider_d=float(consensus.clipped.mean()), cider_plain=float(consensus.plain.mean()),
        empty=sum(not own for own in words), signature=_signature(protocol, wanted, images), images=images, each=each)


def _once(hypotheses: Mapping[Hashable, str] | Iterable[tuple[Hashable, str]]) -> dict[Hashable, str]:
    pairs = list(hypotheses.items() if isinstance(hypotheses, Mapping) else hypotheses)
    said = dict(pairs)
    if len(said) < len(pairs):
        seen: set[Hashable] = set()
        twice = [str(image) for image, _ in pairs if image in seen or seen.add(image)]
        raise DataError(f"the hypotheses have more than one caption for {_some(twice)}; keep one caption an image")
    return said


def _check(references: Mapping[Hashable, Sequence[str]], said: Mapping[Hashable, str], protocol: Cut) -> None:
    missing = [str(image) for image in references if image not in said]
    if missing:
        raise DataError(f"the hypotheses lack {_some(missing)} of {len(references)} images with references; caption "
                        "all of them, or score against the references of those that were captioned")
    unknown = [str(image) for image in said if image not in references]
    if unknown:
        raise DataError(f"the hypotheses caption {_some(unknown)}, of which there are no references; use those "
                        "of the same split, with the same names of images")
    for image, texts in references.items():
        if isinstance(texts, str) or not all(isinstance(text, str) for text in (said[image], *texts)):
            raise DataError(f"{image}: captions are text, one hypothesis and a list of references an image")
        if not texts:
            raise DataError(f"{image}: has no reference to score against; leave the image out")
    if protocol.reference_comes_cut:
        refuse_uncut(((str(image), text) for image, texts in references.items() for text in texts), "the reference")
    if protocol.hypothesis_comes_cut:
        refuse_uncut(((str(image), said[image]) for image in references), "the hypothesis")


def _signature(protocol: Cut, wanted: list[list[list[str]]], images: tuple[Hashable, ...]) -> str:
    digest = hashlib.sha256()
    for image, texts in sorted((str(image), texts) for image, texts in zip(images, wanted)):
        digest.update("\n".join([image, *(" ".join(text) for text in texts), ""]).encode())
    count = sum(map(len, wanted))
    return "; ".join([f"cut {protocol.signature}",
                      f"{len(images)} images, {count} references {digest.hexdigest()[:12]}",
                      bleu.SIGNATURE, meteor.SIGNATURE, rouge.SIGNATURE, cider.SIGNATURE])


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
