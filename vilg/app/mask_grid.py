"""A picture whose tokens are painted over, by mouse, finger or keyboard, to have them drawn anew.

The model knows no finer mask than its tokens, so the grid of them is what is painted: a button a token, which a screen
reader tells as a switch. Value: ``{"picture": data address, "cells": "0110…", "columns": 8}``, 1 where it is painted.
"""
import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vilg.errors import VilgError

HTML = """<div class="cells" role="group" aria-label="涂抹要重画的地方 Paint what is to be drawn anew"
  style="background-image: url(${value.picture}); grid-template-columns: repeat(${value.columns}, 1fr)">
${[...value.cells].map((cell, at) => `<button type="button" data-at="${at}" tabindex="${at ? -1 : 0}"
  aria-pressed="${cell === '1'}" aria-label="${Math.floor(at / value.columns) + 1} 行 ${at % value.columns + 1} 列 row
 ${Math.floor(at / value.columns) + 1} column ${at % value.columns + 1}"></button>`).join('')}</div>"""
CSS = """.cells { display: grid; width: min(100%, 24rem); aspect-ratio: 1; background-size: 100% 100%;
  image-rendering: pixelated; touch-action: none }
.cells button { border: 1px dotted #8888; background: none; padding: 0; cursor: crosshair }
.cells button[aria-pressed=true] { background: #d0208ccc }
.cells button:focus-visible { outline: 3px solid #1060e0; outline-offset: -2px; z-index: 1 }"""
SCRIPT = """
let painting = null;
const cell = event => event.target.closest('button[data-at]');
const focus = at => requestAnimationFrame(() => requestAnimationFrame(() => {
  const all = element.querySelectorAll('button[data-at]');
  all.forEach((one, place) => one.tabIndex = place === at ? 0 : -1);
  if (all[at]) all[at].focus();
}));
const set = (at, painted) => {
  const cells = [...props.value.cells];
  cells[at] = painted ? '1' : '0';
  props.value = {...props.value, cells: cells.join('')};
};
element.addEventListener('pointerdown', event => {
  const one = cell(event);
  if (!one) return;
  if (one.hasPointerCapture && one.hasPointerCapture(event.pointerId)) one.releasePointerCapture(event.pointerId);
  painting = one.getAttribute('aria-pressed') !== 'true';
  set(+one.dataset.at, painting);
});
element.addEventListener('pointermove', event => {
  if (painting === null || !event.buttons) return;
  const under = document.elementFromPoint(event.clientX, event.clientY);
  const one = under && element.contains(under) && under.closest('button[data-at]');
  if (one && (one.getAttribute('aria-pressed') === 'true') !== painting) set(+one.dataset.at, painting);
});
window.addEventListener('pointerup', () => { painting = null; });
element.addEventListener('keydown', event => {
  const one = cell(event), columns = props.value.columns;
  if (!one) return;
  const at = +one.dataset.at, far = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  if (far !== undefined) {
    event.preventDefault();
    if (at + far >= 0 && at + far < props.value.cells.length) focus(at + far);
  } else if (event.key === ' ' || event.key === 'Enter') {
    event.preventDefault();
    set(at, one.getAttribute('aria-pressed') !== 'true');
    focus(at);
  }
});
"""


def empty(rows: int, columns: int) -> dict[str, Any]:
    """The value without a picture."""
    return {"picture": "", "cells": "0" * (rows * columns), "columns": columns}


def showing(picture: np.ndarray, rows: int, columns: int) -> dict[str, Any]:
    """The value over a picture, uint8 [H, W, 3], with nothing painted."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    address = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
    return empty(rows, columns) | {"picture": address}


def kept(value: Any, rows: int, columns: int) -> np.ndarray:
    """What is not painted: booleans [rows · columns]. Raises VilgError for another grid, or when nothing is."""
    cells = value.get("cells") if isinstance(value, dict) else None
    if not isinstance(cells, str) or len(cells) != rows * columns or set(cells) - {"0", "1"}:
        raise VilgError(f"请涂抹要重画的地方。Paint what is to be drawn anew: {rows * columns} cells, 0 or 1 each.")
    if "1" not in cells:
        raise VilgError("请先涂抹要重画的地方。Paint what is to be drawn anew first.")
    return np.array([cell == "0" for cell in cells])
