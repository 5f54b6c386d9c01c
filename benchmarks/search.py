"""Exact search of 10 000 vectors against faiss's flat index, in processes of their own, timed in turns.

Keys of --json: search_over_faiss, our seconds over faiss's at 16 queries (target 2 or less), the same for one
query (search_over_faiss_1) and for 256 (search_over_faiss_256), and the milliseconds of each. Both answer the ten
nearest of unit vectors by their products; the answers are compared before anything is timed. Needs `vilg[search]`.
"""
from collections.abc import Callable

import harness
import numpy as np

BATCHES = (1, 16, 256)
K = 10


def vectors(seed: int, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors to search among [N, D] and queries [256, D]."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=[count + max(BATCHES), width]).astype("float32")
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made[:count], made[count:]


def cases(top_k: Callable[[np.ndarray], np.ndarray], queries: np.ndarray) -> dict[str, harness.Case]:
    """A case a batch size, and "answer": the rows that were found for all queries."""
    return {f"{batch}": (lambda batch=batch: (lambda: top_k(queries[:batch]))) for batch in BATCHES} | {
        "answer": (lambda: top_k(queries))}


def ours(threads: int, seed: int, count: int, width: int) -> dict[str, harness.Case]:
    """Blocked products."""
    harness.prepare_ours(threads, seed)
    from vilg.app.search.nearest import Neighbours

    among, queries = vectors(seed, count, width)
    index = Neighbours(among)
    return cases(lambda batch: index.top_k(batch, K)[0], queries)


def flat(threads: int, seed: int, count: int, width: int) -> dict[str, harness.Case]:
    """faiss's exhaustive index."""
    import faiss

    faiss.omp_set_num_threads(threads)
    among, queries = vectors(seed, count, width)
    index = faiss.IndexFlatIP(width)
    index.add(among)
    return cases(lambda batch: index.search(batch, K)[1], queries)


def main() -> None:
    """Compare and time."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="vectors (%(default)s)")
    parser.add_argument("--width", type=int, default=768, help="of a vector (%(default)s)")
    options = parser.parse_args()
    threads = {name: str(options.threads or harness.physical_cores())
               for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
    entrants = [harness.Contestant(name, setup, options, options.count, options.width, environment=threads)
                for name, setup in (("ours", ours), ("faiss", flat))]
    found = [entrant.wait().ask("answer") for entrant in entrants]
    rounds = 3 if options.quick else 15
    figures: dict[str, float] = {"same_answers": float(np.mean(found[0] == found[1]))}
    for batch in BATCHES:
        seconds = harness.alternate(entrants, str(batch), rounds, 10, uncounted=2)
        figures[f"search_over_faiss_{batch}"] = seconds["ours"] / seconds["faiss"]
        figures |= {f"{name}_ms_{batch}": 1000 * value for name, value in seconds.items()}
    figures = {"search_over_faiss": figures["search_over_faiss_16"]} | figures
    for entrant in entrants:
        entrant.close()
    harness.report(options, figures, vectors=options.count, width=options.width, k=K)


if __name__ == "__main__":
    main()
