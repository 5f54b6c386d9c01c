"""The page in the browser, for those who type a sentence and want a picture; gradio shows it (extra ``demo``).

:class:`Page` holds what the page does, as plain functions that need no gradio; :func:`build` lays them out.
"""
import functools
import html
import logging
import os
import secrets
import socket
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from vilg.app import pipeline
from vilg.app.demo import PROMPTS
from vilg.config import Setting, settings_of
from vilg.data.worlds import scenes
from vilg.errors import DataError, VilgError
from vilg.tokenizers.text.characters import check_text

MOST_PICTURES = 16
LARGEST_SEED = 2 ** 53 - 1  # beyond it a browser's numbers skip some
QUEUE = 32  # jobs that wait their turn before the page says that it is busy
LARGEST_UPLOAD = "20mb"
HOUR_SECONDS = 3600
STYLE = ".enlarged img { width: 100%; height: 100%; object-fit: contain }"  # 64 pixels are small on a screen
QUESTIONS = ("图里有几个图形？", "图里有红色的圆形吗？", "左边有蓝色的方块吗？", "圆形是什么颜色？")
HEADING = """# 说一句话，画一张图 · Type a sentence, get a picture
模型 {name} 在这台电脑上运行，不需要网络。它只认识自己学过的东西，先试试例句。

The model runs on this computer and needs no network; it knows only what it has learned, so begin with the examples."""


