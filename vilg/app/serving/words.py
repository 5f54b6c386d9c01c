"""Words and vectors for clients: descriptions, answers, embeddings, ranks, hits of a search."""
import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import Request

from vilg.app.dual_encoder import Matcher
from vilg.app.inputs import LONGEST_TEXT
from vilg.app.pipeline import Pipeline
from vilg.app.search import SearchIndex, search_images, search_texts
from vilg.app.serving import fields
from vilg.app.serving.engine import Engine
from vilg.app.serving.errors import ApiError
from vilg.app.serving.pictures import from_data_address, is_data_address
from vilg.app.serving.waiting import Waiting, of_field, sse, usage

ANSWERED = ("？", "?")
"""A text that ends so is a question about the picture; any other asks for a description."""


class WordsApi(Waiting):
    """``indexes``: by the name of the model that they were built by."""

    def __init__(self, engine: Engine, seconds: float, indexes: dict[str, SearchIndex]):
        super().__init__(engine, seconds)
        self.indexes = indexes

    async def chat(self, body: fields.Chat, request: Request) -> Response:
        """Describe the conversation's last picture, or answer the last question about it."""
        pipeline = self.model(body.model, Pipeline, "looks at pictures")
        text, picture = _asked(body)
        most = body.max_completion_tokens or body.max_tokens
        words, length = pipeline.text_tokenizer, pipeline.model.config.text_length
        if text.endswith(ANSWERED):
            of_field(lambda: words.encode_questions([text], None, length, strict=True), ["messages"])
            ticket = self.submit(lambda: self.engine.call(("answer", id(pipeline)), (picture, text), (
                lambda items, _: pipeline.answer([one for one, _ in items], [asked for _, asked in items]))))
        else:
            ticket = self.submit(lambda: self.engine.call(("describe", id(pipeline), most), picture, (
                lambda items, _: pipeline.image_to_text(items, most))))
        said = await self.result(ticket, request)
        read, written = (int(words.encode_batch([each], length).length[0]) - 2 if each else 0 for each in (text, said))
        spent = usage(read, written, chat=True)
        story = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": pipeline.name}
        if body.stream:
            return StreamingResponse(_chat_stream(said, story), media_type="text/event-stream")
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return JSONResponse({**story, "object": "chat.completion", "choices": [choice], "usage": spent})

    async def embed(self, body: fields.Embeddings, request: Request) -> Response:
        """Vectors of texts or pictures."""
        matcher = self.model(body.model, Matcher, "makes vectors")
        inputs = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(inputs) <= fields.MOST_INPUTS:
            raise ApiError(400, f"input: 1 to {fields.MOST_INPUTS} texts or pictures, not {len(inputs)}", "input",
                           "invalid_value")
        width = matcher.model.config.vector_width
        if body.dimensions not in (None, width):
            raise ApiError(400, f"dimensions: {matcher.name} has {width}, not {body.dimensions}", "dimensions",
                           "invalid_value")
        pictures = {number: await asyncio.to_thread(from_data_address, one, f"input.{number}")
                    for number, one in enumerate(inputs) if is_data_address(one)}
        texts = {number: one for number, one in enumerate(inputs) if number not in pictures}
        spent = sum(self._readable(matcher, one, f"input.{number}") for number, one in texts.items())
        vectors: dict[int, np.ndarray] = {}
        for kind, given, look in (("texts", texts, matcher.embed_text), ("pictures", pictures, matcher.embed_image)):
            if given:
                ticket = self.submit(lambda kind=kind, given=given, look=look: self.engine.call(
                    (kind, id(matcher)), list(given.values()), lambda items, _: _in_one(look, items)))
                vectors |= zip(given, await self.result(ticket, request))
        data = [{"object": "embedding", "index": number, "embedding": (
            base64.b64encode(vector.astype("<f4").tobytes()).decode() if body.encoding_format == "base64"
            else vector.tolist())} for number, vector in sorted(vectors.items())]
        return JSONResponse({"object": "list", "data": data, "model": matcher.name,
                             "usage": {"prompt_tokens": spent, "total_tokens": spent}})

    def _readable(self, matcher: Matcher, text: str, name: str) -> int:
        """The tokens of a text that the model can read. Raises ApiError."""
        if len(text) > LONGEST_TEXT:
            raise ApiError(400, f"{name}: {len(text)} characters; {LONGEST_TEXT} are read at most", name,
                           "invalid_value")
        return int(of_field(lambda: matcher.read_texts([text]), [name]).length[0]) - 2

    async def rank(self, body: fields.Rank, request: Request) -> Response:
        """How well texts fit pictures: in 0–1 by a dual encoder, log P(text | image) by a model that draws."""
        model = self.model(body.model, (Matcher, Pipeline), "ranks")
        pictures = [await asyncio.to_thread(from_data_address, one, f"images.{number}")
                    for number, one in enumerate(body.images)]
        if isinstance(model, Matcher):
            for number, text in enumerate(body.texts):
                self._readable(model, text, f"texts.{number}")
        else:
            of_field(lambda: model.text_tokenizer.encode_prompts(body.texts, model.model.config.text_length,
                                                                  strict=True), ["texts"])
        score = model.similarity if isinstance(model, Matcher) else model.rank
        ticket = self.submit(lambda: self.engine.call(
            ("rank", secrets.token_hex(8)), (body.texts, pictures), lambda items, _: [score(*items[0])]))
        scores = await self.result(ticket, request)
        return JSONResponse({"model": model.name, "kind": "similarity" if isinstance(model, Matcher) else "log_p_text",
                             "scores": np.asarray(scores).tolist()})

    async def search(self, body: fields.Search, request: Request) -> Response:
        """The pictures of an index that fit a text, or look like a picture."""
        if not self.indexes:
            raise ApiError(404, "no index is loaded; start the server with --index DIR", None, "index_not_found")
        name = body.model or next(iter(self.indexes))
        if name not in self.indexes:
            raise ApiError(404, f"there is no index by the model {name!r}; there are {', '.join(self.indexes)}",
                           "model", "model_not_found")
        index, matcher = self.indexes[name], self.engine.models[name]
        if body.query is not None:
            self._readable(matcher, body.query, "query")
            least = {} if body.least is None else {"least": body.least}
            asked, look = body.query, lambda one: search_texts(index, matcher, [one], body.top_k, **least)
        else:
            least = {} if body.least is None else {"least": body.least}
            asked = await asyncio.to_thread(from_data_address, body.image, "image")
            look = lambda one: search_images(index, matcher, [one], body.top_k, **least)
        ticket = self.submit(lambda: self.engine.call(("search", secrets.token_hex(8)), asked,
                                                       lambda items, _: look(items[0])))
        hits = await self.result(ticket, request)
        return JSONResponse({"model": name, "data": [{"name": hit.name, "cosine": hit.cosine,
                                                      "similarity": hit.similarity} for hit in hits]})


