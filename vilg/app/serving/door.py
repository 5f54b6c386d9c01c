"""Who and what is let in to the server: hosts by their own names, keys, bodies of a bearable size."""
import asyncio
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
LARGEST_BODY, ALL_BODIES = 32 * MEGABYTE, 512 * MEGABYTE
"""Bytes of a request, and of all that are on their way."""
BODY_SECONDS = 60.0
"""That a body may take to come."""
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
                 largest: int = LARGEST_BODY, seconds: float = BODY_SECONDS,
                 observe: Callable[[str, int, float], None] | None = None):
        self.app, self.names, self.keys, self.observe = app, Names(host), keys, observe
        self.largest, self.seconds, self.coming = largest, seconds, 0
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
            refusal, length = self._refusal(scope)
            if refusal is None:
                self.coming += length
                try:
                    await self._limited(scope, receive, noted)
                finally:
                    self.coming -= length
            else:
                await _drain(receive, self.largest)
                await _answer(noted, refusal)
        finally:
            seconds = time.monotonic() - began
            log.info(json.dumps({"method": scope["method"], "path": scope["path"], "status": status,
                                 "ms": round(1000 * seconds, 1)}))
            if self.observe is not None:
                self.observe(scope["path"], status, seconds)

    def _refusal(self, scope: dict[str, Any]) -> tuple[ApiError | None, int]:
        """Why a request is not let in, if so, and the bytes that its body may have."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self.keys and not self.names.own(headers.get("host", "")):  # a key is no other website's to send
            return ApiError(403, "this name is not the server's; ask it by the address that it printed, or tell it of "
                                 "the name with --allow-host"), 0
        if self.names.foreign(scope["method"], headers):
            return ApiError(403, "pages of other websites may not use this server"), 0
        if self.keys and scope["path"] not in OPEN_PATHS and not self._known(headers.get("authorization", "")):
            return ApiError(401, "a key is wanted: send Authorization: Bearer KEY", None, "invalid_api_key"), 0
        said = headers.get("content-length", str(self.largest) if "transfer-encoding" in headers else "0")
        if not (said.isascii() and said.isdigit() and len(said) < 20 and int(said) <= self.largest):
            return self._too_large(), 0
        if self.coming + int(said) > ALL_BODIES:
            return ApiError(429, "too many large bodies are on their way; try again in a while", None,
                            "too_many_bodies", retry_after=1), 0
        return None, int(said)

    def _known(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        shown = _digest(key.strip())
        return kind.lower() == "bearer" and any([hmac.compare_digest(shown, one) for one in self.keys])

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.largest // MEGABYTE} MB", None, "body_too_large")

    async def _limited(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Send) -> None:
        """The app, for which the client has gone when its body is over ``largest`` bytes, however it announced itself,
        or not there in time."""
        size, begun, whole = 0, False, False
        problem: ApiError | None = None
        until = time.monotonic() + self.seconds

        async def counted() -> dict[str, Any]:
            nonlocal size, whole, problem
            try:
                message = await asyncio.wait_for(receive(), None if whole else until - time.monotonic())
            except asyncio.TimeoutError:
                problem = ApiError(408, f"the body did not come within {self.seconds:g} seconds", None, "body_too_late")
                return {"type": "http.disconnect"}
            size += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            if size > self.largest:
                problem = self._too_large()
            return message if problem is None else {"type": "http.disconnect"}

        async def guarded(message: dict[str, Any]) -> None:
            nonlocal begun
            if problem is not None and not begun:
                return
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except Exception:
            if problem is None:
                raise
        if problem is not None and not begun:
            if problem.status == 413:
                await _drain(receive, self.largest)
            await _answer(send, problem)


async def _drain(receive: Callable[[], Awaitable[dict]], most: int) -> None:
    """Let a body go by, so that a client that still sends sees the refusal and not a broken connection."""
    size, more = 0, True
    while more and size < 2 * most:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)


async def _answer(send: Send, error: ApiError) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close"), *((name.lower().encode(), value.encode())
                                            for name, value in error.headers().items())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
