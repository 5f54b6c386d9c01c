"""The page in the browser: what it does, without gradio; what it refuses; and, with gradio, that it is served."""
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vilg.app import layout
from vilg.app import page as web
from vilg.app.styles import STYLES
from vilg.app.worker import Worker
from vilg.config import settings_of
from vilg.data.worlds import scenes
from vilg.errors import CheckpointError, VilgError
from vilg.generation.sampling import SamplingConfig

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")  # it calls what others have deprecated since
ROOT = Path(__file__).resolve().parents[2]
PROMPT = "一个红色的圆形"


@pytest.fixture(scope="module")
def page():
    return web.Page("ernie_vilg_tiny")


@pytest.fixture(scope="module")
def untrained(released_model):
    return web.Page(str(released_model))


def arrays(drawn):
    return [np.asarray(picture) for picture, _ in drawn[0]]


def same(left, right):
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right))


def test_the_same_seed_draws_the_same_pictures_and_another_others(page):
    first = arrays(page.draw(PROMPT, count=2, seed=3, temperature=1.0))
    assert [picture.shape for picture in first] == [(64, 64, 3)] * 2
    assert same(first, arrays(page.draw(PROMPT, count=2, seed=3, temperature=1.0)))
    assert not same(first, arrays(page.draw(PROMPT, count=2, seed=4, temperature=1.0)))
    own, = page.model.text_to_image(PROMPT, num_images=2, seed=3)
    assert same(arrays(page.draw(PROMPT, count=2, seed=3)), [np.asarray(picture) for picture in own])


def test_ranked_pictures_are_the_same_ones_best_first(page):
    plain = page.draw(PROMPT, count=4, seed=1, temperature=1.0)[0]
    ranked = page.draw(PROMPT, count=4, seed=1, temperature=1.0, ranked=True)[0]
    scores = [float(picture.info["log_p_text"]) for picture, _ in ranked]
    assert scores == sorted(scores, reverse=True)
    assert all("log P(文字|图)" in line for _, line in ranked)
    for picture, line in ranked:
        sample = int(picture.info["sample"])
        assert np.array_equal(np.asarray(picture), np.asarray(plain[sample][0])) and f"第 {sample + 1} 张" in line


def test_descriptions_and_answers_are_the_pipelines(page, tmp_path):
    picture = page.scene()
    Image.fromarray(picture).save(tmp_path / "scene.png")
    path = str(tmp_path / "scene.png")
    assert page.describe(path) == page.model.image_to_text([picture])[0] != ""
    assert page.ask(path, layout.QUESTIONS[0]) == (page.model.answer([picture], [layout.QUESTIONS[0]])[0], "")
    assert not np.array_equal(page.scene(), page.scene())


def test_examples_are_what_the_model_can_read(page, untrained):
    assert page.examples() == list(web.PROMPTS)
    assert set(untrained.examples()) < set(web.PROMPTS)
    assert all(scenes.parse_question(question) for question in layout.QUESTIONS)
    assert not any(page.model.text_tokenizer.unknown(question) for question in layout.QUESTIONS)


def test_words_that_the_model_never_learned_are_named(page):
    assert page.draw(PROMPT, count=1)[1] == ""
    assert page.draw("一个红色的饕餮", count=1)[1].endswith("饕 餮")
    assert page.ask(page.scene(), "图里有饕餮吗？")[1].endswith("饕 餮")


