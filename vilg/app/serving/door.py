"""Who and what is let in to the server: hosts by their own names, keys, bodies of a bearable size."""
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from vilg.app.gate import Names
from vilg.app.serving.errors import ApiError
from vilg.errors import VilgError

MEGABYTE = 2 ** 20
LARGEST_BODY = 32 * MEGABYTE
OPEN_PATHS = ("/healthz", "/readyz")
"""What is answered without a key: a load balancer asks it."""
log = logging.getLogger("vilg.serving.access")
Send = Callable[[dict[str, Any]], Awaitable[None]]


def read_keys(file: str | Path) -> list[bytes]:
    """The digests of a file's keys, one a line; lines with # are remarks. Raises VilgError."""
    try:
        lines = [line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise VilgError(f"{file}: cannot be read ({error}); name a file with a key a line by --api-key-file") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise VilgError(f"{file}: holds no key; write one a line")
    return [_digest(key) for key in keys]


class Door:
    """ASGI middleware around ``app``. ``keys``: digests of which one must be shown, none for an open door;
    ``also``: further names of the host."""

    def __init__(self, app: Any, host: str, keys: list[bytes], also: list[str] | None = None,
                 largest: int = LARGEST_BODY, observe: Callable[[str, int, float], None] | None = None):
        self.app, self.names, self.keys, self.largest, self.observe = app, Names(host), keys, largest, observe
        self.names.names |= {name.lower() for name in also or []}

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Send) -> None:
        """Serve one request, or refuse it; one line of the log a request, without what it says."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # a client that has gone before the answer

        async def noted(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._limited(scope, receive, noted)
            else:
                await _drain(receive, self.largest)
                await _answer(noted, refusal)
        finally:
            seconds = time.monotonic() - began
            log.info(json.dumps({"method": scope["method"], "path": scope["path"], "status": status,
                                 "ms": round(1000 * seconds, 1)}))
            if self.observe is not None:
                self.observe(scope["path"], status, seconds)

    def _refusal(self, scope: dict[str, Any]) -> ApiError | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self.keys and not self.names.own(headers.get("host", "")):  # a key is no other website's to send
            return ApiError(403, "this name is not the server's; ask it by the address that it printed, or tell it of "
                                 "the name with --allow-host")
        if self.names.foreign(scope["method"], headers):
            return ApiError(403, "pages of other websites may not use this server")
        if self.keys and scope["path"] not in OPEN_PATHS and not self._known(headers.get("authorization", "")):
            return ApiError(401, "a key is wanted: send Authorization: Bearer KEY", None, "invalid_api_key")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= self.largest):
            return self._too_large()
        return None

    def _known(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        shown = _digest(key.strip())
        return kind.lower() == "bearer" and any([hmac.compare_digest(shown, one) for one in self.keys])

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.largest // MEGABYTE} MB", None, "body_too_large")

    async def _limited(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Send) -> None:
        """The app, whose request ends after ``largest`` bytes however it announced itself."""
        size, begun, over = 0, False, False

        async def counted() -> dict[str, Any]:
            nonlocal size, over
            message = await receive()
            size += len(message.get("body", b""))
            over = over or size > self.largest
            return {"type": "http.disconnect"} if over else message

        async def guarded(message: dict[str, Any]) -> None:
            nonlocal begun
            if over and not begun:
                return
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except Exception:
            if not over:
                raise
        if over and not begun:
            await _drain(receive, self.largest)
            await _answer(send, self._too_large())


async def _drain(receive: Callable[[], Awaitable[dict]], most: int) -> None:
    """Let a body go by, so that a client that still sends sees the refusal and not a broken connection."""
    size, more = 0, True
    while more and size < 2 * most:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)


async def _answer(send: Send, error: ApiError) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
