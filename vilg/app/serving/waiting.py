"""What all endpoints share: which model is meant, putting work into the queue, waiting for its result."""
import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from vilg.app.serving.engine import Busy, Engine, Ticket
from vilg.app.serving.errors import ApiError
from vilg.errors import VilgError

POLL_SECONDS = 0.1
log = logging.getLogger("vilg.serving")


class Waiting:
    """Endpoints over one engine; ``seconds``: what a request may take in all."""

    def __init__(self, engine: Engine, seconds: float):
        self.engine, self.seconds = engine, seconds
        self.draining = False

    def model(self, name: str | None, kind: type, what: str) -> Any:
        """The model of that name, or the first of its kind. Raises ApiError 404 for one that is not loaded."""
        models = self.engine.models
        if name is None:
            found = next((model for model in models.values() if isinstance(model, kind)), None)
            if found is None:
                raise ApiError(404, f"no model is loaded that {what}", "model", "model_not_found")
            return found
        if name not in models:
            raise ApiError(404, f"the model {name!r} is not loaded; there are {', '.join(models)}", "model",
                           "model_not_found")
        if not isinstance(models[name], kind):
            raise ApiError(400, f"the model {name!r} is none that {what}", "model", "invalid_model")
        return models[name]

    def submit(self, put: Callable[[], Ticket]) -> Ticket:
        """``put()``, which puts something into the engine's queue. Raises ApiError where that is full or ending."""
        if self.draining:
            raise ending()
        try:
            return put()
        except Busy as busy:
            raise ApiError(429, str(busy), None, "queue_full", retry_after=1) from None
        except VilgError as error:
            raise ApiError(400, str(error)) from None

    async def result(self, ticket: Ticket, request: Request) -> Any:
        """The ticket's result, as long as the client is there and in time."""
        future, until = asyncio.wrap_future(ticket.future), time.monotonic() + self.seconds
        try:
            while not future.done():
                await asyncio.wait([future], timeout=POLL_SECONDS)
                if future.done():
                    break
                if time.monotonic() > until:
                    raise late(self.seconds)
                if await request.is_disconnected():
                    raise ApiError(499, "the client has gone")
            if future.cancelled():
                raise ending()
            return future.result()
        except asyncio.CancelledError:
            if self.draining:  # the time that what is drawn has to come to its end is over
                raise ending() from None
            raise
        except (VilgError, MemoryError) as error:
            raise refusal(error) from None
        finally:
            if not future.done():
                ticket.cancel()


def of_field(call: Callable[[], Any], names: list[str]) -> Any:
    """``call()``, whose VilgError is about the one of ``names`` that it speaks of first."""
    try:
        return call()
    except VilgError as error:
        said = str(error)
        name = min(names, key=lambda name: said.find(name) % (len(said) + 1))  # what is not there counts as its end
        raise ApiError(400, f"{name}: {error}", name, "invalid_value") from None


def sse(content: dict[str, Any], named: bool = True) -> bytes:
    """An event of a stream."""
    name = f"event: {content['type']}\n" if named else ""
    return f"{name}data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def usage(read: int, written: int, chat: bool = False) -> dict[str, Any]:
    """Tokens that were read and written, as the image endpoints say it, or chat."""
    if chat:
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written,
            "input_tokens_details": {"text_tokens": read, "image_tokens": 0}}


def late(seconds: float) -> ApiError:
    """The refusal of a request that took too long."""
    return ApiError(504, f"it took longer than {seconds:g} seconds", None, "timeout")


def ending() -> ApiError:
    """The refusal of a server that is asked to end."""
    return ApiError(503, "the server is ending", None, "server_ending", retry_after=5)


def refusal(error: Exception) -> ApiError:
    """What a client is told of work that failed: what it can mend, or that it is not to blame."""
    if isinstance(error, VilgError):
        return ApiError(400, str(error))
    if isinstance(error, MemoryError):
        return ApiError(503, "there is not enough memory for it now", None, "out_of_memory", retry_after=5)
    log.error("a request failed", exc_info=error)
    return ApiError(500, f"the server failed ({type(error).__name__}); its log says why")
