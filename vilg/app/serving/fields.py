"""The fields of every request. What is not named here is refused, not ignored."""
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from vilg.app.inputs import LARGEST_SEED, LONGEST_TEXT
from vilg.config import settings_of
from vilg.generation.sampling import MaskPredictConfig, SamplingConfig

MOST_PICTURES = 10
"""Of one request, as OpenAI's."""
MOST_INPUTS = 256
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


class Body(BaseModel):
    """A JSON object without unknown fields, whose numbers are numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _sampling_fields() -> dict[str, Any]:
    """The settings of every way of drawing, all of them to be left out."""
    found: dict[str, Any] = {}
    for kind in (SamplingConfig, MaskPredictConfig):
        for one in settings_of(kind):
            of = Literal[one.choices] if one.choices else one.type  # type: ignore[valid-type]
            number = {"allow_inf_nan": False} if of is float else {}
            found[one.name] = (Annotated[of, Field(**number)] | None, Field(None, description=one.meaning))
    return found


SamplingFields = create_model("SamplingFields", __base__=Body, **_sampling_fields())
"""temperature, top_k, top_p, guidance …: the fields of the sampling dataclasses."""


class Drawn(SamplingFields):
    """What both image endpoints take."""

    prompt: Text
    model: str | None = None
    n: int = Field(1, ge=1, le=MOST_PICTURES)
    size: str | None = None
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    quality: Literal["auto", "standard"] | None = None
    user: str | None = None
    stream: bool = False
    partial_images: int | None = Field(None, ge=0, le=64)

    @model_validator(mode="after")
    def _one_stream(self) -> "Drawn":
        if self.stream and self.n != 1:
            raise VilgFieldError("n", "one picture is streamed at a time; leave n at 1")
        if self.partial_images and not self.stream:
            raise VilgFieldError("partial_images", "partial images come in a stream; say stream: true")
        return self

    def sampling(self) -> dict[str, Any]:
        """The sampling settings that were given."""
        return {name: value for name in SamplingFields.model_fields if (value := getattr(self, name)) is not None}


class VilgFieldError(ValueError):
    """A problem of one field that is seen beside another."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class ImageUrl(Body):
    """Where a picture is: in the address itself."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Body):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Body):
    """A text in a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None


class Chat(Body):
    """A conversation; the last question of the user is answered about the last picture."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=64)
    stream: bool = False
    max_tokens: int | None = Field(None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=4096)
    temperature: Literal[0, 0.0] | None = Field(None)
    n: Literal[1] | None = None
    user: str | None = None


class Embeddings(Body):
    """Texts, or pictures as ``data:`` addresses."""

    model: str
    input: str | list[str] = Field(max_length=2 ** 25)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Rank(Body):
    """Every text against every picture (``data:`` addresses)."""

    model: str
    texts: list[Text] = Field(min_length=1, max_length=64)
    images: list[str] = Field(min_length=1, max_length=64)


class Search(Body):
    """A text, or a picture as a ``data:`` address."""

    query: str | None = Field(None, max_length=LONGEST_TEXT)
    image: str | None = None
    model: str | None = None
    top_k: int = Field(10, ge=1, le=1000)
    least: float | None = Field(None, ge=-1, le=1)

    @model_validator(mode="after")
    def _either(self) -> "Search":
        if (self.query is None) == (self.image is None):
            raise VilgFieldError("query", "give either a query or an image")
        return self

