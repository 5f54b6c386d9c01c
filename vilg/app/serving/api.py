"""The server's endpoints: OpenAI's for pictures, chat and vectors, and our own for ranking and search."""
import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from vilg.app.search import SearchIndex
from vilg.app.serving import fields, hub
from vilg.app.serving.drawing import DrawingApi
from vilg.app.serving.engine import Engine
from vilg.app.serving.errors import ApiError, from_validation
from vilg.app.serving.figures import Figures
from vilg.app.serving.words import WordsApi


class Api(WordsApi, DrawingApi):
    """All endpoints over one engine."""

    def __init__(self, engine: Engine, indexes: dict[str, SearchIndex] | None = None, seconds: float = 300.0):
        super().__init__(engine, seconds, indexes or {})
        self.figures = Figures(engine)


def build(api: Api) -> FastAPI:
    """The app with all routes; OpenAPI's description is at /openapi.json, a page to try it at /docs."""
    app = FastAPI(title="vilg", description="Draws pictures from Chinese text, describes them and answers about them; "
                                            "the endpoints under /v1 that OpenAI has too take its clients.")
    for add in (_add_openai, _add_models, _add_own, hub.add_routes, _add_state, _add_handlers):
        add(app, api)
    return app


def _add_openai(app: FastAPI, api: Api) -> None:
    @app.post("/v1/images/generations")
    async def generations(body: fields.Drawn, request: Request) -> Response:
        """Draw pictures from a text."""
        return await api.generate(body, request)

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        """Draw a picture anew where it, or its mask, is transparent (multipart form: image, mask, prompt …)."""
        body, image, mask = await edit_form(request)
        known = await asyncio.to_thread(api.edit_of, body, image, mask)
        return await api.generate(body, request, known, "image_edit")

    @app.post("/v1/chat/completions")
    async def chat(body: fields.Chat, request: Request) -> Response:
        """Describe a picture, or answer a question about it."""
        return await api.chat(body, request)

    @app.post("/v1/embeddings")
    async def embeddings(body: fields.Embeddings, request: Request) -> Response:
        """Vectors of texts or pictures."""
        return await api.embed(body, request)


def _add_own(app: FastAPI, api: Api) -> None:
    @app.post("/v1/rank")
    async def rank(body: fields.Rank, request: Request) -> Response:
        """Scores of texts and pictures."""
        return await api.rank(body, request)

    @app.post("/v1/search")
    async def search(body: fields.Search, request: Request) -> Response:
        """Pictures of an index."""
        return await api.search(body, request)


def _add_models(app: FastAPI, api: Api) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that are loaded."""
        return {"object": "list", "data": [_about(name) for name in api.engine.models]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        api.model(name, object, "is there")
        return _about(name)


def _add_state(app: FastAPI, api: Api) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """Does the process answer?"""
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz")
    async def readyz() -> Response:
        """Are the models loaded, and does it take requests?"""
        ready = api.engine.is_ready and not api.draining
        return Response("ready\n" if ready else "not ready\n", 200 if ready else 503, media_type="text/plain")

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(api.figures.text(), media_type="text/plain; version=0.0.4")


def _add_handlers(app: FastAPI, _: Api) -> None:
    """What clients are told when something is wrong."""
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(hub.told(request.url.path, error), error.status, error.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse(hub.told(request.url.path, wrong_field(error.errors())), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = {404: f"there is no {request.url.path[:80]} here; /docs lists what there is",
                   405: f"{request.method} is not what {request.url.path[:80]} takes"}.get(error.status_code,
                                                                                          str(error.detail))
        return JSONResponse(hub.told(request.url.path, ApiError(error.status_code, message)), error.status_code)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        problem = ApiError(500, f"the server failed ({type(error).__name__}); its log says why")
        return JSONResponse(hub.told(request.url.path, problem), 500)


def _about(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "vilg"}


async def edit_form(request: Request) -> tuple[fields.Drawn, bytes, bytes | None]:
    """The fields and files of an edit. Raises ApiError naming the field."""
    if "multipart/form-data" not in request.headers.get("content-type", ""):
        raise ApiError(400, "an edit comes as multipart/form-data with the files image and mask", None, "invalid_form")
    try:
        form = await request.form(max_files=2, max_fields=40)
    except HTTPException as error:
        raise ApiError(400, f"the form cannot be read ({error.detail})", None, "invalid_form") from None
    given, files = {}, {}
    for name, value in form.multi_items():
        if hasattr(value, "read"):
            if name not in ("image", "mask"):
                raise ApiError(400, f"there is no file {name!r} here", name, "unknown_parameter")
            files[name] = await value.read()
        else:
            given[name] = value
    if "image" not in files:
        raise ApiError(400, "the file 'image' is missing", "image", "missing_required_parameter")
    try:
        # What a form holds is all text: numbers are read as JSON has them.
        return fields.Drawn.model_validate_strings(given, strict=False), files["image"], files.get("mask")
    except ValidationError as error:
        raise wrong_field(error.errors()) from None


def wrong_field(problems: list[Any]) -> ApiError:
    """The first of pydantic's problems, which may be one of a field beside another."""
    inner = (problems[0].get("ctx") or {}).get("error")
    if isinstance(inner, fields.VilgFieldError):
        return ApiError(400, f"{inner.field}: {inner}", inner.field, "invalid_value")
    return from_validation(problems)