class Page:
    """What the page does with one model. Every method raises VilgError with a sentence that the page can show.

    A pipeline serves one call at a time, and Paddle keeps its device and its team of threads by thread: one worker
    thread loads the model and runs all jobs, one after the other, whichever thread asks.
    """

    def __init__(self, name_or_directory: str, device: str | None = None, cpu_math: str | None = None):
        """Load a model, as :func:`vilg.app.pipeline.load`."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.model = self._run(lambda: pipeline.load(name_or_directory, device=device, cpu_math=cpu_math))

    def draw(self, text: str | None, count: int | None = 4, seed: int | None = 0, ranked: bool = False,
             **sampling: float | str | None) -> tuple[list[tuple[Image.Image, str]], str]:
        """``count`` pictures (1 to 16) of a sentence, each with a line below it, and a remark about the sentence.

        The same sentence, settings and seed draw the same pictures. ``ranked``: those that tell most of the sentence
        first, by P(text | image). ``sampling`` as in the pipeline.
        """
        self._check_text(text)
        if count is None or not 1 <= count <= MOST_PICTURES:
            raise VilgError(f"一次画 1 到 {MOST_PICTURES} 张。Draw 1 to {MOST_PICTURES} pictures at a time, not {count}.")
        if seed is None:
            raise VilgError("请填一个种子，任何整数都行。Give a seed; any whole number will do.")
        drawn, = self._run(lambda: self.model.text_to_image(
            text, num_images=int(count), seed=int(seed), best_of=int(count) if ranked else None, **sampling))
        return [(_with_text(picture), _line(picture.info)) for picture in drawn], self._remark(text)

    def describe(self, picture: pipeline.Picture | None) -> str:
        """A sentence about a picture."""
        return self._look(picture, lambda: self.model.image_to_text([picture])[0])

    def ask(self, picture: pipeline.Picture | None, question: str | None) -> tuple[str, str]:
        """The answer to a question about a picture, and a remark about the question."""
        if not (question or "").strip():
            raise VilgError("请先写一个问题。Write a question first.")
        check_text(question, "question")
        return self._look(picture, lambda: self.model.answer([picture], [question])[0]), self._remark(question)

    def scene(self) -> np.ndarray:
        """A picture to try, of the kind that the shipped model knows: uint8 [H, W, 3], another one every time."""
        return scenes.render(scenes.sample_scene(new_seed(), "test"), self.model.image_tokenizer.image_size)

    def examples(self) -> list[str]:
        """The demo's sentences that this model's vocabulary can read."""
        return [text for text in PROMPTS if not self.model.text_tokenizer.unknown(text) and not self._surplus(text)]

    def _run(self, job: Callable[[], Any]) -> Any:
        return self._worker.submit(job).result()

    def _look(self, picture: pipeline.Picture | None, job: Callable[[], Any]) -> Any:
        if picture is None:
            raise VilgError("请先放一张图片。Upload a picture first.")
        try:
            return self._run(job)
        except DataError as error:
            # The page's file has a made-up name in a folder that its user never saw.
            raise VilgError("这不是一张完整的图片，请换一张。Not a whole picture; choose another one.") from error

    def _check_text(self, text: str | None) -> None:
        if not (text or "").strip():
            raise VilgError("请先写一句话。Write a sentence first.")
        check_text(text, "prompt")
        surplus = self._surplus(text)
        if surplus:
            room = self.model.model.config.text_length - 2
            raise VilgError(f"这句话太长：模型最多读 {room} 个字词，请去掉 {surplus} 个。"
                            f"Too long: the model reads {room} tokens, leave out {surplus}.")

    def _surplus(self, text: str) -> int:
        return int(self.model.text_tokenizer.encode_batch([text], self.model.model.config.text_length).cut[0])

    def _remark(self, text: str) -> str:
        unknown = self.model.text_tokenizer.unknown(text)
        return f"模型没学过这些字 · The model never learned: {' '.join(unknown)}" if unknown else ""


def new_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(2 ** 31)


def serve(name_or_directory: str, host: str = "127.0.0.1", port: int = 7860, device: str | None = None,
          cpu_math: str | None = None) -> None:
    """Load a model and show the page until Ctrl-C. Raises VilgError when gradio, the model or the address cannot
    be had."""
    _gradio()  # what is missing is said before the model loads
    _check_address(host, port)
    warnings.filterwarnings("ignore", module="gradio")  # it uses what its own libraries call old, at every call
    page = Page(name_or_directory, device, cpu_math)
    # gradio would leave its pictures behind when a browser is still open at the end, in a folder that all users share.
    with tempfile.TemporaryDirectory(prefix="vilg-web-", ignore_cleanup_errors=True) as pictures:
        os.environ["GRADIO_TEMP_DIR"] = pictures
        app = start(page, host, port)
        print(f"请用浏览器打开 Open in a browser: {app.local_url}  (Ctrl-C: 结束 end)", flush=True)
        app.block_thread()


def start(page: Page, host: str, port: int) -> Any:
    """Serve the page and return gradio's Blocks while it runs; ``close()`` ends it. Nothing beyond this machine is
    asked for anything. Raises VilgError when the address cannot be had."""
    app, gradio = build(page), _gradio()
    # gradio calls its own server once; a proxy that the user set for the network would send that call astray.
    set_before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [set_before, "localhost", "127.0.0.1", host]))
    try:
        app.launch(server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, ssr_mode=False,
                   prevent_thread_lock=True, max_file_size=LARGEST_UPLOAD, footer_links=[], css=STYLE,
                   theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]))
    except OSError:
        raise _no_address(host, port, "it is taken") from None
    return app


def build(page: Page) -> Any:
    """The page as gradio's Blocks, not yet served: three tabs, whose calls are also ``/draw``, ``/describe`` and
    ``/ask`` over HTTP. Raises VilgError when gradio is missing."""
    gradio = _gradio()
    title = "文字画图 · vilg"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(HOUR_SECONDS, HOUR_SECONDS)) as app:
        gradio.Markdown(HEADING.format(name=page.model.name))
        with gradio.Tab("文字画图 Draw"):
            _draw_tab(gradio, page)
        with gradio.Tab("看图说话 Describe"):
            picture = _picture_input(gradio, page)
            button = gradio.Button("说一说 Describe", variant="primary")
            said = gradio.Textbox(label="描述 Description", interactive=False)
            _on(gradio, [button.click], page.describe, [picture], [said])
        with gradio.Tab("看图问答 Ask"):
            picture = _picture_input(gradio, page)
            question = gradio.Textbox(label="问题 Question", placeholder=QUESTIONS[0])
            _examples(gradio, QUESTIONS, question)
            button = gradio.Button("回答 Answer", variant="primary")
            answer = gradio.Textbox(label="答案 Answer", interactive=False)
            _on(gradio, [button.click, question.submit], page.ask, [picture, question], [answer, gradio.Markdown()])
    return app.queue(max_size=QUEUE, default_concurrency_limit=1)


def _draw_tab(gradio: ModuleType, page: Page) -> None:
    own = page.model.sampling
    settings = settings_of(type(own))
    text = gradio.Textbox(label="一句话 Sentence", placeholder=PROMPTS[0], autofocus=True)
    _examples(gradio, page.examples(), text)
    with gradio.Row():
        count = gradio.Slider(1, MOST_PICTURES, 4, step=1, label="张数 Pictures")
        seed = gradio.Number(0, label="种子 Seed", info="同一个种子画出同样的图 The same seed, the same pictures",
                             precision=0, minimum=0, maximum=LARGEST_SEED)
        other = gradio.Button("换一个种子 Another seed")
    button = gradio.Button("画 Draw", variant="primary")
    remark = gradio.Markdown()
    gallery = gradio.Gallery(label="图片 Pictures", columns=4, object_fit="contain", format="png", interactive=False,
                             buttons=["download", "fullscreen"], elem_classes="enlarged")
    with gradio.Accordion("更多设置 More settings", open=False):
        inputs = [_input(gradio, one, getattr(own, one.name), page.model.model.layout.image) for one in settings]
        ranked = gradio.Checkbox(False, label="最像的排在前面 Best match first")
    other.click(new_seed, None, seed, api_visibility="private")
    def draw(text: str, count: int, seed: int, ranked: bool, *values: float | str) -> Any:
        return page.draw(text, count, seed, ranked, **{one.name: value for one, value in zip(settings, values)})

    _on(gradio, [button.click, text.submit], draw,
        [text, count, seed, ranked, *inputs], [gallery, remark])


def _input(gradio: ModuleType, one: Setting, own: float | str, tokens: int) -> Any:
    """A slider, or a choice among words; no model of ``tokens`` tokens draws in more steps."""
    said = {"label": one.name, "info": f"{one.chinese} · {one.meaning}"}
    if one.choices:
        return gradio.Dropdown(list(one.choices), value=own, **said)
    least, most, step = one.slider
    return gradio.Slider(least, max(min(most, tokens) if one.name == "steps" else most, own), own, step=step, **said)


def _examples(gradio: ModuleType, texts: Sequence[str], box: Any) -> None:
    """A button a text, which writes it into a box; gradio's own examples stay empty outside the first tab (6.17)."""
    with gradio.Row():
        for text in texts:
            button = gradio.Button(text, size="sm", min_width=60, scale=len(text))
            button.click(functools.partial(str, text), None, box, queue=False, api_visibility="private")


