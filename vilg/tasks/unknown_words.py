"""What a run's vocabulary lacks of its data, said before it trains."""
import logging
from collections.abc import Iterable

from vilg.data.sample import Sample
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

log = logging.getLogger("vilg.data")
NAMED = 12


def report_unknown(words: WordPieceTokenizer, vocabulary: str, samples: Iterable[Sample]) -> None:
    """Warn of the words in captions, questions and answers that ``words``, which lies at ``vocabulary``, lacks: their
    share, the commonest by name, and what to do. Silent where there are none."""
    samples = list(samples)
    tally = words.tally(text for sample in samples
                        for text in (*sample.captions, *(part for pair in sample.questions for part in pair)))
    if not tally.unknown:
        return
    commonest = sorted(tally.unknown.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{word} ({count}×)" for word, count in commonest[:NAMED])
    log.warning(
        "%.2g %% of the words in the first %d samples are not in the vocabulary %s: %s%s. Each is read as %s and "
        "trains nothing. To teach them: python tools/build_vocab.py DATA --extend %s --output NEW/vocab.txt, then set "
        "task.vocabulary=NEW and task.model.vocab_size to its size (task.init_from may keep the model of the old one)",
        100 * tally.unknown_share, len(samples), vocabulary, named, " …" if len(commonest) > NAMED else "",
        words.special["unk"], vocabulary)
