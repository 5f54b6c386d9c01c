"""How the page looks, in gradio's words, and how its buttons become jobs (:mod:`vilg.app.page` says what they do)."""
import asyncio
import functools
import html
import inspect
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vilg.app import history, mask_grid
from vilg.app.demo import PROMPTS
from vilg.app.inputs import LARGEST_SEED
from vilg.app.jobs import Job, Latest, result_of, shown_by
from vilg.app.styles import STYLES
from vilg.config import Setting, settings_of
from vilg.errors import VilgError

MOST_PICTURES = 16
QUEUE = 32  # jobs that wait their turn before the page says that it is busy
HOUR_SECONDS = 3600
STYLE = ".enlarged img { width: 100%; height: 100%; object-fit: contain }"  # 64 pixels are small on a screen
LIVE = """() => document.querySelectorAll('.live').forEach(one => {
  one.setAttribute('role', 'status'); one.setAttribute('aria-live', 'polite') })"""
QUESTIONS = ("图里有几个图形？", "图里有红色的圆形吗？", "左边有蓝色的方块吗？", "圆形是什么颜色？")
HEADING = """# 说一句话，画一张图 · Type a sentence, get a picture
模型 {name} 在这台电脑上运行，不需要网络。它只认识自己学过的东西，先试试例句。

The model runs on this computer and needs no network; it knows only what it has learned, so begin with the examples."""


def build(page: Any) -> Any:
    """The page as gradio's Blocks, not yet served: four tabs, or five with an index, whose calls are also ``/draw``,
    ``/complete``, ``/describe``, ``/ask`` and ``/search`` over HTTP. Raises VilgError when gradio is missing."""
    gradio = import_gradio()
    title = "文字画图 · vilg"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(HOUR_SECONDS, HOUR_SECONDS)) as app:
        gradio.Markdown(HEADING.format(name=page.model.name))
        with gradio.Tab("文字画图 Draw"):
            _draw_tab(gradio, page, app)
        with gradio.Tab("改画 Repaint"):
            _complete_tab(gradio, page)
        with gradio.Tab("看图说话 Describe"):
            picture = _picture_input(gradio, page)
            button, stop = _buttons(gradio, "说一说 Describe")
            said = gradio.Textbox(label="描述 Description", interactive=False)
            _on(gradio, page, [button.click], stop, page.describe, [picture], [said])
        with gradio.Tab("看图问答 Ask"):
            picture = _picture_input(gradio, page)
            question = gradio.Textbox(label="问题 Question", placeholder=QUESTIONS[0])
            _examples(gradio, QUESTIONS, question)
            button, stop = _buttons(gradio, "回答 Answer")
            answer = gradio.Textbox(label="答案 Answer", interactive=False)
            _on(gradio, page, [button.click, question.submit], stop, page.ask, [picture, question],
                [answer, _remark(gradio)])
        if page.searches:
            with gradio.Tab("找图 Search"):
                _search_tab(gradio, page)
        app.load(None, None, None, js=LIVE, api_visibility="private")
    return app.queue(max_size=QUEUE)


def _draw_tab(gradio: ModuleType, page: Any, app: Any) -> None:
    own = page.model.sampling
    settings = settings_of(type(own))
    text = gradio.Textbox(label="一句话 Sentence", placeholder=PROMPTS[0], autofocus=True)
    _examples(gradio, page.examples(), text)
    style = gradio.Radio(list(STYLES), value=STYLES[0], label="风格 Style")
    style.preprocess = lambda given: given
    count, seed = _count_and_seed(gradio)
    button, stop = _buttons(gradio, "画 Draw")
    remark, gallery = _remark(gradio), _gallery(gradio)
    with gradio.Accordion("更多设置 More settings", open=False):
        inputs = [_input(gradio, one, getattr(own, one.name), page.model.model.layout.image) for one in settings]
        ranked = gradio.Checkbox(False, label="最像的排在前面 Best match first")
    said = [text, count, seed, ranked, *inputs, style]
    drawn = history.add(gradio, app, said)

    def draw(text: str, count: int, seed: int, ranked: bool, *values: float | str) -> Any:
        *values, style = values
        return page.draw(text, count, seed, ranked, style, **{one.name: value for one, value in zip(settings, values)})

    def begin(show: Any, text: str, count: int, seed: int, ranked: bool, *values: float | str) -> Job:
        *values, style = values
        return page.begin(text, count, seed, ranked, style, show,
                          **{one.name: value for one, value in zip(settings, values)})

    # Over HTTP a call has one result; the button's shows the pictures as they grow.
    _on(gradio, page, [gradio.Button(visible=False).click], stop, draw, said, [gallery, remark], begin)
    event = _on_growing(gradio, page, [button.click, text.submit], stop, begin, said, [gallery, remark])
    drawn(event)


