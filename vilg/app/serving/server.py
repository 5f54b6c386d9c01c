"""Starting and ending the server: models, address, workers, signals."""
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vilg.app import pipeline
from vilg.app.gate import is_loopback
from vilg.app.search import open_index
from vilg.app.serving.engine import Engine
from vilg.errors import VilgError
from vilg.generation.sampling import as_int

SETTINGS = "VILG_SERVE"
"""The variable through which workers learn what to serve."""
OFFERS = (pipeline.Pipeline, pipeline.Matcher)
DRAIN_SECONDS = 30
log = logging.getLogger("vilg.serving")


@dataclass
class ServerConfig:
    """What is served and how. ``models``: names in model_zoo/ or folders; ``indexes``: folders of tools/search.py, each
    by one of the models; ``rows``: pictures drawn at a time; ``wait_ms``: how long the first of them waits for company;
    ``queue``: requests that may wait; ``seconds`` that one may take; ``also``: further names of the host."""

    models: list[str]
    host: str = "127.0.0.1"
    port: int = 8000
    rows: int = 32
    wait_ms: float = 5.0
    queue: int = 64
    seconds: float = 300.0
    indexes: list[str] = field(default_factory=list)
    key_file: str | None = None
    open_door: bool = False
    also: list[str] = field(default_factory=list)
    device: str | None = None
    cpu_math: str | None = None
    workers: int = 1

    def check(self) -> None:
        """Raise VilgError for what cannot be served, before anything is loaded."""
        self.check_settings()
        try:
            if not 0 < self.port < 65536:
                raise OverflowError("a port is from 1 to 65535")
            socket.create_server((self.host, self.port)).close()
        except (OSError, OverflowError) as error:
            raise VilgError(f"the server cannot listen at {self.host}:{self.port} "
                            f"({getattr(error, 'strerror', None) or error}); name another --port or --host") from None

    def check_settings(self) -> None:
        """As :meth:`check`, without the address."""
        require()
        for name, least in (("rows", 1), ("queue", 1), ("workers", 1)):
            if as_int(getattr(self, name), name) < least:
                raise VilgError(f"--{_OPTIONS.get(name, name)} is at least {least}, not {getattr(self, name)}")
        if not (0 <= self.wait_ms <= 60_000 and 0 < self.seconds <= 86_400):
            raise VilgError("--wait-ms is from 0 to 60000 and --timeout above 0, at most 86400 seconds")
        if not self.models:
            raise VilgError("name at least one model to serve")
        if not (is_loopback(self.host) or self.key_file or self.open_door):
            raise VilgError(f"--host {self.host}: others reach the server there; protect it with --api-key-file FILE, "
                            "or let everybody in with --no-key")
        if self.key_file:
            from vilg.app.serving.door import read_keys

            read_keys(self.key_file)


_OPTIONS = {"rows": "max-rows"}


def require() -> None:
    """Raise VilgError where what serving stands on is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise VilgError(f"serving wants {error.name}, which is not installed: pip install 'vilg[serve]'") from None


def load_models(config: ServerConfig) -> dict[str, Any]:
    """The models by name. Raises VilgError for one that neither draws nor compares, and for two of one name."""
    found: dict[str, Any] = {}
    for name in config.models:
        model = pipeline.load_any(name, config.device, config.cpu_math)
        if not isinstance(model, OFFERS):
            raise VilgError(f"{name}: is a {type(model).__name__}, which cannot be served; name a model that draws, or "
                            "a dual encoder")
        if model.name in found:
            raise VilgError(f"two models are called {model.name}; rename the folder of one")
        found[model.name] = model
        log.info("loaded %s", model.name)
    return found


def build_app(config: ServerConfig) -> Any:
    """The ASGI app, with its models loaded and its door at its place. Raises VilgError."""
    from vilg.app.serving.api import Api, build
    from vilg.app.serving.door import Door, read_keys

    engine = Engine(lambda: load_models(config), config.rows, config.wait_ms / 1000, config.queue)
    models = engine.ready()
    indexes = {}
    for folder in config.indexes:
        index = _index(folder, models)
        indexes[index[0]] = index[1]
    api = Api(engine, indexes, config.seconds)
    app = build(api)
    app.state.api = api
    app.add_middleware(Door, host=config.host, keys=read_keys(config.key_file) if config.key_file else [],
                       also=config.also, observe=api.figures.observe)
    app.router.on_shutdown.append(engine.close)
    return app


def _index(folder: str, models: dict[str, Any]) -> tuple[str, Any]:
    """The name of the model that an index was built by, and the index."""
    refusals = []
    for name, model in models.items():
        if isinstance(model, pipeline.Matcher):
            try:
                return name, open_index(folder, model)
            except VilgError as error:
                refusals.append(str(error))
    raise VilgError(refusals[0] if refusals else f"{folder}: an index wants its dual encoder; name that model too")


def keep_prompts_out_of_logs() -> None:
    """For a process that serves and does nothing else: what the tokenizers say of a prompt is in the answer to whoever
    wrote it."""
    logging.getLogger("vilg.tokenizers").setLevel(logging.ERROR)


def app_of_environment() -> Any:
    """What a worker serves."""
    keep_prompts_out_of_logs()
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", force=True)
    app = build_app(ServerConfig(**json.loads(os.environ[SETTINGS])))
    for number in (signal.SIGTERM, signal.SIGINT):  # importing Paddle put its own in the place of uvicorn's
        signal.signal(number, signal.getsignal(number))
    return app


def serve(config: ServerConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, then let what is drawn be ended. Raises VilgError."""
    config.check()
    # uvicorn ends on them in its own way and then sends them once more, to whoever listened before.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _run(config)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(config: ServerConfig) -> None:
    import uvicorn

    common = {"host": config.host, "port": config.port, "log_config": None, "access_log": False,
              "timeout_graceful_shutdown": DRAIN_SECONDS, "server_header": False}
    print(f"http://{config.host}:{config.port}/v1   (/docs: what there is; Ctrl-C: end)", flush=True)
    if config.workers == 1:
        app = build_app(config)
        server = uvicorn.Server(uvicorn.Config(app, **common))
        handle = server.handle_exit

        def ending(*given: Any) -> None:
            app.state.api.draining = True  # what comes now is told to go elsewhere; what is drawn is ended
            handle(*given)

        server.handle_exit = ending
        server.run()
        return
    load_models(config).clear()  # what is wrong is said once, and not by every worker for ever
    shared = tempfile.mkdtemp(prefix="vilg-serve-")
    os.environ |= {SETTINGS: json.dumps(asdict(config)), "PROMETHEUS_MULTIPROC_DIR": shared}
    try:
        uvicorn.run("vilg.app.serving.server:app_of_environment", factory=True, workers=config.workers, **common)
    finally:
        shutil.rmtree(Path(shared), ignore_errors=True)