@pytest.mark.parametrize("call, sentence", [
    (lambda page: page.draw("  "), "请先写一句话"),
    (lambda page: page.draw(5), "请先写一句话"),
    (lambda page: page.draw("红" * 10_001), "10001 个字"),
    (lambda page: page.draw("红", count="4"), "一次画 1 到 16 张.*'4'"),
    (lambda page: page.draw("红", count=1.5), "一次画 1 到 16 张.*1.5"),
    (lambda page: page.draw("红", count=True), "一次画 1 到 16 张"),
    (lambda page: page.draw("红", count=float("nan")), "一次画 1 到 16 张"),
    (lambda page: page.draw("红", seed="7"), "请填一个种子.*'7'"),
    (lambda page: page.draw("红", seed=1.5), "请填一个种子"),
    (lambda page: page.draw("红", seed=-1), "请填一个种子"),
    (lambda page: page.draw("红", seed=[1]), "请填一个种子"),
    (lambda page: page.draw("红", seed=2 ** 53), "请填一个种子"),
    (lambda page: page.draw("红", seed=float("inf")), "请填一个种子"),
    (lambda page: page.ask(np.zeros([16, 16, 3], "uint8"), "红" * 10_001), "10001 个字"),
    (lambda page: page.draw(None), "请先写一句话"),
    (lambda page: page.draw("红\ud83c"), "cannot be read as characters"),
    (lambda page: page.draw("红" * 40), "请去掉 26 个"),
    (lambda page: page.draw("红", count=17), "一次画 1 到 16 张"),
    (lambda page: page.draw("红", count=None), "一次画 1 到 16 张"),
    (lambda page: page.draw("红", count=0), "一次画 1 到 16 张"),
    (lambda page: page.draw("红", seed=None), "请填一个种子"),
    (lambda page: page.draw("红", top_p=2.0), "top_p"),
    (lambda page: page.describe(None), "请先放一张图片"),
    (lambda page: page.ask(None, "有几个？"), "请先放一张图片"),
    (lambda page: page.ask(np.zeros([16, 16, 3], "uint8"), " "), "请先写一个问题"),
    (lambda page: page.ask(np.zeros([16, 16, 3], "uint8"), None), "请先写一个问题"),
    (lambda page: page.ask(np.zeros([16, 16, 3], "uint8"), "\ud83c"), "cannot be read as characters"),
    (lambda page: page.ask(np.zeros([16, 16, 3], "uint8"), "红" * 40), "40 tokens"),
    (lambda page: page.describe(__file__), "不是一张完整的图片"),
])
def test_what_cannot_be_done_is_refused_in_a_sentence(untrained, call, sentence):
    with pytest.raises(VilgError, match=sentence):
        call(untrained)


def test_jobs_from_several_threads_do_not_disturb_each_other(untrained):
    alone = [arrays(untrained.draw("红色的圆形", seed=seed)) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda seed: arrays(untrained.draw("红色的圆形", seed=seed)), range(6)))
    assert all(same(left, right) for left, right in zip(alone, together))


def test_pictures_are_shown_as_they_grow(page, monkeypatch):
    monkeypatch.setattr("vilg.app.growing._GAP_SECONDS", 0.0)
    seen = []
    job = page.begin(PROMPT, 2, 3, show=lambda *shown: seen.append(shown))
    whole = arrays(job.future.result(60))
    assert [done for done, _, _ in seen] == list(range(1, 8)) and same(whole, arrays(page.draw(PROMPT, 2, 3)))
    for done, parts, pictures in seen:
        assert parts == 8 and len(pictures) == 2
        for picture in pictures:
            assert (picture[done * 8:] == 128).all() and (picture[:done * 8] != 128).any()


def test_a_style_is_said_behind_the_sentence(page):
    styled, _ = page.draw("猫脸", count=1, style="油画")
    assert styled[0][0].info["prompt"] == "猫脸，油画风格"
    with pytest.raises(VilgError, match="没有这种风格"):
        page.draw("猫脸", style="素描")


def test_what_is_painted_is_drawn_anew_and_the_rest_kept(page):
    picture = page.scene()
    value = page.to_paint(picture)
    assert value["picture"].startswith("data:image/png;base64,") and value["cells"] == "0" * 64
    painted = value | {"cells": "0" * 32 + "1" * 32}
    drawn = arrays(page.complete(picture, painted, PROMPT, 1, 5))
    own, = page.model.text_to_image(PROMPT, 1, 5, known_image=picture, known_rows=4)
    assert same(drawn, [np.asarray(own[0])])
    for wrong in (value, None, {"cells": "01"}, {"cells": "2" * 64}):
        with pytest.raises(VilgError, match="涂抹要重画的地方"):
            page.complete(picture, wrong, PROMPT)
    with pytest.raises(VilgError, match="请先放一张图片"):
        page.complete(None, painted, PROMPT)


def test_an_index_is_searched_by_sentence_and_by_picture(tmp_path):
    from vilg.app import pipeline, search

    for number in range(6):
        Image.fromarray(scenes.render(scenes.sample_scene(number, "test"), 64)).save(tmp_path / f"{number}.png")
    encoder = pipeline.load_encoder("ernie_vil_tiny")
    search.build_index(encoder, search.open_collection(tmp_path), tmp_path / "index")
    page = web.Page("ernie_vilg_tiny", index=str(tmp_path / "index"))
    hits, remark = page.search("", str(tmp_path / "3.png"))
    assert hits[0][1].endswith("3.png") and hits[0][1].startswith("1.00") and remark == ""
    assert np.array_equal(np.asarray(hits[0][0]), np.asarray(Image.open(tmp_path / "3.png")))
    found, remark = page.search("一个红色的圆形", None)
    assert bool(found) != bool(remark)
    with pytest.raises(VilgError, match="请先放一张图片"):
        page.search(" ", None)


