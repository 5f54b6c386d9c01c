"""What fine-tuning changed, on pictures that it did not see: figures, and a page of samples before and after."""
import base64
import html
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilg.app.pipeline import Pipeline, load
from vilg.errors import VilgError
from vilg.progress import progress
from vilg.run.finetuning.folder import Looked, stack
from vilg.run.finetuning.recipe import Recipe

SHOWN, AMONG, MOST = 12, 10, 60
"""Samples on the page, captions of which one is a picture's own, and pictures that are measured."""
PAGE = "index.html"
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .4em .8em; border-bottom: 1px solid #ddd; text-align: left }
img { width: 128px; height: 128px; image-rendering: auto; border: 1px solid #ccc } td { vertical-align: top }"""


@dataclass
class Seen:
    """What a model makes of held-out pictures: its figures, a description of each, and a drawing of each caption."""

    figures: dict[str, float]
    described: list[str]
    drawn: list[Image.Image]


def compare(recipe: Recipe) -> dict[str, Any]:
    """Look at the held-out pictures with the model before and after, write the page; all figures of the recipe."""
    before, after = (load(folder) for folder in (recipe.start, recipe.model))
    captions = [_short(after, sample.captions[0]) for sample in recipe.looked.held]
    said = logging.getLogger("vilg.tokenizers.text.wordpiece")  # what the old model lacks was said by the recipe
    level = said.level
    said.setLevel(logging.ERROR)
    try:
        seen = [_seen(model, recipe.looked, captions, name) for model, name in ((before, "before"), (after, "after"))]
    finally:
        said.setLevel(level)
    figures = recipe.figures | {f"{name}_{when}": value for when, one in zip(("before", "after"), seen)
                                for name, value in one.figures.items()}
    figures["unknown_written"] = sum(text.count(after.text_tokenizer.special["unk"]) for text in seen[1].described)
    figures["advice"] = advice(figures)
    Path(recipe.config.output, PAGE).write_text(_page(recipe, captions, *seen, figures), encoding="utf-8")
    return figures


def _seen(model: Pipeline, looked: Looked, captions: list[str], name: str) -> Seen:
    pictures = list(stack(looked.held, MOST))
    texts = captions[:len(pictures)]
    first, scores = [], []
    rng = np.random.default_rng(0)
    for number, picture in enumerate(progress(pictures, desc=f"scoring {name}", unit="picture")):
        others = [text for text in dict.fromkeys(texts) if text != texts[number]]
        asked = [texts[number], *rng.permutation(others)[:AMONG - 1].tolist()]
        score = model.rank(asked, [picture])[:, 0]
        first.append(score[0] > score[1:].max() if len(asked) > 1 else True)
        words = model.text_tokenizer.encode_batch([texts[number]], model.model.config.text_length)
        targets = words.ids[0, 1:int(words.length[0])]  # with [SEP]; [UNK] is not scored
        scores.append(score[0] / max(1, (targets != model.text_tokenizer.unk_id).sum()))
    described = model.image_to_text(pictures[:SHOWN])
    drawn = [row[0] for row in model.text_to_image(texts[:SHOWN], seed=0, progress=True)]
    return Seen({"own_caption_first": float(np.mean(first)), "log_p_caption": float(np.mean(scores))}, described, drawn)


def _short(model: Pipeline, text: str) -> str:
    """The caption, or as much of its beginning as the model reads."""
    room = model.model.config.text_length
    while len(text) > 1 and model.text_tokenizer.encode_batch([text], room).cut[0]:
        text = text[:-1]
    return text


def advice(figures: dict[str, Any]) -> list[str]:
    """What to do next, by what was found."""
    said = []
    if figures["psnr"] < 20:
        said.append(f"The image tokenizer gives these pictures back with {figures['psnr']:.1f} dB: small things are "
                    "lost before anything is drawn. More minutes help, and so does a larger image tokenizer "
                    "(configs/image_tokenizer).")
    if figures["pictures"] < 500:
        said.append(f"{figures['pictures']} pictures are few: what is drawn will resemble what was shown. Several "
                    "hundred more are worth more than longer training.")
    if figures["own_caption_first_after"] < 0.5:
        said.append(f"The model finds a held-out picture's own caption among {AMONG} in "
                    f"{100 * figures['own_caption_first_after']:.0f} of 100 cases: train longer (--minutes), or write "
                    "captions that say what tells the pictures apart.")
    if not said:
        said.append("The held-out pictures are told apart well; draw with the model, and serve it.")
    return said


def _page(recipe: Recipe, captions: list[str], before: Seen, after: Seen, figures: dict[str, Any]) -> str:
    looked, said = recipe.looked, html.escape
    rows = "".join(
        f"<tr><td>{said(caption)}</td><td>{_image(Image.fromarray(sample.image), caption)}</td>"
        f"<td>{_image(old, caption)}</td><td>{_image(new, caption)}</td><td>{said(was)}</td><td>{said(now)}</td></tr>"
        for caption, sample, old, new, was, now in zip(captions, looked.held, before.drawn, after.drawn,
                                                       before.described, after.described))
    numbers = "".join(f"<tr><td>{said(name)}</td><td>{_shown(value)}</td></tr>" for name, value in figures.items()
                      if name != "advice")
    left = f"<p>Left out: {said(looked.broken)}</p>" if looked.broken else ""
    return f"""<!DOCTYPE html>
<html lang="zh"><head><meta charset="utf-8"><title>vilg · {said(Path(recipe.config.folder).name)}</title>
<style>{STYLE}</style></head><body>
<h1>微调前后 · Before and after</h1>
<p>{len(looked.train)} pictures were learned from; none of those below was among them.</p>{left}
<table><tr><th>说明 Caption</th><th>原图 Picture</th><th>微调前 Drawn before</th><th>微调后 Drawn after</th>
<th>微调前描述 Described before</th><th>微调后描述 Described after</th></tr>{rows}</table>
<h2>数字 Figures</h2><table>{numbers}</table>
<h2>接下来 What next</h2><ul>{"".join(f"<li>{said(line)}</li>" for line in figures["advice"])}</ul>
<p>Draw: <code>python tools/infer.py text2image "…" --model {said(str(recipe.model))}</code>; a page:
<code>python tools/web.py --model {said(str(recipe.model))}</code></p></body></html>
"""


def _image(picture: Image.Image, text: str) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG")
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _shown(value: Any) -> str:
    if isinstance(value, (int, np.integer)):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4f}"
    raise VilgError(f"a figure is a number, not {value!r}")
