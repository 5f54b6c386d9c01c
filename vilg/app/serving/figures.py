"""What the server tells Prometheus."""
import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from vilg.app.serving.engine import Engine

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Where several workers of one server put their counts."""
KNOWN = ("/v1/images/generations", "/v1/images/edits", "/v1/chat/completions", "/v1/embeddings", "/v1/models",
         "/v1/rank", "/v1/search", "/predict/ernie_vilg", "/healthz", "/readyz", "/metrics")


class Figures:
    """Counts of one server: of all its workers where there are several, which then tell nothing of their queues."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        own = None if SHARED in os.environ else self._registry
        self.requests = Counter("vilg_requests", "Requests by path and status", ["path", "status"], registry=own)
        self.seconds = Histogram("vilg_request_seconds", "From a request to the end of its answer", ["path"],
                                 buckets=SECONDS, registry=own)
        if own is None:
            multiprocess.MultiProcessCollector(self._registry)
            return
        for name, meaning, value in (
                ("vilg_queue", "Requests that wait", engine.waiting),
                ("vilg_rows", "Pictures that are being drawn", engine.busy_rows),
                ("vilg_pictures", "Pictures drawn since the start", lambda: engine.drawn),
                ("vilg_batch_rows", "Pictures drawn side by side, on average since the start",
                 lambda: engine.row_steps / max(1, engine.steps))):
            Gauge(name, meaning, registry=own).set_function(value)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        path = path if path in KNOWN else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)
