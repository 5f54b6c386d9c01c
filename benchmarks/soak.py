"""Does memory stay where it is? Many steps, drawings and requests to the page in one process each, and what it holds.

    python benchmarks/soak.py                     2000 steps, 300 drawings, 300 requests: some minutes
    python benchmarks/soak.py --quick --json soak.json

Memory is what the process holds after everything that was freed went back to the system. Keys of --json:
train_growth, draw_growth and page_growth are its growth from the end of the first tenth to the end, as a share (0.03
is 3 %); <name>_megabytes is what it held at the end. Requests go over HTTP where the extra `demo` is installed
(page_over_http 1), and else to the page's functions (0).
"""
import functools
import json
import multiprocessing
import os
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import harness

MODEL = "ernie_vilg_tiny"
FULL, QUICK = {"train": 2000, "draw": 300, "page": 300}, {"train": 200, "draw": 40, "page": 40}
PROMPT = "一个红色的圆形"


class Held:
    """Memory at the end of the first tenth of ``count`` repetitions and at the end of all."""

    def __init__(self, count: int):
        self.count, self.done, self.first, self.last = count, 0, 0.0, 0.0

    def tick(self) -> None:
        """One more repetition has ended."""
        self.done += 1
        if self.done == self.count // 10:
            self.first = harness.resident_megabytes()
        if self.done == self.count:
            self.last = harness.resident_megabytes()


class Counted:
    """A run's loader that counts the batches it hands out."""

    def __init__(self, loader: Any, held: Held):
        self.loader, self.held = loader, held

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.held.tick()
            yield batch


def train(held: Held, seed: int) -> dict[str, float]:
    """Steps of a small model on scenes, with the log, checkpoints and previews of any run."""
    from vilg.config import from_dict
    from vilg.run.build import RunConfig, build_trainer

    zoo = harness.ROOT / "model_zoo" / MODEL
    vocabulary = len((zoo / "vocab.txt").read_text(encoding="utf-8").splitlines())
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(from_dict(RunConfig, {
            "name": "soak", "seed": seed, "output": folder,
            "task": {"kind": "bidirectional", "image_tokenizer": str(zoo / "image_tokenizer"), "vocabulary": str(zoo),
                     "preview_captions": 1,
                     "model": {"layers": 2, "width": 32, "heads": 2, "vocab_size": vocabulary, "codebook_size": 1024,
                               "text_length": 28, "rows": 8, "columns": 8}},
            "data": {"sources": [{"kind": "scenes", "count": 200, "size": 64, "captions": 1}]},
            # The first tenth sees everything that recurs, or the growth would be that of the first time.
            "train": {"steps": held.count, "batch_size": 2, "log_every": 10, "checkpoint_every": held.count // 20,
                      "preview_every": held.count // 20, "keep_last": 2}}))
        trainer.loader = Counted(trainer.loader, held)
        trainer.fit()
    return {}


def draw(held: Held, seed: int) -> dict[str, float]:
    """Drawings of one picture, each of a seed of its own."""
    import vilg

    model = vilg.load(harness.ROOT / "model_zoo" / MODEL)
    for number in range(held.count):
        model.text_to_image(PROMPT, seed=seed + number)
        held.tick()
    return {}


def page(held: Held, seed: int) -> dict[str, float]:
    """Requests to draw, to describe and to be refused, in turns."""
    from PIL import Image

    from vilg.app import page as web
    from vilg.config import settings_of
    from vilg.errors import VilgError

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        served, picture = web.Page(str(harness.ROOT / "model_zoo" / MODEL)), Path(folder) / "scene.png"
        Image.fromarray(served.scene()).save(picture)
        try:
            app = web.start(served, "127.0.0.1", free_port())
        except VilgError:
            for number in range(held.count):
                (functools.partial(served.draw, PROMPT, 1, seed + number), functools.partial(served.describe, picture),
                 functools.partial(refused, lambda: served.draw("红" * 99), VilgError))[number % 3]()
                held.tick()
            return {"page_over_http": 0.0}
        sampling = [getattr(served.model.sampling, one.name) for one in settings_of(type(served.model.sampling))]
        for number in range(held.count):
            name, given = (("draw", [PROMPT, 1, seed + number, False, *sampling]),
                           ("describe", [{"path": str(picture), "meta": {"_type": "gradio.FileData"}}]),
                           ("draw", ["红" * 99, 1, 0, False, *sampling]))[number % 3]
            over_http(app.local_url, name, given)
            held.tick()
        app.close()
        served.worker.close()
    return {"page_over_http": 1.0}


def refused(call: Callable[[], Any], kind: type[Exception]) -> None:
    """Make a call that must be refused."""
    try:
        call()
    except kind:
        return
    raise AssertionError("was to be refused")


def over_http(address: str, name: str, given: list[Any]) -> str:
    """What a call over HTTP tells."""
    asked = urllib.request.Request(f"{address}gradio_api/call/{name}", json.dumps({"data": given}).encode("utf-8"),
                                   {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/{name}/{event}", timeout=60) as told:
        return told.read().decode("utf-8")


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def soak(name: str, count: int, seed: int) -> dict[str, float]:
    """Growth and size of one of the three, in the process that calls this."""
    held = Held(count)
    more = {"train": train, "draw": draw, "page": page}[name](held, seed)
    return {f"{name}_growth": held.last / held.first - 1, f"{name}_megabytes": held.last, **more}


def main() -> None:
    """Soak each of the three in a process of its own."""
    options = harness.arguments(__doc__).parse_args()
    counts, figures = QUICK if options.quick else FULL, {}
    for name, count in counts.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            figures |= process.submit(soak, name, count, options.seed).result()
    harness.report(options, figures, **counts)


if __name__ == "__main__":
    main()
