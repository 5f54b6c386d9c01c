"""What is let through to the page: requests by its own names, from its own pages, of a bearable size."""
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vilg.app.jobs import Listeners

log = logging.getLogger("vilg.page")
MEGABYTE = 2 ** 20
LARGEST_BODY, LARGEST_UPLOAD, ALL_UPLOADS = MEGABYTE, 20 * MEGABYTE, 500 * MEGABYTE
"""Bytes of a request, of one that uploads a file, and of all files that lie in the page's folder."""
_MULTIPART = 64 * 1024  # what surrounds the file in its request
_PATIENCE = 64 * MEGABYTE  # of a refused body that is read to its end
_SAFE = ("GET", "HEAD", "OPTIONS")
UPLOAD = "/gradio_api/upload"
RESULTS, CALL = "/gradio_api/queue/data", "/gradio_api/call/"
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Names:
    """What a server at ``host`` is called.

    A page elsewhere can make a browser send requests here, and can give this address a name of its own (DNS
    rebinding). Both are seen: by ``Origin``, which a browser adds, and by ``Host``, which names the site that the
    browser believes to be at. Numeric addresses cannot be rebound.
    """

    def __init__(self, host: str):
        self.alone = is_loopback(host)
        names = {"localhost", host} if self.alone else {"localhost", host, socket.gethostname(), socket.getfqdn()}
        self.names = {name.lower() for name in names}

    def own(self, host: str) -> bool:
        """Is the ``Host`` that a request names this server?"""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return name in self.names
        return address.is_loopback or not self.alone or name in self.names

    def foreign(self, method: str, headers: dict[str, str]) -> bool:
        """Does a page of another website send the request?"""
        origin = headers.get("origin")
        try:
            elsewhere = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        except ValueError:
            elsewhere = True
        return elsewhere or (headers.get("sec-fetch-site") == "cross-site" and method not in _SAFE)


class Gate:
    """ASGI middleware. ``host``: the address that is served at; ``folder``: where uploads go; ``listeners`` learns who
    waits for results."""

    def __init__(self, app: Any, host: str, folder: str, listeners: Listeners):
        self.app, self.folder, self.listeners = app, Path(folder), listeners
        self.names = Names(host)
        self.coming = 0  # bytes that uploads on their way may bring

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limit = LARGEST_UPLOAD + _MULTIPART if _path(scope) == UPLOAD else LARGEST_BODY
        refusal = self._stranger(scope, headers) or self._too_large(scope, headers, limit)
        if refusal:
            await _drain(receive)
            await _refuse(send, *refusal)
            return
        uploading = limit if _path(scope) == UPLOAD else 0
        self.coming += uploading
        try:
            with self.listeners.listen(_session(scope)):
                await _limited(self.app, scope, receive, send, limit)
        finally:
            self.coming -= uploading

    def _stranger(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        if not self.names.own(headers.get("host", "")):
            return 403, "这个地址不是本页的。This name is not the page's; open it by the address that it printed."
        if self.names.foreign(scope["method"], headers):
            return 403, "别的网站不能使用本页。Other websites may not use the page."
        return None

    def _too_large(self, scope: dict[str, Any], headers: dict[str, str], limit: int) -> tuple[int, str] | None:
        length = headers.get("content-length", "0")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else limit + 1
        if size > limit:
            return 413, f"太大了。Too large: {limit // MEGABYTE} MB at most."
        if _path(scope) == UPLOAD and self.coming + _held(self.folder) + (size or limit) > ALL_UPLOADS:
            return 507, "上传的图片太多，请过一小时再试。Too many uploads; they are deleted after an hour."
        return None


def is_loopback(host: str) -> bool:
    """Does the address, or every address of the name, reach this machine alone?"""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(host) and all(ipaddress.ip_address(str(one).partition("%")[0]).is_loopback for one in found)


async def _limited(app: Any, scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Send,
                   limit: int) -> None:
    """Serve a request whose body comes to an end after ``limit`` bytes, however it announced itself."""
    size, begun, over = 0, False, False

    async def counted() -> dict[str, Any]:
        nonlocal size, over
        message = await receive()
        size += len(message.get("body", b""))
        over = over or size > limit
        return {"type": "http.disconnect"} if over else message

    async def noted(message: dict[str, Any]) -> None:
        nonlocal begun
        if over and not begun:
            begun = True
            await _refuse(send, 413, f"太大了。Too large: {limit // MEGABYTE} MB at most.")
        elif not over:
            begun = True
            await send(message)

    try:
        await app(scope, counted, noted)
    except Exception:
        if not over:
            raise
    if over and not begun:
        await _drain(receive)
        await _refuse(send, 413, f"太大了。Too large: {limit // MEGABYTE} MB at most.")


async def _drain(receive: Callable[[], Awaitable[dict]]) -> None:
    """Let a body that is not too absurd go by: a client that is still sending would see a broken connection and not
    the refusal."""
    size, more = 0, True
    while more and size < _PATIENCE:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = sentence.encode("utf-8")
    log.info("refused a request (%d): %s", status, sentence)
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"),
                            (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


def _path(scope: dict[str, Any]) -> str:
    return scope["path"].rstrip("/")


def _session(scope: dict[str, Any]) -> str | None:
    """The session whose results a request waits for; None for other requests."""
    if scope["method"] != "GET":
        return None
    if _path(scope) == RESULTS:
        return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])), None)
    return _path(scope).rpartition("/")[2] if _path(scope).startswith(CALL) else None


def _held(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # deleted meanwhile
            continue
    return total