def _complete_tab(gradio: ModuleType, page: Any) -> None:
    picture = _picture_input(gradio, page)
    gradio.Markdown("在图上涂抹要重画的地方（鼠标拖动；或用方向键移动、空格键涂抹），再写一句话。\n\nPaint over what is to be drawn "
                    "anew (drag; or move by the arrow keys and paint by space), then write a sentence.")
    mask = gradio.HTML(mask_grid.empty(*page.grid), html_template=mask_grid.HTML, css_template=mask_grid.CSS,
                       js_on_load=mask_grid.SCRIPT, elem_id="mask")
    text = gradio.Textbox(label="一句话 Sentence", placeholder=PROMPTS[0])
    count, seed = _count_and_seed(gradio)
    button, stop = _buttons(gradio, "重画 Repaint")
    remark, gallery = _remark(gradio), _gallery(gradio)
    _quietly(gradio, page, picture.change, page.to_paint, [picture], [mask])
    said = [picture, mask, text, count, seed]

    def begin(show: Any, *given: Any) -> Job:
        return page.begin_completion(*given, show=show)

    _on(gradio, page, [gradio.Button(visible=False).click], stop, page.complete, said, [gallery, remark], begin)
    _on_growing(gradio, page, [button.click, text.submit], stop, begin, said, [gallery, remark])


def _search_tab(gradio: ModuleType, page: Any) -> None:
    text = gradio.Textbox(label="要找什么 What to look for", placeholder=PROMPTS[0])
    gradio.Markdown("或者放一张图片，找相似的 Or upload a picture, to find those like it")
    picture = _picture_input(gradio, page)
    button, stop = _buttons(gradio, "找 Search")
    remark, gallery = _remark(gradio), _gallery(gradio)
    _on(gradio, page, [button.click, text.submit], stop, page.search, [text, picture], [gallery, remark])


def _count_and_seed(gradio: ModuleType) -> tuple[Any, Any]:
    with gradio.Row():
        count = gradio.Slider(1, MOST_PICTURES, 4, step=1, label="张数 Pictures")
        seed = gradio.Number(0, label="种子 Seed", info="同一个种子画出同样的图 The same seed, the same pictures",
                             precision=0, minimum=0, maximum=LARGEST_SEED)
        # gradio would round a number, and end in its own words, before the page's function sees it.
        count.preprocess = seed.preprocess = lambda given: given
        other = gradio.Button("换一个种子 Another seed")
    other.click(new_seed, None, seed, api_visibility="private")
    return count, seed


def _gallery(gradio: ModuleType) -> Any:
    return gradio.Gallery(label="图片 Pictures", columns=4, object_fit="contain", format="png", interactive=False,
                          buttons=["download", "fullscreen"], elem_classes="enlarged")


def _remark(gradio: ModuleType) -> Any:
    """A line that screen readers tell when it changes."""
    return gradio.Markdown(elem_classes="live")


def _buttons(gradio: ModuleType, label: str) -> tuple[Any, Any]:
    """The button that begins a job, and the one that ends it."""
    with gradio.Row():
        return gradio.Button(label, variant="primary", scale=4), gradio.Button("停 Stop", scale=1)


def _input(gradio: ModuleType, one: Setting, own: float | str, tokens: int) -> Any:
    """A slider, or a choice among words; no model of ``tokens`` tokens draws in more steps. What is chosen is checked
    by the page's function, in its words."""
    said = {"label": one.name, "info": f"{one.chinese} · {one.meaning}"}
    if one.choices:
        chosen = gradio.Dropdown(list(one.choices), value=own, **said)
    else:
        least, most, step = one.slider
        most = min(most, tokens) if one.name == "steps" else most
        chosen = gradio.Slider(least, max(most, own), own, step=step, **said)
    chosen.preprocess = lambda given: given
    return chosen


def _examples(gradio: ModuleType, texts: Sequence[str], box: Any) -> None:
    """A button a text, which writes it into a box; gradio's own examples stay empty outside the first tab (6.17)."""
    with gradio.Row():
        for text in texts:
            button = gradio.Button(text, size="sm", min_width=60, scale=len(text))
            button.click(functools.partial(str, text), None, box, queue=False, api_visibility="private")