def test_a_missing_model_is_an_error_of_the_model():
    with pytest.raises(CheckpointError, match="nobody: no such model"):
        web.Page("nobody")


def test_the_tool_says_in_a_sentence_that_gradio_is_missing(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError(\"No module named 'gradio'\")", encoding="utf-8")
    result = subprocess.run([sys.executable, "tools/web.py"], cwd=ROOT, capture_output=True, text=True, timeout=300,
                            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: the page needs gradio")
    assert "pip install 'vilg[demo]'" in result.stderr


def test_an_address_that_cannot_be_had_is_refused_before_the_model_loads(monkeypatch):
    monkeypatch.setattr(web, "_gradio", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("127.0.0.1", 0), ("127.0.0.1", 70000),
                           ("192.0.2.1", 7860)):
            with pytest.raises(VilgError, match=f"{host}:{port} .*--port or --host"):
                web.serve("nobody", host, port)


def test_serving_ends_without_leaving_pictures_behind(monkeypatch, capsys):
    class App:
        local_url = "http://127.0.0.1:1/"

        def block_thread(self):
            self.folder = Path(os.environ["GRADIO_TEMP_DIR"])
            (self.folder / "picture.png").write_bytes(b"")

    app, asked, made = App(), [], []
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(web, "_gradio", lambda: None)
    monkeypatch.setattr(web, "_check_address", lambda host, port: None)
    page = SimpleNamespace(worker=Worker(1))
    monkeypatch.setattr(web, "Page", lambda *settings: (made.append(settings), page)[1])
    monkeypatch.setattr(web, "start", lambda *given: (asked.append(given), app)[1])
    with warnings.catch_warnings():  # it changes the filters of its process
        web.serve("model", "127.0.0.1", 1, device="cpu", cpu_math="bf16")
    assert made == [("model", "cpu", "bf16", None, "ernie_vil_tiny")] and not app.folder.exists()
    assert asked == [(page, "127.0.0.1", 1, None)]
    assert app.local_url in capsys.readouterr().out


def test_an_address_that_others_reach_wants_a_password_or_an_explicit_word(monkeypatch, tmp_path):
    monkeypatch.setattr(web, "_gradio", lambda: None)
    monkeypatch.setattr(web, "_check_address", lambda host, port: None)
    with pytest.raises(VilgError, match="--host 0.0.0.0: others reach the page there.*--password-file.*--no-password"):
        web.serve("nobody", "0.0.0.0", 7860)
    for allowed in ({"password": "secret"}, {"unprotected": True}):
        with pytest.raises(CheckpointError, match="nobody: no such model"), warnings.catch_warnings():
            web.serve("nobody", "0.0.0.0", 7860, **allowed)


@pytest.fixture(scope="module")
def served(page, tmp_path_factory):
    """The page over HTTP: gradio's app, a client, and every address that was connected to while it started."""
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    from gradio_client import Client

    folder = tmp_path_factory.mktemp("gradio")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("no_proxy", "")
        patch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there: who asks it fails
        connect = socket.socket.connect
        patch.setattr(socket.socket, "connect", lambda self, to: (asked.append(to), connect(self, to))[1])
        app = web.start(page, "127.0.0.1", port)
        client = Client(app.local_url, verbose=False, download_files=folder / "client")
        yield app, client, asked
        app.close()


def test_the_page_is_served_without_asking_anyone_else(served):
    app, _, asked = served
    assert asked and {to[0] for to in asked if isinstance(to, tuple)} <= {"127.0.0.1", "localhost", "::1"}
    for path in ("", "theme.css"):
        text = urllib.request.urlopen(app.local_url + path, timeout=30).read().decode("utf-8")
        text = text.replace(app.local_url, "/")
        assert re.findall(r"(?:<script[^>]*src|<link[^>]*href|@import|url\()[=\s\"'(]*https?://[^\"') ]*", text) == []
    config = urllib.request.urlopen(app.local_url + "config", timeout=30).read().decode("utf-8")
    assert all(text in config for text in ("文字画图", "看图说话", "看图问答", *web.PROMPTS, *layout.QUESTIONS))


def test_a_call_over_http_returns_the_pictures_of_the_seed(served, page):
    _, client, _ = served
    gallery, remark = client.predict(text=PROMPT, count=2, seed=5, api_name="/draw")
    pictures = [Image.open(item["image"]) for item in gallery]
    assert remark == "" and same([np.asarray(picture) for picture in pictures], arrays(page.draw(PROMPT, 2, 5)))
    assert (pictures[1].info["prompt"], pictures[1].info["seed"], pictures[1].info["sample"]) == (PROMPT, "5", "1")


def test_pictures_travel_over_http_and_refusals_come_back_as_sentences(served, page, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    _, client, _ = served
    picture = tmp_path / "scene.png"
    Image.fromarray(page.scene()).save(picture)
    assert client.predict(handle_file(picture), api_name="/describe") == page.describe(picture)
    asked = client.predict(handle_file(picture), layout.QUESTIONS[0], api_name="/ask")
    assert tuple(asked) == page.ask(picture, layout.QUESTIONS[0])
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:100])
    for arguments, name, sentence in (([handle_file(broken)], "/describe", "不是一张完整的图片"),
                                      ([None], "/describe", "请先放一张图片"), ([""], "/draw", "请先写一句话"),
                                      (["红" * 99], "/draw", "这句话太长")):
        with pytest.raises(AppError, match=sentence):
            client.predict(*arguments, api_name=name)


def post(app, path, values, **headers):
    """A JSON request to the page."""
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(app.local_url + path, json.dumps(values).encode("utf-8"), headers)
    return json.load(urllib.request.urlopen(asked, timeout=30))


def begun(app, name, data):
    """The event of a call over HTTP whose result nobody has asked for yet."""
    return post(app, f"gradio_api/call/{name}", {"data": data})["event_id"]


def result(app, name, event):
    """What is told of an event, to its end."""
    return urllib.request.urlopen(f"{app.local_url}gradio_api/call/{name}/{event}", timeout=60).read().decode("utf-8")


def test_neither_a_file_of_this_machine_nor_an_address_can_be_named_over_http(served):
    app, _, _ = served
    told = result(app, "describe", begun(app, "describe", [{"path": str(ROOT / "docs/images/demo.png")}]))
    assert "event: error" in told
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.5)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/picture.png"
        for named in ({"path": address}, {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}):
            assert "event: error" in result(app, "describe", begun(app, "describe", [named]))
        with pytest.raises(TimeoutError):
            other.accept()


