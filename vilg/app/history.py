"""What a visitor drew, kept in the browser alone: a choice of it fills the page's fields again, seed and all."""
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vilg.app.styles import STYLES

MOST = 30
KEY = "vilg-history"
LABEL = "画过的 History"


def add(gradio: ModuleType, app: Any, fields: list[Any]) -> Callable[[Any], None]:
    """Put the choice into the page. ``fields``: the components of sentence, count, seed, the settings, and last the
    style. Returns what is to be called with the event of a drawing, to have it noted."""
    kept = gradio.BrowserState([], storage_key=KEY, secret=KEY)
    chosen = gradio.Dropdown([], value=None, label=LABEL, info="选一条，句子、种子和设置都填回去 Choose one to have its sentence, "
                             "seed and settings back", interactive=True)
    chosen.preprocess = lambda given: given

    def shown(entries: Any) -> Any:
        return gradio.Dropdown(choices=[(_line(entry), place) for place, entry in enumerate(_valid(entries, fields))],
                               value=None)

    def note(entries: Any, *values: Any) -> tuple[Any, Any]:
        entry = list(values)
        entries = [entry, *[one for one in _valid(entries, fields) if one != entry]][:MOST]
        return entries, shown(entries)

    def back(entries: Any, place: Any) -> list[Any]:
        entries = _valid(entries, fields)
        if not isinstance(place, int) or not 0 <= place < len(entries):
            return [gradio.skip() for _ in fields]
        return entries[place]

    app.load(shown, kept, chosen, api_visibility="private")
    chosen.input(back, [kept, chosen], fields, api_visibility="private", queue=False)
    return lambda event: event.success(note, [kept, *fields], [kept, chosen], api_visibility="private", queue=False)


def _valid(entries: Any, fields: list[Any]) -> list[list[Any]]:
    """Entries of a browser that still fit the page; one of another version or model does not."""
    return [one for one in entries if isinstance(one, list) and len(one) == len(fields)
            and isinstance(one[0], str)][:MOST] if isinstance(entries, list) else []


def _line(entry: list[Any]) -> str:
    text, count, seed, *_, style = entry
    return f"{text} · 种子 seed {seed} · {count}" + ("" if style == STYLES[0] else f" · {style}")