def _picture_input(gradio: ModuleType, page: Any) -> Any:
    picture = gradio.Image(label="图片 Picture", type="filepath", image_mode=None, format="png", height=320,
                           sources=["upload", "clipboard"], elem_classes="enlarged")
    # gradio opens the file before the page's function sees it, and a broken one would end in gradio's words, not ours.
    picture.preprocess = lambda given: _uploaded(given.path, picture.GRADIO_CACHE) if given and given.path else None
    stored = picture.async_move_resource_to_block_cache

    async def only_uploads(path: str | None) -> str | None:
        if path is not None and "://" in str(path):  # gradio would fetch what a caller over HTTP names
            raise gradio.Error("请上传图片。Upload the picture; addresses are not read.", print_exception=False)
        return await stored(path)

    picture.async_move_resource_to_block_cache = only_uploads
    button = gradio.Button("给我一张例图 Give me a picture to try")
    button.click(page.scene, None, picture, api_visibility="private")
    return picture


def _uploaded(path: str, folder: str) -> str | None:
    """The path of a picture that was uploaded; None for another file of this machine that a caller over HTTP names,
    which gradio (6.17) lets through when the caller leaves out what marks it as a file."""
    return path if Path(path).resolve().is_relative_to(Path(folder).resolve()) else None


def _quietly(gradio: ModuleType, page: Any, event: Any, function: Callable, inputs: list[Any],
             outputs: list[Any]) -> None:
    """Let an event call a function of the page that takes no time; refusals become messages."""
    async def answer(*given: Any) -> Any:
        try:
            return await asyncio.to_thread(function, *given)
        except VilgError as error:
            raise _message(gradio, error) from None

    event(answer, inputs, outputs, api_visibility="private", queue=False, show_progress="hidden")


def _on_growing(gradio: ModuleType, page: Any, events: list[Any], stop: Any, begin: Callable, inputs: list[Any],
                outputs: list[Any]) -> Any:
    """Let events begin a job, ``begin(show, …)``, whose pictures are seen as they grow; as :func:`_on`."""

    async def grow(request: Any, *given: Any) -> Any:
        session, latest = request.session_hash, Latest()
        try:
            job = await asyncio.to_thread(begin, latest.put, *given)
            async for done, parts, pictures in shown_by(job, lambda: page.listeners.wait_for(session, job), latest):
                told = f"{done} / {parts}"
                yield [(picture, told) for picture in pictures], f"正在画 Drawing: {told}"
            pictures, remark = job.future.result()
            yield pictures, remark or f"画好了 Done: {len(pictures)}"
        except VilgError as error:
            raise _message(gradio, error) from None

    grow.__annotations__ = {"request": gradio.Request}
    event = gradio.on(events, grow, inputs, outputs, api_visibility="private", concurrency_limit=None,
                      show_progress="minimal")
    stop.click(None, None, None, cancels=[event], api_visibility="private")
    return event


def _message(gradio: ModuleType, error: VilgError) -> Exception:
    return gradio.Error(html.escape(str(error), quote=False), duration=None, print_exception=False)


def _on(gradio: ModuleType, page: Any, events: list[Any], stop: Any, function: Callable, inputs: list[Any],
        outputs: list[Any], begin: Callable | None = None) -> None:
    """Let events call a function of the page as a job, which ``stop`` ends, and which ends when nobody waits for it;
    refusals become messages. ``begin(None, …)`` gives its job where it is one by itself: a drawing, beside others."""

    async def answer(request: Any, *given: Any) -> Any:
        session = request.session_hash
        try:
            job = page.worker.submit(functools.partial(function, *given)) if begin is None else (
                await asyncio.to_thread(begin, None, *given))
            return await result_of(job, lambda: page.listeners.wait_for(session, job))
        except VilgError as error:
            raise _message(gradio, error) from None

    # gradio reads names for callers over HTTP from the signature, and gives the request to what is typed as one.
    own = inspect.signature(function)
    asked = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gradio.Request)
    answer.__signature__ = own.replace(parameters=[asked, *own.parameters.values()])
    answer.__annotations__ = {"request": gradio.Request}
    answer.__name__, answer.__doc__ = function.__name__, function.__doc__
    # The page has its own queue: gradio's drops no job that runs, and none that nobody ever asked the result of.
    event = gradio.on(events, answer, inputs, outputs, api_name=function.__name__, concurrency_limit=None)
    stop.click(None, None, None, cancels=[event], api_visibility="private")


def import_gradio() -> ModuleType:
    """gradio, which asks nobody for anything. Raises VilgError when it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and by what is no Blocks
    try:
        import gradio
    except ImportError as error:
        raise VilgError(f"the page needs gradio, which cannot be imported ({error}); "
                        "install it with `pip install 'vilg[demo]'`") from None
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every call that gradio makes to itself
    return gradio


def new_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(2 ** 31)