@pytest.mark.parametrize("data, sentence", [
    ([PROMPT, "4", 0], "一次画 1 到 16 张"), ([PROMPT, None, 0], "一次画 1 到 16 张"), ([PROMPT, 1.5, 0], "一次画 1 到 16 张"),
    ([PROMPT, 1, "7"], "请填一个种子"), ([PROMPT, 1, None], "请填一个种子"), ([PROMPT, 1, 1.5], "请填一个种子"),
    (["红" * 100_000, 1, 0], "100000 个字"), ([PROMPT, 1, 0, False, "hot"], "temperature"),
])
def test_numbers_that_are_none_get_a_sentence_over_http(served, data, sentence):
    app, _, _ = served
    own = [*(getattr(SamplingConfig(), one.name) for one in settings_of(SamplingConfig)), STYLES[0]]
    told = result(app, "draw", begun(app, "draw", [*data, *[False, *own][len(data) - 3:]]))
    assert "event: error" in told and sentence in json.loads(told.splitlines()[1].removeprefix("data: "))["error"]


def test_requests_by_another_name_or_from_another_site_are_refused(served):
    app, _, _ = served
    join = "gradio_api/call/draw"
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            post(app, join, {"data": [PROMPT]}, **headers)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        post(app, join, {"data": ["红" * 2_000_000]})


def test_what_nobody_waits_for_is_not_done(served, page, monkeypatch):
    app, _, _ = served
    go, began, drawn = threading.Event(), threading.Event(), page.worker._engine.row_steps
    monkeypatch.setattr("vilg.app.jobs._NEVER_CAME_SECONDS", 2.0)
    held = page.worker.submit(lambda: (began.set(), go.wait(60)))
    assert began.wait(30)
    own = [*(getattr(SamplingConfig(), one.name) for one in settings_of(SamplingConfig)), STYLES[0]]
    for _ in range(5):
        begun(app, "draw", ["左边是红色的圆形", 1, 0, False, *own])
    event = begun(app, "draw", ["右边是红色的圆形", 1, 0, False, *own])
    path = f"/gradio_api/call/draw/{event}"
    with socket.create_connection(("127.0.0.1", app.server_port)) as gone:
        gone.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{app.server_port}\r\n\r\n".encode())
        assert gone.recv(100).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 60
    while page.worker.waiting() > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    go.set()
    held.future.result(30)
    page.worker.run(lambda: None)
    assert page.worker._engine.row_steps == drawn
