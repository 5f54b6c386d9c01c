"""The page in the browser, for those who type a sentence and want a picture; gradio shows it (extra ``demo``).

:class:`Page` holds what the page does, as plain functions that need no gradio; :mod:`vilg.app.layout` lays them out.
"""
import os
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from PIL import Image

from vilg.app import mask_grid, pipeline, search
from vilg.app.demo import PROMPTS
from vilg.app.gate import LARGEST_UPLOAD, Gate, is_loopback
from vilg.app.growing import Growing, Show
from vilg.app.inputs import LARGEST_SEED, LONGEST_TEXT
from vilg.app.jobs import Job, Listeners
from vilg.app.layout import MOST_PICTURES, QUEUE, STYLE, build, new_seed
from vilg.app.layout import import_gradio as _gradio
from vilg.app.serving.engine import Drawing
from vilg.app.styles import STYLES, styled
from vilg.app.worker import Worker
from vilg.data.transforms import centre_crop
from vilg.data.worlds import scenes
from vilg.errors import DataError, VilgError
from vilg.generation.sampling import MaskPredictConfig
from vilg.tokenizers.text.characters import check_text
from vilg.yaml_files import shown

USER = "vilg"
ROWS = 64
"""Pictures that are drawn at a time, for all visitors."""
HITS = 12
Keep = tuple[np.ndarray, np.ndarray]
SESSIONS = 20
"""Visits that Gradio keeps a state of, 65 KB each; every call of its API is one, and the page has no state to lose."""