def _in_one(look: Callable[[list[Any]], np.ndarray], items: list[list[Any]]) -> list[np.ndarray]:
    """``look`` at the things of all items in one call → the vectors [N, D] of each item."""
    vectors = look([one for item in items for one in item])
    ends = np.cumsum([len(item) for item in items])
    return np.split(vectors, ends[:-1])


def _asked(body: fields.Chat) -> tuple[str, np.ndarray]:
    """The last text of the user and the last picture of the conversation."""
    text, address = None, None
    for number, message in enumerate(body.messages):
        if message.role in ("system", "developer"):
            raise ApiError(400, f"messages.{number}: the model follows no instructions; leave out what is said as "
                           f"{message.role}", f"messages.{number}", "invalid_value")
        if message.role != "user":
            continue
        parts = message.content if isinstance(message.content, list) else [message.content]
        texts = [part if isinstance(part, str) else part.text for part in parts
                 if isinstance(part, (str, fields.TextPart))]
        text = "".join(texts).strip()
        for part in parts:
            if isinstance(part, fields.ImagePart):
                address = part.image_url.url
    if text is None:
        raise ApiError(400, "messages: there is none of the user", "messages", "invalid_value")
    if address is None:
        raise ApiError(400, "messages: there is no picture; put one in as an image_url with a data: address",
                       "messages", "invalid_value")
    return text, from_data_address(address, "messages")


async def _chat_stream(said: str, story: dict[str, Any]) -> AsyncIterator[bytes]:
    """The answer character by character, as OpenAI's chunks."""
    def chunk(delta: dict[str, Any], reason: str | None) -> bytes:
        return sse({**story, "object": "chat.completion.chunk",
                       "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}, named=False)

    yield chunk({"role": "assistant", "content": ""}, None)
    for character in said:
        yield chunk({"content": character}, None)
    yield chunk({}, "stop")
    yield b"data: [DONE]\n\n"
