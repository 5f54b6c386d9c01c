"""A rater's page: one HTML file with its images inside, which needs no network."""
import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vilg.data.images import read_image
from vilg.data.sample import BrokenSample
from vilg.errors import DataError
from vilg.evaluation.human.kinds import FORMAT, KINDS, Item, salt_of

TEMPLATE = Path(__file__).with_name("page.html")
LARGEST = 640
"""Pixels a side that a page shows; larger images are made smaller."""
_TASKS = {"images": "这幅图是按下面的文字画的，请打分。Rate the picture that was drawn from this text.",
          "captions": "这句话是看图写的，请打分。Rate the sentence that was written about this picture.",
          "answers": "这是看图回答的问题，请判断。Judge the answer to the question about this picture."}


def picture(path: Path, exact: bool) -> bytes:
    """The image without what its file says of who drew it, as WebP: ``exact`` in every pixel, or small. Raises
    DataError naming it."""
    try:
        image = Image.fromarray(read_image(path, str(path)))
    except BrokenSample as broken:
        raise DataError(f"{broken}; save it again or leave the item out") from None
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=exact, quality=90)
    return buffer.getvalue()


def page(key: Mapping[str, Any], rater: int, shown: list[Item], pictures: Mapping[Path, bytes]) -> str:
    """The page of one rater. Trials name nothing but what is to be seen."""
    numbers = {path: number for number, path in enumerate(sorted({item.image for item in shown}))}
    kind = key["kind"]
    content = {
        "format": FORMAT, "kit": key["fingerprint"], "rater": rater, "salt": salt_of(key["fingerprint"], rater),
        "task": _TASKS[kind],
        "criteria": [{"low": one.low, "high": one.high, "question": one.question, "labels": one.labels}
                     for one in KINDS[kind]],
        "images": ["data:image/webp;base64," + base64.b64encode(pictures[path]).decode() for path in numbers],
        "trials": [{"trial": trial["trial"], "image": numbers[shown[trial["number"]].image],
                    "text": shown[trial["number"]].text, "question": shown[trial["number"]].question}
                   for trial in key["raters"][str(rater)]],
    }
    # "<" would end the script early where a text holds "</script>".
    text = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("__CONTENT__", text)
