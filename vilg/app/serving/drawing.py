"""Drawing for clients: pictures from texts, and anew where a given one is transparent, whole or as they grow."""
import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import Request

from vilg.app.pipeline import Pipeline
from vilg.app.growing import pictures_so_far
from vilg.app.inputs import LARGEST_SEED
from vilg.app.serving import fields
from vilg.app.serving.engine import Drawing, Ticket
from vilg.app.serving.errors import ApiError
from vilg.app.serving.pictures import as_png, from_bytes, kept_tokens
from vilg.app.serving.waiting import POLL_SECONDS, Waiting, ending, late, of_field, refusal, sse, usage
from vilg.generation.mask_predict import check_steps
from vilg.models.two_level.model import TwoLevelTransformer

Tell = Callable[[int, int, Callable[[], np.ndarray]], None]
"""Is told how many parts of how many are drawn, and how to make the picture of them."""


class DrawingApi(Waiting):
    """Both image endpoints."""

    async def generate(self, body: fields.Drawn, request: Request,
                       known: tuple[np.ndarray, np.ndarray] | None = None, event: str = "image_generation") -> Response:
        """Draw from a text; ``known``: a picture [H, W, 3] and the tokens of it that are kept [n]."""
        pipeline = self.model(body.model, Pipeline, "draws")
        size = pipeline.image_tokenizer.image_size
        if body.size not in (None, "auto", f"{size}x{size}"):
            raise ApiError(400, f"size: {pipeline.name} draws {size}x{size}, not {body.size[:20]!r}", "size",
                           "invalid_value")
        if body.n > self.engine.rows:
            raise ApiError(400, f"n: at most {self.engine.rows} pictures are drawn at a time, not {body.n}", "n",
                           "invalid_value")
        sampling = of_field(lambda: pipeline.sampling.over(body.sampling(), pipeline.name),
                             list(fields.SamplingFields.model_fields))
        encoded = of_field(lambda: pipeline.text_tokenizer.encode_prompts(
            [body.prompt], pipeline.model.config.text_length, strict=True), ["prompt"])
        seed = secrets.randbelow(LARGEST_SEED) if body.seed is None else body.seed
        said = {"size": f"{size}x{size}", "quality": "auto", "background": "opaque", "output_format": "png",
                "seed": seed, "model": pipeline.name}
        if encoded.unknown[0]:
            said["unknown_words"] = " ".join(encoded.unknown[0])
        partial: asyncio.Queue = asyncio.Queue()
        tell = _teller(partial, body.partial_images) if body.stream and body.partial_images != 0 else None
        if isinstance(pipeline.model, TwoLevelTransformer):
            of_field(lambda: check_steps(sampling.steps, *pipeline.image_tokenizer.grid), ["steps"])
            ticket = self._masked(pipeline, body, seed, sampling, known, tell)
        else:
            drawing = Drawing(pipeline, encoded.ids[0], int(encoded.length[0]), body.n, seed, sampling, known)
            if tell is not None:
                rows, columns = pipeline.image_tokenizer.grid
                drawing.on_row = lambda codes: tell(len(codes) // columns, rows, lambda: pictures_so_far(drawing)[0])
            ticket = self.submit(lambda: self.engine.draw(drawing))
        said["usage"] = usage(int(encoded.length[0]) - 2, body.n * pipeline.model.layout.image)
        if body.stream:
            return StreamingResponse(self._stream(ticket, partial, said, event), media_type="text/event-stream")
        drawn = await self.result(ticket, request)
        data = [{"b64_json": png} for png in await asyncio.to_thread(lambda: [as_png(one) for one in drawn])]
        return JSONResponse({"created": int(time.time()), "data": data, **said})

    def _masked(self, pipeline: Pipeline, body: fields.Drawn, seed: int, sampling: Any,
                known: tuple[np.ndarray, np.ndarray] | None, tell: Tell | None) -> Ticket:
        """Mask-predict: requests of equal settings are drawn together."""
        settings = vars(sampling)
        alone = known is not None or tell is not None
        key = ("masked", id(pipeline), body.n, *settings.values(), secrets.token_hex(8) if alone else "")

        def run(items: list[tuple[str, int]], check: Callable[[], None]) -> list[np.ndarray]:
            grid = pipeline.image_tokenizer.grid
            kept = {} if known is None else {"known_image": known[0], "known_mask": known[1].reshape(grid)}
            seen = {} if tell is None else {
                "after_step": lambda step, pictures: tell(step + 1, sampling.steps, lambda: pictures[0])}
            rows = pipeline.text_to_image([prompt for prompt, _ in items], body.n, [seed for _, seed in items],
                                          progress=check, **kept, **seen, **settings)
            return [np.stack([np.asarray(picture) for picture in row]) for row in rows]

        return self.submit(lambda: self.engine.call(key, (body.prompt, seed), run))

    async def _stream(self, ticket: Ticket, partial: asyncio.Queue, said: dict[str, Any], event: str
                      ) -> AsyncIterator[bytes]:
        """Events: the pictures of ``partial``, and the whole one."""
        future, sent = asyncio.wrap_future(ticket.future), 0
        until = time.monotonic() + self.seconds
        spent = said.pop("usage")
        try:
            while not future.done() or not partial.empty():
                if time.monotonic() > until:
                    raise late(self.seconds)
                getter = asyncio.ensure_future(partial.get())
                await asyncio.wait([getter, future], timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not getter.done():
                    getter.cancel()
                    continue
                yield sse({"type": f"{event}.partial_image", "partial_image_index": sent,
                           "created_at": int(time.time()), **said,
                           "b64_json": await asyncio.to_thread(as_png, getter.result())})
                sent += 1
            if future.cancelled():
                raise ending()
            whole = await asyncio.to_thread(as_png, future.result()[0])
            yield sse({"type": f"{event}.completed", "b64_json": whole, "created_at": int(time.time()), **said,
                          "usage": spent})
        except Exception as error:  # the answer has begun, so that this is the only way to tell
            wrong = error if isinstance(error, ApiError) else refusal(error)
            yield sse({"type": "error", **wrong.body()})
        finally:
            if not future.done():
                ticket.cancel()

    def edit_of(self, body: fields.Drawn, image: bytes, mask: bytes | None) -> tuple[np.ndarray, np.ndarray]:
        """What an edit keeps: the picture, and the tokens of it under nothing transparent."""
        pipeline = self.model(body.model, Pipeline, "draws")
        picture = from_bytes(image, "image")
        size, (rows, columns) = pipeline.image_tokenizer.image_size, pipeline.image_tokenizer.grid
        if mask is None:
            return picture, kept_tokens(image, "image", rows, columns, size)
        return picture, kept_tokens(mask, "mask", rows, columns, size)


def _chosen(parts: int, most: int | None) -> set[int]:
    """After which of ``parts`` steps or rows a picture is shown: all but the last, or at most ``most`` of them."""
    if most is None or most >= parts - 1:
        return set(range(1, parts))
    return {-(-parts * number // (most + 1)) for number in range(1, most + 1)}


def _teller(queue: asyncio.Queue, most: int | None) -> Tell:
    """Puts the pictures that are to be shown into the queue, from another thread."""
    loop = asyncio.get_running_loop()

    def tell(done: int, parts: int, picture: Callable[[], np.ndarray]) -> None:
        if done in _chosen(parts, most):
            loop.call_soon_threadsafe(queue.put_nowait, picture())

    return tell