class Page:
    """What the page does with one model. Every method raises VilgError with a sentence that the page can show.

    One thread uses the models (:class:`~vilg.app.worker.Worker`), whichever thread asks: it draws for all visitors side
    by side, by the engine that tools/serve.py has, and describes and searches between two tokens.
    """

    def __init__(self, name_or_directory: str, device: str | None = None, cpu_math: str | None = None,
                 index: str | None = None, encoder: str = "ernie_vil_tiny"):
        """Load a model, as :func:`vilg.app.pipeline.load`; ``index``: the folder of an index to search in, which
        tools/search.py built by ``encoder``."""
        def load() -> dict[str, Any]:
            models = {"drawer": pipeline.load(name_or_directory, device=device, cpu_math=cpu_math)}
            if index is not None:
                models["encoder"] = pipeline.load_encoder(encoder, device=device, cpu_math=cpu_math)
                models["index"] = search.open_index(index, models["encoder"])
                models["collection"] = search.open_collection(models["index"].path)
            return models

        self.listeners, self.worker = Listeners(), Worker(QUEUE, load, ROWS)
        self.model, self.grid = self.worker.models["drawer"], self.worker.models["drawer"].image_tokenizer.grid

    @property
    def searches(self) -> bool:
        """Is there an index to search in?"""
        return "index" in self.worker.models

    def draw(self, text: str | None, count: int | None = 4, seed: int | None = 0, ranked: bool = False,
             style: str = STYLES[0], **sampling: float | str | None) -> tuple[list[tuple[Image.Image, str]], str]:
        """``count`` pictures (1 to 16) of a sentence, each with a line below it, and a remark about the sentence.

        The same sentence, settings and seed draw the same pictures. ``ranked``: those that tell most of the sentence
        first, by P(text | image). ``style``: one of the service's, said behind the sentence. ``sampling`` as in the
        pipeline.
        """
        return self.begin(text, count, seed, ranked, style, **sampling).future.result()

    def begin(self, text: str | None, count: int | None = 4, seed: int | None = 0, ranked: bool = False,
              style: str = STYLES[0], show: Show | None = None, keep: Keep | None = None,
              **sampling: float | str | None) -> Job:
        """:meth:`draw` as a job, beside what else is drawn. ``show(done, parts, pictures)`` is called on the models'
        thread as they grow; ``keep``: what is kept of a given picture, (uint8 [H, W, 3], booleans [n])."""
        told = self._checked(text, count, seed, style)
        count, seed, model = int(count), int(seed), self.model
        settings = model.sampling.over(sampling, model.name)
        remark = self._remark(told)

        def finish(pictures: list[Image.Image]) -> tuple[list[tuple[Image.Image, str]], str]:
            return [(_with_text(picture), _line(picture.info)) for picture in pictures], remark

        if isinstance(settings, MaskPredictConfig):
            seen = None if show is None else lambda step, pictures: show(step + 1, settings.steps, pictures)
            given = {} if keep is None else {"known_image": keep[0], "known_mask": keep[1].reshape(self.grid)}
            return self.worker.submit(lambda: finish(model.text_to_image(
                told, num_images=count, seed=seed, best_of=count if ranked else None, progress=self.worker.check,
                after_step=seen, **given, **sampling)[0]))
        words = model.text_tokenizer.encode_prompts([told], model.model.config.text_length, strict=True)
        drawing = Drawing(model, words.ids[0], int(words.length[0]), count, seed, settings, keep)
        if show is not None:
            drawing.on_row = Growing(drawing, show)
        return self.worker.draw(drawing, lambda pictures: finish(model.chosen(
            told, words, 0, pictures, paddle.to_tensor(np.stack([row.codes for row in drawing.rows])), seed, settings,
            count, count if ranked else None)))

    def complete(self, picture: pipeline.Picture | None, painted: Any, text: str | None, count: int | None = 4,
                 seed: int | None = 0) -> tuple[list[tuple[Image.Image, str]], str]:
        """``count`` pictures in which what is ``painted`` (:mod:`vilg.app.mask_grid`) of a picture is drawn anew."""
        return self.begin_completion(picture, painted, text, count, seed).future.result()

    def begin_completion(self, picture: pipeline.Picture | None, painted: Any, text: str | None,
                         count: int | None = 4, seed: int | None = 0, show: Show | None = None) -> Job:
        """:meth:`complete` as a job, as :meth:`begin`."""
        keep = self._opened(picture), mask_grid.kept(painted, *self.grid)
        return self.begin(text, count, seed, show=show, keep=keep)

    def to_paint(self, picture: pipeline.Picture | None) -> dict[str, Any]:
        """The grid to paint over a picture."""
        if picture is None:
            return mask_grid.empty(*self.grid)
        square = centre_crop(self._opened(picture), self.model.image_tokenizer.image_size)
        return mask_grid.showing(square, *self.grid)

    def search(self, text: str | None, picture: pipeline.Picture | None) -> tuple[list[tuple[Image.Image, str]], str]:
        """Pictures of the index that fit a sentence, or else that look like a picture, best first; and a remark."""
        models = self.worker.models
        if isinstance(text, str) and text.strip():
            _check_length(text)
            check_text(text, "query")
            find = lambda: search.search_texts(models["index"], models["encoder"], [text], HITS)
        else:
            array = self._opened(picture)
            find = lambda: search.search_images(models["index"], models["encoder"], [array], HITS)
        hits, = self.worker.run(find)
        shown = search.read_hits(models["collection"], hits)
        lines = [f"{hit.cosine if hit.similarity is None else hit.similarity:.2f} · {hit.name}" for hit in hits]
        return list(zip(shown, lines)), "" if hits else "没有找到。Nothing matches."

    def describe(self, picture: pipeline.Picture | None) -> str:
        """A sentence about a picture."""
        return self._look(picture, lambda array: self.model.image_to_text([array])[0])

    def ask(self, picture: pipeline.Picture | None, question: str | None) -> tuple[str, str]:
        """The answer to a question about a picture, and a remark about the question."""
        if not isinstance(question, str) or not question.strip():
            raise VilgError("请先写一个问题。Write a question first.")
        _check_length(question)
        check_text(question, "question")
        return (self._look(picture, lambda array: self.model.answer([array], [question])[0]),
                self._remark(question))

    def scene(self) -> np.ndarray:
        """A picture to try, of the kind that the shipped model knows: uint8 [H, W, 3], another one every time."""
        return scenes.render(scenes.sample_scene(new_seed(), "test"), self.model.image_tokenizer.image_size)

    def examples(self) -> list[str]:
        """The demo's sentences that this model's vocabulary can read."""
        return [text for text in PROMPTS if not self.model.text_tokenizer.unknown(text) and not self._surplus(text)]

    def _look(self, picture: pipeline.Picture | None, job: Callable[[np.ndarray], Any]) -> Any:
        array = self._opened(picture)
        return self.worker.run(lambda: job(array))

    def _opened(self, picture: pipeline.Picture | None) -> np.ndarray:
        if picture is None:
            raise VilgError("请先放一张图片。Upload a picture first.")
        try:
            return pipeline.open_picture(picture)
        except DataError as error:
            # The page's file has a made-up name in a folder that its user never saw.
            raise VilgError("这不是一张完整的图片，请换一张。Not a whole picture; choose another one.") from error

    def _checked(self, text: str | None, count: int | None, seed: int | None, style: str) -> str:
        """The sentence in its style. Raises VilgError."""
        self._check_text(text)
        if not _is_whole(count, 1, MOST_PICTURES):
            raise VilgError(f"一次画 1 到 {MOST_PICTURES} 张。Draw 1 to {MOST_PICTURES} pictures at a time, not "
                            f"{shown(count)}.")
        if not _is_whole(seed, 0, LARGEST_SEED):
            raise VilgError(f"请填一个种子，任何整数都行，不能是 {shown(seed)}。"
                            f"Give a seed; any whole number from 0 to {LARGEST_SEED} will do.")
        if style not in STYLES:
            raise VilgError(f"没有这种风格：{shown(style)}。There is no such style; choose one of the page's.")
        told = styled(self.model, text, style)
        if style != STYLES[0] and told == text:
            raise VilgError("加上风格，这句话就太长了。With the style the sentence is too long; shorten it or leave the "
                            "style out.")
        return told

    def _check_text(self, text: str | None) -> None:
        if not isinstance(text, str) or not text.strip():
            raise VilgError("请先写一句话。Write a sentence first.")
        _check_length(text)
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


