"""A server on this machine, with small untrained models that tell their inputs apart."""
import socket
import threading
import time

import pytest
import uvicorn

from vilg import release
from vilg.app.serving import server
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder


def a_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Running:
    """A server in a thread; ``api`` is what it serves."""

    def __init__(self, config):
        self.config, self.app = config, server.build_app(config)
        self.api, self.url = self.app.state.api, f"http://127.0.0.1:{config.port}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, port=config.port, log_config=None))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < until
            time.sleep(0.02)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="session")
def encoder_folder(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "matcher"
    release.write(folder, "dual_encoder", ReleasedDualEncoder(
        encoder.model, encoder.text_tokenizer, encoder.preprocess, encoder.text_length, encoder.calibration))
    return folder


@pytest.fixture(scope="session")
def start(released_model, encoder_folder):
    """A function that starts a server with changed settings."""
    running = []

    def one(**changes):
        models = [str(released_model), str(encoder_folder)]
        running.append(Running(server.ServerConfig(**{"models": models, "port": a_port(), **changes})))
        return running[-1]

    yield one
    for each in running:
        each.stop()


@pytest.fixture(scope="session")
def served(start):
    return start()


@pytest.fixture
def free_port():
    return a_port()


@pytest.fixture(scope="session")
def block():
    """A function that keeps an engine's thread busy until the event that it returns is set."""
    def one(engine):
        inside, let_go = threading.Event(), threading.Event()

        def hold(items, _):
            inside.set()
            let_go.wait(30)
            return items

        engine.call("hold", None, hold)
        assert inside.wait(30)
        return let_go

    return one