def _picture_input(gradio: ModuleType, page: Page) -> Any:
    picture = gradio.Image(label="图片 Picture", type="filepath", image_mode=None, format="png", height=320,
                           sources=["upload", "clipboard"], elem_classes="enlarged")
    # gradio opens the file before the page's function sees it, and a broken one would end in gradio's words, not ours.
    picture.preprocess = lambda given: _uploaded(given.path, picture.GRADIO_CACHE) if given and given.path else None
    button = gradio.Button("给我一张例图 Give me a picture to try")
    button.click(page.scene, None, picture, api_visibility="private")
    return picture


def _uploaded(path: str, folder: str) -> str | None:
    """The path of a picture that was uploaded; None for another file of this machine that a caller over HTTP names,
    which gradio (6.17) lets through when the caller leaves out what marks it as a file."""
    return path if Path(path).resolve().is_relative_to(Path(folder).resolve()) else None


def _on(gradio: ModuleType, events: list[Any], function: Callable, inputs: list[Any], outputs: list[Any]) -> None:
    """Let events call a function of the page; one job of all tabs at a time, and refusals become messages."""

    @functools.wraps(function)
    def shown(*given: Any) -> Any:
        try:
            return function(*given)
        except VilgError as error:
            raise gradio.Error(html.escape(str(error), quote=False), duration=None, print_exception=False) from None

    gradio.on(events, shown, inputs, outputs, api_name=function.__name__, concurrency_id="model", concurrency_limit=1)


def _gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and by what is no Blocks
    try:
        import gradio
    except ImportError as error:
        raise VilgError(f"the page needs gradio, which cannot be imported ({error}); "
                        "install it with `pip install 'vilg[demo]'`") from None
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every call that gradio makes to itself
    return gradio


def _check_address(host: str, port: int) -> None:
    try:
        if port == 0:
            raise OverflowError("port must be 1-65535")
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _no_address(host, port, reason.partition(" (")[0].rstrip(".")) from None


def _no_address(host: str, port: int, reason: str) -> VilgError:
    return VilgError(f"the page cannot be served at {host}:{port} ({reason}); name another --port or --host")


def _with_text(picture: Image.Image) -> Image.Image:
    # gradio keeps only text of what a PNG says about itself.
    picture.info = {name: str(value) for name, value in picture.info.items()}
    return picture


def _line(info: dict[str, Any]) -> str:
    rank = f" · log P(文字|图) {float(info['log_p_text']):.2f}" if "log_p_text" in info else ""
    return f"种子 {info['seed']} · 第 {int(info['sample']) + 1} 张{rank}"
