"""Who is let through to the page, and how much they may send; and the jobs behind it, without gradio."""
import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from vilg.app import gate
from vilg.app.gate import Gate, is_loopback
from vilg.app.jobs import Listeners, Stopped, result_of
from vilg.app.worker import Worker
from vilg.errors import VilgError


async def app(scope, receive, send):
    """Answers with how much it was sent."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(served, path="/", method="GET", body=(b"",), **headers):
    """Status and body of a request; ``body`` comes in parts."""
    parts, sent = list(body), []
    headers = {"host": "127.0.0.1:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}

    async def receive():
        if not parts:
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "query_string": b"",
             "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(served(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


@pytest.fixture
def alone(tmp_path):
    return Gate(app, "127.0.0.1", str(tmp_path), Listeners())


@pytest.fixture
def shared(tmp_path):
    return Gate(app, "0.0.0.0", str(tmp_path), Listeners())


@pytest.mark.parametrize("host, of_one, of_all", [
    ("127.0.0.1:7860", 200, 200), ("localhost:7860", 200, 200), ("LocalHost", 200, 200), ("[::1]:7860", 200, 200),
    ("evil.example:7860", 403, 403), ("", 403, 403), ("127.0.0.1.evil.example", 403, 403), ("[", 403, 403),
    ("192.0.2.7:7860", 403, 200), ("localhost.evil.example", 403, 403),
])
def test_a_name_that_is_not_the_pages_is_refused(alone, shared, host, of_one, of_all):
    assert (ask(alone, host=host)[0], ask(shared, host=host)[0]) == (of_one, of_all)


@pytest.mark.parametrize("headers, status", [
    ({}, 200), ({"origin": "http://127.0.0.1:7860"}, 200), ({"origin": "https://127.0.0.1:7860"}, 200),
    ({"origin": "http://127.0.0.1:8000"}, 403), ({"origin": "https://evil.example"}, 403), ({"origin": "null"}, 403),
    ({"sec_fetch_site": "cross-site"}, 403), ({"sec_fetch_site": "same-origin"}, 200),
])
def test_another_website_cannot_use_the_page(alone, headers, status):
    assert ask(alone, "/gradio_api/upload", "POST", **headers)[0] == status


def test_bodies_have_a_limit_whatever_they_announce(alone):
    megabyte = b"x" * gate.MEGABYTE
    assert ask(alone, "/gradio_api/queue/join", "POST", [megabyte]) == (200, str(gate.MEGABYTE))
    for headers, body in (({"content_length": str(gate.MEGABYTE + 1)}, [b""]), ({}, [megabyte, b"x"]),
                          ({"content_length": "-5"}, [b""]), ({"content_length": "9" * 5000}, [b""])):
        status, sentence = ask(alone, "/gradio_api/queue/join", "POST", body, **headers)
        assert status == 413 and "1 MB at most" in sentence
    assert ask(alone, "/gradio_api/upload", "POST", [megabyte, megabyte])[0] == 200
    assert ask(alone, "/gradio_api/upload/", "POST", [megabyte] * 22)[0] == 413


def test_all_uploads_together_have_a_limit(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "ALL_UPLOADS", 1000)
    assert ask(alone, "/gradio_api/upload", "POST", content_length="900")[0] == 200
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "picture.png").write_bytes(b"x" * 200)
    status, sentence = ask(alone, "/gradio_api/upload", "POST", content_length="900")
    assert status == 507 and "Too many uploads" in sentence
    assert ask(alone, "/gradio_api/upload", "POST", content_length="700")[0] == 200


def test_which_addresses_others_reach():
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.3.4.5")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "", "no.such.name.invalid")] == [False] * 5


def held(worker):
    """A job that holds the worker until told, and the telling."""
    begun, go = threading.Event(), threading.Event()
    job = worker.submit(lambda: (begun.set(), go.wait(30)))
    assert begun.wait(30)
    return job, go


def test_jobs_run_one_after_the_other_and_a_full_queue_says_so():
    worker, ran = Worker(3), []
    _, go = held(worker)
    jobs = [worker.submit(lambda number=number: ran.append(number)) for number in range(3)]
    with pytest.raises(VilgError, match="Busy"):
        worker.submit(lambda: None)
    jobs[1].stop()
    go.set()
    worker.run(lambda: worker.run(lambda: ran.append("within")))
    assert ran == [0, 2, "within"] and worker.waiting() == 0


def test_a_job_that_runs_ends_at_its_next_check():
    worker, begun, went_on = Worker(3), threading.Event(), []

    def call():
        begun.set()
        for _ in range(3000):
            time.sleep(0.01)
            worker.check(1)
        went_on.append(True)

    job = worker.submit(call)
    assert begun.wait(30)
    job.stop()
    with pytest.raises(CancelledError):
        job.future.result(30)
    assert worker.run(lambda: 5) == 5 and not went_on


def test_a_cancelled_or_abandoned_wait_takes_its_job_out_of_the_queue():
    worker, ran, there = Worker(5), [], [True]
    _, go = held(worker)

    async def scene():
        cancelled = asyncio.ensure_future(result_of(worker.submit(lambda: ran.append("cancelled")), lambda: True))
        left = asyncio.ensure_future(result_of(worker.submit(lambda: ran.append("left")), lambda: there[0]))
        kept = asyncio.ensure_future(result_of(worker.submit(lambda: ran.append("kept")), lambda: True))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        there[0] = False
        with pytest.raises(Stopped, match="nobody waits"):
            await left
        go.set()
        await kept
        return cancelled.cancelled()

    assert asyncio.run(scene()) and ran == ["kept"]


def test_who_listens_is_known_and_who_left_soon_forgotten(monkeypatch):
    listeners, job = Listeners(), Worker(1).submit(lambda: None)
    now = [job.asked]
    monkeypatch.setattr("vilg.app.jobs.time.monotonic", lambda: now[0])
    assert listeners.wait_for("a", job)  # it may still come
    now[0] += 100
    assert not listeners.wait_for("a", job)
    with listeners.listen("a"), listeners.listen("a"):
        assert listeners.wait_for("a", job) and not listeners.wait_for("b", job)
    assert listeners.wait_for("a", job)  # it may come back
    now[0] += 2
    assert not listeners.wait_for("a", job)
    for number in range(3000):
        with listeners.listen(str(number)):
            pass
    assert len(listeners._left) == 1000 and not listeners._open
