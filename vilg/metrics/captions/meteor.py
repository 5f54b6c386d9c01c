"""METEOR 1.5 of Chinese captions without Java (Denkowski and Lavie 2014, as coco-caption runs it: ``-l en -norm``).

That program takes Chinese apart into characters, whatever its words were, and none of its English tools (stems,
synonyms, paraphrases) knows a Chinese character: what remains is exact matching, which is all that is done here. Words
in Latin letters are matched exactly as well, where the program would also match "dog" with "dogs"; and a letter or sign
that English counts for less ("a", "the", a comma) counts in full.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from vilg.metrics.captions.cut import characters

ALPHA, BETA, GAMMA = 0.85, 0.2, 0.6
BEAM = 40
SIGNATURE = f"meteor 1.5 en exact, α {ALPHA} β {BETA} γ {GAMMA} beam {BEAM}"

# A state's figures stand in one integer, so that one comparison ranks them: more matches, then fewer chunks, then less
# distance.
_MATCH_BITS, _CHUNK_BITS = 40, 20
_MATCH, _CHUNK = -(1 << _MATCH_BITS), 1 << _CHUNK_BITS
_CLOSED = -1


@dataclass(frozen=True)
class Alignment:
    """How a hypothesis lies on a reference: lengths of both, words matched, and runs of neighbours among them."""

    hypothesis: int
    reference: int
    matches: int
    chunks: int

    @property
    def perfect(self) -> bool:
        """Are the two sentences the same?"""
        return self.matches == self.hypothesis == self.reference and self.chunks == 1

    def score(self) -> float:
        """METEOR of this pair, from 0 to 1."""
        return _score(self.hypothesis, self.reference, self.matches, 0 if self.perfect else self.chunks)


def align(hypothesis: Sequence[str], reference: Sequence[str]) -> Alignment:
    """The alignment that METEOR's beam search finds: most matches, then fewest chunks, then least distance."""
    places: dict[str, list[int]] = {}
    for position, word in enumerate(hypothesis):
        places.setdefault(word, []).append(position)
    choices = [places.get(word, []) for word in reference]
    repeated = {word for word in places if len(places[word]) > 1 or reference.count(word) > 1}
    # A word that either side has once has one place: it is set before the search.
    states = [(0, _CLOSED, 0)]  # figures, position after the last match (or _CLOSED), positions used as bits
    for position, word in enumerate(reference):
        if len(states) > 1:
            states.sort(key=itemgetter(0))
            del states[BEAM:]
        if not choices[position]:
            states = [(figures + _CHUNK if end >= 0 else figures, _CLOSED, used) for figures, end, used in states]
        elif word not in repeated:
            place = choices[position][0]
            distance = _MATCH + abs(position - place)
            states = [(figures + distance + (_CHUNK if end >= 0 and end != place else 0), place + 1, used)
                      for figures, end, used in states]
        else:
            states = _branch(states, position, choices[position])
    figures = min(figures + _CHUNK if end >= 0 else figures for figures, end, _ in states)
    matches = -(figures >> _MATCH_BITS)
    return Alignment(len(hypothesis), len(reference), matches, (figures - matches * _MATCH) >> _CHUNK_BITS)


def _branch(states: list[tuple[int, int, int]], position: int, places: list[int]) -> list[tuple[int, int, int]]:
    """Every state with the reference's word at ``position`` on each free place, and with that word left out.

    METEOR adds a match's distance to the states made after it, not to its own; that decides which fall out of the beam.
    """
    grown = []
    for figures, end, used in states:
        for place in places:
            if not used >> place & 1:
                chunk = _CHUNK if end >= 0 and end != place else 0
                grown.append((figures + _MATCH + chunk, place + 1, used | 1 << place))
                figures += abs(position - place)
        grown.append((figures + _CHUNK if end >= 0 else figures, _CLOSED, used))
    return grown


def meteor(hypotheses: Sequence[str], references: Sequence[Iterable[str]]) -> tuple[float, np.ndarray]:
    """METEOR of the whole set, and of each text [N]: the best of its references.

    The set's is one score of the summed lengths, matches and chunks, where a perfect sentence adds no chunk.
    """
    best = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        words = characters(hypothesis)
        best.append(max((align(words, characters(text)) for text in texts), key=Alignment.score))
    total = _score(sum(found.hypothesis for found in best), sum(found.reference for found in best),
                   sum(found.matches for found in best), sum(0 if found.perfect else found.chunks for found in best))
    return total, np.array([found.score() for found in best])


def _score(hypothesis: int, reference: int, matches: int, chunks: int) -> float:
    if not matches:
        return 0.0
    precision, recall = matches / hypothesis, matches / reference
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return mean * (1 - GAMMA * (chunks / matches) ** BETA)