def _check_length(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise VilgError(f"这句话太长：{len(text)} 个字，最多读 {LONGEST_TEXT} 个。"
                        f"Too long: {len(text)} characters; {LONGEST_TEXT} are read at most.")


def _is_whole(value: Any, least: int, most: int) -> bool:
    """A browser's numbers have no kinds: 4.0 is 4; "4", true and null are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most and (
        value == int(value))


def serve(name_or_directory: str, host: str = "127.0.0.1", port: int = 7860, device: str | None = None,
          cpu_math: str | None = None, password: str | None = None, unprotected: bool = False,
          index: str | None = None, encoder: str = "ernie_vil_tiny") -> None:
    """Load a model and show the page until Ctrl-C or SIGTERM. Raises VilgError when gradio, the model or the address
    cannot be had, and for an address that others reach without a ``password`` and without ``unprotected``."""
    _gradio()  # what is missing is said before the model loads
    _check_address(host, port)
    if not (is_loopback(host) or password or unprotected):
        raise VilgError(f"--host {host}: others reach the page there; protect it with --password-file FILE, or let "
                        "everybody in with --no-password")
    warnings.filterwarnings("ignore", module="gradio")  # it uses what its own libraries call old, at every call
    ends = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    # gradio would leave its pictures behind when a browser is still open at the end, in a folder that all users share.
    with tempfile.TemporaryDirectory(prefix="vilg-web-", ignore_cleanup_errors=True) as pictures:
        os.environ["GRADIO_TEMP_DIR"] = pictures
        page = Page(name_or_directory, device, cpu_math, index, encoder)
        app = start(page, host, port, password)
        print(f"请用浏览器打开 Open in a browser: {app.local_url}  (Ctrl-C: 结束 end)", flush=True)
        if password:
            print(f"用户名 User: {USER}", flush=True)
        app.block_thread()
        page.worker.close()
    for number, handler in ends.items():
        signal.signal(number, handler)


def start(page: Page, host: str, port: int, password: str | None = None) -> Any:
    """Serve the page and return gradio's Blocks while it runs; ``close()`` ends it. Nothing beyond this machine is
    asked for anything. Raises VilgError when the address cannot be had."""
    app, gradio = build(page), _gradio()
    from starlette.middleware import Middleware  # gradio stands on it

    folder = os.environ.get("GRADIO_TEMP_DIR") or os.path.join(tempfile.gettempdir(), "gradio")
    gate = Middleware(Gate, host=host, folder=folder, listeners=page.listeners)
    # gradio calls its own server once; a proxy that the user set for the network would send that call astray.
    set_before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [set_before, "localhost", "127.0.0.1", host]))
    try:
        app.launch(server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, ssr_mode=False,
                   prevent_thread_lock=True, max_file_size=LARGEST_UPLOAD, footer_links=[], css=STYLE,
                   state_session_capacity=SESSIONS,
                   auth=(USER, password) if password else None, app_kwargs={"middleware": [gate]},
                   theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]))
    except OSError:
        raise _no_address(host, port, "it is taken") from None
    return app


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
