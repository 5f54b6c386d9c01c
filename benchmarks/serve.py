"""A server under load: eight clients against one, and two hundred requests of which many are no good.

Keys of --json: batched_over_single, pictures a second of eight clients over those of one client that waits for each
(target 2.5 or more); batched_per_second and single_per_second; p50 and p99, seconds from a request to its answer with
eight clients. Then a mixture of drawings, streams, questions about pictures of 2 MB, clients that leave and requests
that are wrong: lost, requests without an answer, and wrong, answers of another status or picture than expected (target
0 both; every picture is compared with text_to_image's); growth, the server's memory after the second half of the
mixture over that after the first, less 1 (target 0.05 or less).

The server is a process of its own, tools/serve.py with the shipped models. --quick: 48 requests of the mixture and
fewer pictures, under a minute on an idle machine.
"""
import base64
import hashlib
import http.client
import io
import json
import os
import queue
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from PIL import Image

MODEL = "ernie_vilg_tiny"
CLIENTS = 8
PROMPTS = ("一个红色的圆形", "左边是蓝色的方块", "一个绿色的三角形", "右边是黄色的圆形", "两个红色的方块", "一个小的蓝色圆形")
DRAW, CHAT = "/v1/images/generations", "/v1/chat/completions"


class Server:
    """tools/serve.py at a free port of this machine."""

    def __init__(self, threads: int):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)} | ({"OMP_NUM_THREADS": str(threads)} if threads
                                                                         else {})
        self.process = subprocess.Popen(
            [sys.executable, "tools/serve.py", MODEL, "ernie_vil_tiny", "--port", str(self.port), "--queue", "256"],
            cwd=harness.ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                if self.ask("GET", "/readyz")[0] == 200:
                    break
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the server ended before it was ready") from None
                time.sleep(0.1)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and content of an answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            link.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def leave(self, body: Any, seconds: float) -> None:
        """Ask, and go away before the answer."""
        content = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as link:
            link.sendall(f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            time.sleep(seconds)

    def megabytes(self) -> float:
        """Its resident memory."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def digest(picture: Any) -> str:
    return hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()


def digest_of(png: str) -> str:
    return digest(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


def side_by_side(jobs: list[Any], work: Callable[[Any], None], clients: int) -> float:
    """Seconds in which ``clients`` threads do all jobs."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def run() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            work(job)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    began = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return time.perf_counter() - began


class Load:
    """Requests to a server, and what came of them. ``pictures``: digests by (prompt, seed)."""

    def __init__(self, server: Server, pictures: dict[tuple[str, int], str], said: dict[str, str], large: str):
        self.server, self.pictures, self.said, self.large = server, pictures, said, large
        self.lost = self.wrong = 0
        self.seconds: list[float] = []

    def draw(self, job: tuple[str, int]) -> None:
        """One picture."""
        began = time.perf_counter()
        self._check("POST", DRAW, {"prompt": job[0], "seed": job[1]}, 200,
                    lambda text: digest_of(json.loads(text)["data"][0]["b64_json"]) == self.pictures[job])
        self.seconds.append(time.perf_counter() - began)

    def anything(self, job: tuple[str, tuple[str, int], float]) -> None:
        """One request of the mixture."""
        kind, (prompt, seed), chance = job
        body = {"prompt": prompt, "seed": seed}
        if kind == "draw":
            self.draw((prompt, seed))
        elif kind == "leave":
            self.server.leave(body | {"n": 4, "stream": False}, 0.3 * chance)
        elif kind == "stream":
            self._check("POST", DRAW, body | {"stream": True, "partial_images": 2}, 200, lambda text: digest_of(
                json.loads(text.decode().strip().rpartition("data: ")[2])["b64_json"]) == self.pictures[prompt, seed])
        elif kind == "ask":
            address = f"data:image/png;base64,{self.large}"
            parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": address}}]
            self._check("POST", CHAT, {"model": MODEL, "messages": [{"role": "user", "content": parts}]}, 200,
                        lambda text: json.loads(text)["choices"][0]["message"]["content"] == self.said["large"])
        else:
            fault = FAULTS[int(chance * len(FAULTS))]
            self._check("POST", DRAW, body | fault, 404 if "model" in fault else 400,
                        lambda text: json.loads(text)["error"]["param"] == next(iter(fault)))

    def _check(self, method: str, path: str, body: Any, status: int, right: Callable[[bytes], bool]) -> None:
        try:
            got, text = self.server.ask(method, path, body)
        except (OSError, http.client.HTTPException):
            self.lost += 1
            return
        try:
            self.wrong += got != status or not right(text)
        except (ValueError, KeyError, IndexError, TypeError, OSError):
            self.wrong += 1


FAULTS = ({"prompt": ""}, {"prompt": "红" * 3000}, {"n": 0}, {"seed": -1}, {"size": "1x1"}, {"model": "nobody"},
          {"temperature": "hot"}, {"wish": 1})
MIXTURE = ("draw",) * 5 + ("leave", "leave", "stream", "ask", "fault")


def expected(threads: int, jobs: list[tuple[str, int]], large: np.ndarray) -> tuple[dict[tuple[str, int], str], str]:
    """What the pipeline itself draws for every job, and says about the large picture."""
    harness.prepare_ours(threads, 0)
    from vilg.app import pipeline

    model = pipeline.load(MODEL)
    pictures = {job: digest(model.text_to_image(job[0], seed=job[1])[0][0]) for job in dict.fromkeys(jobs)}
    return pictures, model.image_to_text([large])[0]


def main() -> None:
    """Measure and report."""
    options = harness.arguments(__doc__).parse_args()
    chance = random.Random(options.seed)
    count, rounds, mixed = (24, 1, 48) if options.quick else (48, 3, 200)
    jobs = [(PROMPTS[number % len(PROMPTS)], number) for number in range(count)]
    large = np.random.default_rng(options.seed).integers(0, 256, [720, 960, 3], "uint8")  # noise: 2 MB as a PNG
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, format="PNG")
    pictures, said = expected(options.threads or harness.physical_cores(), jobs, large)
    server = Server(options.threads)
    try:
        load = Load(server, pictures, {"large": said}, base64.b64encode(buffer.getvalue()).decode())
        side_by_side(jobs[:CLIENTS], load.draw, CLIENTS)  # the first pictures compile and fill what stays
        load.seconds.clear()
        single, batched = [], []
        for _ in range(rounds):
            single.append(count / side_by_side(jobs, load.draw, 1))
            kept, load.seconds = load.seconds, []
            batched.append(count / side_by_side(jobs, load.draw, CLIENTS))
            load.seconds, waits = kept, load.seconds
        both = statistics.median(batched), statistics.median(single)
        mixture = [(MIXTURE[number % len(MIXTURE)], chance.choice(jobs), chance.random()) for number in range(mixed)]
        chance.shuffle(mixture)
        sizes = []
        for half in (mixture[:mixed // 2], mixture[mixed // 2:]):
            side_by_side(half, load.anything, CLIENTS)
            sizes.append(server.megabytes())
        figures = {"batched_over_single": both[0] / both[1], "batched_per_second": both[0],
                   "single_per_second": both[1], "p50": statistics.median(waits),
                   "p99": sorted(waits)[int(0.99 * len(waits))], "lost": load.lost, "wrong": load.wrong,
                   "growth": sizes[1] / sizes[0] - 1, "megabytes": sizes[1]}
    finally:
        server.close()
    harness.report(options, figures, clients=CLIENTS, pictures=count, requests=mixed,
                   large_bytes=len(buffer.getvalue()))


if __name__ == "__main__":
    main()
