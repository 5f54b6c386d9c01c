"""How long it takes to score 10 000 captions, five references each: BLEU, METEOR, ROUGE-L, CIDEr and CIDEr-D.

    python benchmarks/caption_scores.py              half a minute; --quick scores 2000

The captions are of scenes: one of a scene's against five others, written by chance. Keys of --json: jieba_seconds and
characters_seconds, each with cutting the text; captions.
"""
import harness
import numpy as np

from vilg.data.worlds import scenes
from vilg.metrics.captions.score import score_captions

REFERENCES = 5


def main() -> None:
    """Write captions and score them by words and by characters."""
    options = harness.arguments(__doc__).parse_args()
    count = 2_000 if options.quick else 10_000
    rng = np.random.default_rng(options.seed)
    wanted, said = {}, {}
    for index in range(count):
        written = scenes.captions(scenes.sample_scene(index, "test"), rng)
        chosen = [written[place] for place in rng.integers(len(written), size=REFERENCES + 1)]
        wanted[index], said[index] = chosen[1:], chosen[0]
    figures = {"captions": float(count)}
    now = harness.CLOCKS[options.clock]
    for cut in ("jieba", "characters"):
        started = now()
        score_captions(wanted, said, cut)
        figures[f"{cut}_seconds"] = now() - started
    harness.report(options, figures, references=REFERENCES)


if __name__ == "__main__":
    main()
