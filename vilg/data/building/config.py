"""How raw pairs become shards: the rules with their thresholds, translation, clicks, and how large things are."""
import dataclasses
import json
from dataclasses import field
from typing import Any, Literal

from vilg.config import configclass, to_dict
from vilg.data.filtering.pictures import PictureRulesConfig
from vilg.data.filtering.texts import TextRulesConfig


@configclass
class SimilarityConfig:
    """Captions more similar to their image than ``more_than``, by the calibrated dual encoder ``model``."""

    model: str
    more_than: float = 0.5

    def __post_init__(self):
        if not 0 <= self.more_than < 1:
            raise ValueError("more_than lies from 0 to below 1")


@configclass
class NearImagesConfig:
    """Images that look like an earlier one: candidates by a perceptual hash that differs in at most ``bits`` of 64,
    confirmed by ``confirm``: *pixels*, no pixel of their 16 × 16 thumbnails further apart than ``apart`` (of 255), or
    *embeddings*, the similarity rule's model, whose cosine is at least ``cosine``."""

    bits: int = 8
    confirm: Literal["pixels", "embeddings"] = "pixels"
    apart: int = 24
    cosine: float = 0.97

    def __post_init__(self):
        if not 0 <= self.bits <= 16:
            raise ValueError("bits lies from 0 to 16, beyond which candidates are not found")
        if not 0 <= self.apart <= 255 or not 0 < self.cosine <= 1:
            raise ValueError("apart lies from 0 to 255, cosine above 0 and at most 1")


@configclass
class NearTextsConfig:
    """Captions like an earlier, other one: at least the share ``alike`` of the shingles of both is in both. Captions
    that are the same are the matter of ``frequency``."""

    alike: float = 0.8

    def __post_init__(self):
        if not 0.6 <= self.alike <= 1:
            raise ValueError("alike lies from 0.6, below which MinHash misses too many, to 1")


@configclass
class RulesConfig:
    """The rules in their order; null or false turns one off. ``frequency``: images that a caption may have at most."""

    pictures: PictureRulesConfig = field(default_factory=PictureRulesConfig)
    texts: TextRulesConfig = field(default_factory=TextRulesConfig)
    similarity: SimilarityConfig | None = None
    frequency: int | None = 10
    same_bytes: bool = True
    same_pixels: bool = True
    near_images: NearImagesConfig | None = None
    near_texts: NearTextsConfig | None = None

    def __post_init__(self):
        if self.frequency is not None and self.frequency < 1:
            raise ValueError("frequency is at least 1, or null for any number of images")
        if self.near_images and self.near_images.confirm == "embeddings" and not self.similarity:
            raise ValueError("near_images.confirm: embeddings are those of the similarity rule's model, and there is "
                             "no similarity rule")


@configclass
class TranslateConfig:
    """Captions through a class of yours, ``module:Class``, made with ``options`` once a worker, whose
    ``translate(texts: list[str]) -> list[str]`` gets ``batch`` of them at once. After ``failures`` rows in a row that
    it failed on the build stops."""

    worker: str
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 64
    failures: int = 20

    def __post_init__(self):
        if self.batch < 1 or self.failures < 1:
            raise ValueError("batch and failures are at least 1")


@configclass
class ClicksConfig:
    """A log of (query, image, clicks): a .tsv with a header or a .parquet, ``path`` a file or pattern, with the names
    of its columns; ``image`` holds an input sample's key, or its ``url``. Clicks of the same query and image are added
    up; queries of at least ``least`` are captions of that image, the ``most`` of most clicks."""

    path: str
    query: str = "query"
    image: str = "key"
    clicks: str = "clicks"
    least: int = 3
    most: int = 5

    def __post_init__(self):
        if self.least < 1 or self.most < 1:
            raise ValueError("least and most are at least 1")


@configclass
class BuildConfig:
    """A build. ``images`` false: rows of text alone. ``size``: samples a shard, or fewer, so that all are level.

    ``part_rows``: rows of a part where the input is no tar; ``batch``: samples at once in a worker, which the dual
    encoder sees together; ``max_bad_parts``: share of parts that may be unreadable, a single one at any share above 0;
    ``rows_at_once``: how many rows of hashes the engine groups at once (memory: about 100 bytes each).
    """

    rules: RulesConfig = field(default_factory=RulesConfig)
    images: bool = True
    translate: TranslateConfig | None = None
    clicks: ClicksConfig | None = None
    size: int = 1000
    part_rows: int = 10_000
    batch: int = 64
    max_bad_parts: float = 0.01
    rows_at_once: int = 200_000

    def __post_init__(self):
        for name in ("size", "part_rows", "batch", "rows_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1")
        if not 0 <= self.max_bad_parts <= 1:
            raise ValueError("max_bad_parts is a share from 0 to 1")
        wants = [name for name in ("similarity", "near_images") if getattr(self.rules, name)]
        if not self.images and wants:
            raise ValueError(f"rules.{wants[0]} looks at images, and images is false")


RUNNING = ("batch", "rows_at_once", "max_bad_parts")
"""Settings that change how a build runs and not what it makes."""


def identity(config: BuildConfig) -> dict[str, Any]:
    """What of a config decides about the result, as plain values."""
    return {name: value for name, value in to_dict(config).items() if name not in RUNNING}


def thresholds(config: BuildConfig) -> dict[str, Any]:
    """Every rule that is on, with its threshold, in the order in which they are applied."""
    rules = config.rules
    found: dict[str, Any] = {"damaged": None}
    if config.images:
        pictures = rules.pictures
        found |= {"pixels": to_dict(pictures.pixels), "sides": to_dict(pictures.sides), "aspect": pictures.aspect}
    if config.translate:
        found["translation"] = config.translate.worker
    texts = to_dict(rules.texts)
    found |= {name: texts[name] for name in ("special", "words", "noun", "script", "blocked") if texts[name]}
    if rules.similarity:
        found |= {"similarity": rules.similarity.more_than, "unread": None}
    found["frequency"] = rules.frequency
    if config.images:
        found |= {name: True for name in ("same_bytes", "same_pixels") if getattr(rules, name)}
    for name in ("near_images", "near_texts"):
        if part := getattr(rules, name):
            found[name] = dataclasses.asdict(part)
    return {name: value for name, value in found.items() if value is not None or name in ("damaged", "unread")}


def canonical(values: Any) -> bytes:
    """Plain values as the same bytes wherever they are written, to be hashed."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False).encode()
