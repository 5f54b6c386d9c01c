"""Best of 8 drawings, by whom? 500 captions a split, judged by the scene reader alone.

Every caption is drawn eight times, once for all contestants: the best by P(text | image), the drawer's own; by the
similarity of a dual encoder; by both, the sum of log P and log similarity. Keys of --json, for splits test and unseen,
as shares of captions whose chosen drawing is true: <split>_single (the first drawing), <split>_p_text,
<split>_dual_encoder, <split>_both, and <split>_any, where one of the eight is true, which no judge can pass.

    python benchmarks/rerank.py --model ernie_vilg_tiny --judge ernie_vil_tiny --json rerank.json
"""
import harness
import numpy as np
from tqdm import tqdm

from vilg.data.worlds import scenes

SPLITS = ("test", "unseen")
DRAWINGS = 8
AT_ONCE = 16


def chosen(log_p: np.ndarray, similarity: np.ndarray) -> dict[str, int]:
    """The drawing that each contestant takes, by its number; of equal ones the first."""
    with np.errstate(divide="ignore"):
        both = log_p + np.log(similarity)
    return {"single": 0, "p_text": int(log_p.argmax()), "dual_encoder": int(similarity.argmax()),
            "both": int(both.argmax())}


def shares(drawer, judge, split: str, count: int, seed: int) -> dict[str, float]:
    """Shares of ``count`` captions by contestant."""
    rng = np.random.default_rng([seed, len(split)])
    captions = []
    for number in range(count):
        said = scenes.captions(scenes.sample_scene(seed * 1_000_003 + number, split), rng)
        captions.append(said[rng.integers(len(said))])
    right: dict[str, list[bool]] = {}
    for start in tqdm(range(0, count, AT_ONCE), desc=split, unit="batch"):
        texts = captions[start:start + AT_ONCE]
        seeds = [seed * 1_000_003 + start + row for row in range(len(texts))]
        # best_of notes log P(text | image) of every drawing; "sample" says which one it was.
        for text, row in zip(texts, drawer.text_to_image(texts, DRAWINGS, seed=seeds, best_of=DRAWINGS)):
            row = sorted(row, key=lambda image: image.info["sample"])
            pictures = [np.asarray(image) for image in row]
            log_p = np.array([image.info["log_p_text"] for image in row])
            true = [scenes.satisfies(picture, text) for picture in pictures]
            for name, pick in chosen(log_p, judge.similarity([text], pictures)[0]).items():
                right.setdefault(name, []).append(true[pick])
            right.setdefault("any", []).append(any(true))
    return {f"{split}_{name}": float(np.mean(outcomes)) for name, outcomes in right.items()}


def main() -> None:
    """Draw, choose, judge."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--model", default="ernie_vilg_tiny", help="what draws, by name or folder (%(default)s)")
    parser.add_argument("--judge", default="ernie_vil_tiny", help="dual encoder, by name or folder (%(default)s)")
    parser.add_argument("--count", type=int, default=500, help="captions a split (%(default)s; 16 with --quick)")
    options = parser.parse_args()
    count = min(options.count, AT_ONCE) if options.quick else options.count
    harness.prepare_ours(options.threads or harness.physical_cores(), options.seed)
    from vilg.app import pipeline

    drawer, judge = pipeline.load(options.model), pipeline.load_encoder(options.judge)
    figures: dict[str, float] = {}
    for split in SPLITS:
        figures |= shares(drawer, judge, split, count, options.seed)
    harness.report(options, figures, count=count, model=drawer.name, judge=judge.name, drawings=DRAWINGS)


if __name__ == "__main__":
    main()
