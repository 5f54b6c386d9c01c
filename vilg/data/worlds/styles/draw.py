"""Drawing SVG icons with resvg (Python package ``resvg_py``, extra ``styles``)."""
import io

import numpy as np
from PIL import Image

from vilg.data.images import plain
from vilg.data.worlds.styles.concepts import IconSet
from vilg.errors import DataError


def check_drawing() -> None:
    """Raise DataError when ``resvg_py`` is not installed."""
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise DataError("resvg_py, which draws the SVGs, is not installed; `pip install 'vilg[styles]'` or "
                        "`pip install resvg_py==0.5.0`") from None


def draw(icons: IconSet, name: str, size: int) -> np.ndarray | None:
    """An icon on white, padded to a square, uint8 [size, size, 3]; None when it cannot be drawn or shows nothing."""
    import resvg_py

    alias = icons.aliases.get(name, {}) if name not in icons.icons else {}
    icon = icons.icons[alias.get("parent", name)]
    width, height = icon.get("width", icons.size[0]), icon.get("height", icons.size[1])
    left, top, side = icon.get("left", 0), icon.get("top", 0), max(width, height)
    box = f"{left + (width - side) / 2:g} {top + (height - side) / 2:g} {side:g} {side:g}"
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
           f'width="{side:g}" height="{side:g}">{icon["body"]}</svg>')
    try:
        drawn = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError:
        return None
    image = plain(Image.open(io.BytesIO(bytes(drawn)), formats=["PNG"]))  # [size, size, 3]
    if (image == image[0, 0]).all():
        return None
    image = image[:, ::-1] if alias.get("hFlip") else image
    image = image[::-1] if alias.get("vFlip") else image
    return np.ascontiguousarray(np.rot90(image, -int(alias.get("rotate", 0))))
