"""PaddleHub's serving: ``POST /predict/ernie_vilg``, as its clients know it, by the same engine."""
import asyncio
import json
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from vilg.app.inputs import LARGEST_SEED
from vilg.app.pipeline import Pipeline
from vilg.app.serving.drawing import DrawingApi
from vilg.app.serving.errors import ApiError
from vilg.app.serving.fields import MOST_PICTURES, Drawn, SamplingFields, Text
from vilg.app.styles import RESOLUTIONS, STYLES, styled

MODULE = "ernie_vilg"
MOST_PROMPTS = 16
DONE, FAILED = "000", "101"
"""PaddleHub's statuses of a result and of inputs that its module refused."""


class Prompts(SamplingFields):
    """What the module's ``serving_method`` takes; ``topk`` is its number of pictures."""

    text_prompts: Text | list[Text] = Field(min_length=1)
    style: Literal[STYLES] | None = None  # type: ignore[valid-type]
    resolution: Literal[RESOLUTIONS] | None = None  # type: ignore[valid-type]
    topk: int | None = Field(6, ge=1, le=MOST_PICTURES)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    visualization: bool | None = None
    output_dir: str | None = None

    def drawings(self, pipeline: Pipeline) -> list[Drawn]:
        """A request for pictures a prompt."""
        prompts = [self.text_prompts] if isinstance(self.text_prompts, str) else self.text_prompts
        if len(prompts) > MOST_PROMPTS:
            raise ApiError(400, f"text_prompts: {len(prompts)} are more than the {MOST_PROMPTS} of a request",
                           "text_prompts", "invalid_value")
        settings = {name: getattr(self, name) for name in SamplingFields.model_fields}
        return [Drawn(prompt=styled(pipeline, prompt, self.style or STYLES[0]), model=pipeline.name,
                      n=self.topk or 6, seed=self.seed, **settings) for prompt in prompts]


def add_routes(app: FastAPI, api: DrawingApi) -> None:
    """The module's route in ``app``. As PaddleHub has it, an answer says ``status``, ``msg`` and ``results``: a base64
    PNG a picture, one prompt after the other. ``resolution``, ``visualization`` and ``output_dir`` have no effect."""

    @app.post(f"/predict/{MODULE}")
    async def predict(body: Prompts, request: Request) -> Response:
        """PaddleHub's ernie_vilg: text_prompts, style, topk, seed."""
        jobs = [asyncio.ensure_future(api.generate(one, request))
                for one in body.drawings(api.model(None, Pipeline, "draws"))]
        try:
            answers = await asyncio.gather(*jobs)
        finally:
            for job in jobs:  # with one that failed the others are not wanted
                job.cancel()
        pictures = [one["b64_json"] for answer in answers for one in json.loads(answer.body)["data"]]
        return JSONResponse({"status": DONE, "msg": "", "results": pictures})


def told(path: str, error: ApiError) -> dict[str, Any]:
    """The body that tells a client of ``path`` of an error: in the form of PaddleHub, or of OpenAI."""
    if not path.startswith("/predict/"):
        return error.body()
    return {"status": FAILED, "msg": error.message.replace("prompt:", "text_prompts:", 1), "results": ""}
