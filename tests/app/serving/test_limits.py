"""Who and what is let in, how long it may take, and what is left of a client that has gone."""
import asyncio
import http.client
import json
import logging
import socket
import threading
import time
import urllib.parse

import pytest

from vilg.app.serving.door import ALL_BODIES, Door
from vilg.app.serving.server import keep_prompts_out_of_logs

PROMPT = "一个红色的圆形"


def ask(server, method="POST", path="/v1/images/generations", body=None, **headers):
    link = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=60)
    content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    link.request(method, path, content, {"Content-Type": "application/json", **headers})
    answer = link.getresponse()
    text = answer.read()
    link.close()
    return answer.status, dict(answer.getheaders()), text


def error_of(text):
    return json.loads(text)["error"]


def test_a_full_queue_says_when_to_come_again(start, block):
    server = start(queue=1)
    let_go = block(server.api.engine)
    results = []
    waiting = threading.Thread(target=lambda: results.append(ask(server, body={"prompt": PROMPT})))
    waiting.start()
    until = time.monotonic() + 20
    while not server.api.engine.waiting():
        assert time.monotonic() < until
        time.sleep(0.01)
    status, headers, text = ask(server, body={"prompt": PROMPT})
    assert status == 429 and int(headers["retry-after"]) >= 1 and error_of(text)["type"] == "rate_limit_error"
    let_go.set()
    waiting.join(30)
    assert results[0][0] == 200


def test_what_takes_too_long_is_given_up(start, block):
    server = start(seconds=0.3)
    let_go = block(server.api.engine)
    for body in ({"prompt": PROMPT}, {"prompt": PROMPT, "stream": True}):
        status, _, text = ask(server, body=body)
        assert (status == 504 or body.get("stream")) and b"longer than 0.3 seconds" in text
    let_go.set()
    drawn = server.api.engine.drawn
    time.sleep(0.5)
    assert server.api.engine.drawn == drawn and server.api.engine.waiting() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_work(served, stream, block):
    engine = served.api.engine
    let_go, drawn = block(engine), engine.drawn
    body = json.dumps({"prompt": PROMPT, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", served.config.port)) as link:
        link.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        until = time.monotonic() + 20
        while not engine.waiting():
            assert time.monotonic() < until
            time.sleep(0.01)
    time.sleep(0.5)
    let_go.set()
    assert ask(served, body={"prompt": PROMPT})[0] == 200
    assert engine.drawn == drawn + 1 and engine.busy_rows() == 0


def test_keys_of_a_file_open_the_door(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst-key\n\nsecond-key\n")
    server = start(key_file=str(keys))
    for shown in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first-key"},
                  {"Authorization": "Bearer # ours"}, {"Authorization": "Bearer "}):
        status, _, text = ask(server, "GET", "/v1/models", **shown)
        assert status == 401 and error_of(text)["code"] == "invalid_api_key"
    for key in ("first-key", "second-key"):
        assert ask(server, "GET", "/v1/models", Authorization=f"Bearer {key}")[0] == 200
    assert [ask(server, "GET", path)[0] for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 401]
    assert ask(server, "GET", "/v1/models", Authorization="Bearer first-key", Host="a.name.of.it")[0] == 200


def test_other_names_and_websites_are_refused(served, start):
    assert ask(served, "GET", "/v1/models", Host="evil.example")[0] == 403
    assert ask(served, "GET", "/v1/models", Host="localhost")[0] == 200
    assert ask(served, body={"prompt": PROMPT}, Origin="http://evil.example")[0] == 403
    known = start(also=["Models.example"])
    names = ("models.example:80", "evil.example")
    assert [ask(known, "GET", "/v1/models", Host=name)[0] for name in names] == [200, 403]


def test_bodies_have_an_end(served):
    large = b'{"prompt": "' + b"x" * (33 * 2 ** 20) + b'"}'
    status, _, text = ask(served, body=large)
    assert status == 413 and error_of(text)["code"] == "body_too_large"
    link = http.client.HTTPConnection("127.0.0.1", served.config.port, timeout=60)
    link.request("POST", "/v1/images/generations", iter([large[:2 ** 20]] * 33), {"Content-Type": "application/json"},
                 encode_chunked=True)
    assert link.getresponse().status == 413
    link.close()
    assert ask(served, "GET", "/healthz", **{"Content-Length": "many"})[0] in (400, 413)


def through(door, messages, **headers):
    """What comes back from a door for a body in parts; an end of ``messages`` is a client that sends no more."""
    sent, left = [], list(messages)

    async def receive():
        if not left:
            await asyncio.sleep(60)
        return left.pop(0)

    async def send(message):
        sent.append(message)

    said = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost"), *said]}
    asyncio.run(door(scope, receive, send))
    return sent


async def reading(scope, receive, send):
    while (message := await receive()).get("more_body"):
        continue
    assert message["type"] == "http.request"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def part(content, more=True):
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_body_that_does_not_come_is_not_waited_for():
    door = Door(reading, "127.0.0.1", [], seconds=0.2)
    assert through(door, [part(b"a"), part(b"b", False)], content_length="2")[0]["status"] == 200
    assert through(door, [part(b"a")], content_length="2")[0]["status"] == 408
    assert door.coming == 0


def test_all_bodies_together_have_an_end():
    door = Door(reading, "127.0.0.1", [])
    door.coming = ALL_BODIES - 1
    assert through(door, [part(b"a", False)], content_length="1")[0]["status"] == 200
    for said in ({"content_length": "2"}, {"transfer_encoding": "chunked"}):
        refused = through(door, [part(b"ab", False)], **said)[0]
        assert refused["status"] == 429 and (b"retry-after", b"1") in refused["headers"]


@pytest.mark.parametrize("body,status", [
    (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b'"a"', 400), (b"\xff", 400), (b"{}", 400),
    (b"[" * 100_000, 400)])
def test_bodies_that_are_none_are_told_so(served, body, status):
    got, _, text = ask(served, body=body)
    assert got == status and error_of(text)["type"] == "invalid_request_error"


def test_there_is_nothing_elsewhere(served):
    assert (ask(served, "GET", "/nowhere")[0], ask(served, "GET", "/v1/images/generations")[0]) == (404, 405)
    assert "/docs" in error_of(ask(served, "GET", "/nowhere")[2])["message"]


def figure(server, name):
    """The sum of a metric's lines."""
    lines = ask(server, "GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def comes_true(check):
    """Requests are counted and logged just after their answers went out."""
    until = time.monotonic() + 20
    while not check():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def serving_process():
    """Logs as in a process that serves and does nothing else."""
    logger = logging.getLogger("vilg.tokenizers")
    before = logger.level
    keep_prompts_out_of_logs()
    yield
    logger.setLevel(before)


def test_logs_tell_no_prompts_and_metrics_count(served, serving_process, caplog):
    path = "/v1/images/generations"
    counted = f'vilg_requests_total{{path="{path}"'
    time.sleep(0.2)
    pictures, requests = figure(served, "vilg_pictures"), figure(served, counted)

    def statuses():
        lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "vilg.serving.access"]
        return [one["status"] for one in lines if one["path"] == path]

    with caplog.at_level(logging.DEBUG, "vilg"):
        assert ask(served, body={"prompt": "红圆龘龘"})[0] == 200
        assert ask(served, body={"prompt": "红" * 99})[0] == 400
        comes_true(lambda: statuses() == [200, 400])
    assert "红" not in caplog.text and "龘" not in caplog.text
    comes_true(lambda: figure(served, counted) == requests + 2)
    assert figure(served, "vilg_pictures") == pictures + 1
