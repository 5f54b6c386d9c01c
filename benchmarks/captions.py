"""All caption scores of many images at once, as tools/evaluate.py captions takes them: seconds for 10 000.

    python benchmarks/captions.py                    10 000 captions, five references each; about a minute
    python benchmarks/captions.py --quick            1000

Captions are those of drawn scenes; cutting them by jieba counts as well, on both sides. Where pycocoevalcap is there,
its BLEU, ROUGE-L and CIDEr (no METEOR, which wants Java) are timed in turns with ours on the same words.

Keys of --json: captions, seconds_words and seconds_characters (all scores of that many, by jieba's words and by
characters), captions_per_s (both together), seconds_10000 (both together, for 10 000), time_over_pycocoevalcap (all of
our scores by words / its three; below 1 is faster).
"""
import importlib.util
import statistics
import time

import harness

COUNT, QUICK_COUNT = 10_000, 1000
REFERENCES = 5


def main() -> None:
    """Time the scores and print, or write, the figures."""
    options = harness.arguments(__doc__).parse_args()
    from vilg.metrics.captions.cut import find_cut
    from vilg.metrics.captions.score import score_captions

    count, clock = QUICK_COUNT if options.quick else COUNT, time.perf_counter
    if options.clock == "cpu":
        clock = time.thread_time
    references, said = made(count, options.seed)
    find_cut("jieba").hypothesis("读词典")  # jieba reads its dictionary once, in a second
    seconds: dict[str, list[float]] = {"jieba": [], "characters": [], "theirs": []}
    theirs = pycocoevalcap(references, said) if importlib.util.find_spec("pycocoevalcap") else None
    for _ in range(3 if options.quick else 1):
        for cut in ("jieba", "characters"):
            begun = clock()
            score_captions(references, said, cut)
            seconds[cut].append(clock() - begun)
        if theirs:
            begun = clock()
            theirs()
            seconds["theirs"].append(clock() - begun)
    words, characters = (statistics.median(seconds[cut]) for cut in ("jieba", "characters"))
    figures = {"captions": count, "seconds_words": words, "seconds_characters": characters,
               "captions_per_s": count / (words + characters), "seconds_10000": (words + characters) * 10_000 / count}
    if theirs:
        figures["time_over_pycocoevalcap"] = words / statistics.median(seconds["theirs"])
    harness.report(options, figures, references=REFERENCES)


def made(count: int, seed: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """References and a hypothesis for each of ``count`` scenes."""
    import numpy as np

    from vilg.data.worlds import scenes

    references, said = {}, {}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        scene = scenes.sample_scene(seed * 1_000_003 + number, "train")
        said[str(number)], *references[str(number)] = scenes.captions(scene, rng, REFERENCES + 1)
    return references, said


def pycocoevalcap(references: dict[str, list[str]], said: dict[str, str]):
    """Its three scores that need no Java, of words that jieba cut before."""
    import contextlib
    import io

    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    from vilg.metrics.captions.cut import find_cut

    cut = find_cut("jieba")
    given = {key: [" ".join(cut.reference(text)) for text in texts] for key, texts in references.items()}
    hypotheses = {key: [" ".join(cut.hypothesis(text))] for key, text in said.items()}

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            for scorer in (Bleu(4), Rouge(), Cider()):
                scorer.compute_score(given, hypotheses)

    return run


if __name__ == "__main__":
    main()
