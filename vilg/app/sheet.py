"""Contact sheets: texts and images in rows, as one image."""
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SHEET_BACKGROUND, INK = (250, 250, 248), (40, 40, 40)


def contact_sheet(texts: list[str], pictures: list[list[Image.Image]], scale: int = 2) -> Image.Image:
    """One row a text: the text, then its pictures, enlarged ``scale`` times."""
    return table([(f"{text}", row) for text, row in zip(texts, pictures)], scale)


def table(rows: list[tuple[str, list[Image.Image]]], scale: int = 2, text_width: int = 330) -> Image.Image:
    """Rows of a text (line breaks kept) and pictures as one picture."""
    font = _font(16)
    cell = max((picture.height for _, row in rows for picture in row), default=64) * scale
    columns = max((len(row) for _, row in rows), default=1)
    sheet = Image.new("RGB", (text_width + columns * (cell + 8) + 8, len(rows) * (cell + 8) + 8), SHEET_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (text, pictures) in enumerate(rows):
        top = 8 + number * (cell + 8)
        draw.multiline_text((12, top + 6), _wrap(text, font, text_width - 24), font=font, fill=INK, spacing=6)
        for column, picture in enumerate(pictures):
            enlarged = picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (text_width + column * (cell + 8), top))
    return sheet


def _wrap(text: str, font: Any, width: int) -> str:
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for character in paragraph:
            if line and font.getlength(line + character) > width:
                lines.append(line)
                line = ""
            line += character
        lines.append(line)
    return "\n".join(lines)


def _font(size: int) -> Any:
    """A font with Chinese characters if the machine has one; Pillow's own (Latin only) otherwise."""
    for pattern in ("**/NotoSansCJK*.ttc", "**/wqy-*.ttc", "**/DroidSansFallback*.ttf", "**/PingFang.ttc",
                    "**/msyh.ttc", "**/*CJK*.otf"):
        for folder in ("/usr/share/fonts", "/System/Library/Fonts", "C:/Windows/Fonts"):
            for path in sorted(Path(folder).glob(pattern)):
                return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
