"""Colour emoji with Chinese names as a folder of pictures and captions, from two packages of Debian.

The pictures are Noto Color Emoji's bitmaps, the names and key words are those of CLDR's annotations. Skin-tone variants
are left out, and emoji that look alike to the pixel (flags of dependent territories) become one.
"""
import json
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from vilg.errors import DataError

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
ANNOTATIONS = "/usr/share/unicode/cldr/common"
STRIKE = 109  # the only size, in pixels, that the font's bitmaps come in
CANVAS = 136  # advance of every emoji at that size
SKIN_TONES = range(0x1F3FB, 0x1F400)
EMOJI_STYLE = "\ufe0f"
LONGEST_CAPTION = 24  # characters


@dataclass
class Emoji:
    """One emoji: its text, unique Chinese name, key words, and picture uint8 [136, 136, 3] on white."""

    text: str
    name: str
    keywords: list[str]
    picture: np.ndarray

    @property
    def stem(self) -> str:
        """Its code points in hexadecimal, a file name without suffix."""
        return code_points(self.text)

    @property
    def captions(self) -> list[str]:
        """The exact name, and the name among its key words."""
        text = with_keywords(self.name, [word for word in self.keywords if word != self.name])
        return [self.name] if text == self.name else [self.name, text]


@dataclass
class Collection:
    """The emoji in order of their code points, and the ones left out, by reason."""

    emoji: list[Emoji]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def collect(font: str = FONT, annotations: str = ANNOTATIONS) -> Collection:
    """Draw and name every emoji. Raises DataError that names the package to install when one of the two is missing."""
    named = read_annotations(Path(annotations))
    typeface = _typeface(font)
    result = Collection([])
    pictures: dict[bytes, Emoji] = {}
    names: set[str] = set()
    # Of emoji that look alike the shortest name stays: 旗：法国 rather than 旗：克利珀顿岛.
    for text in sorted(named, key=lambda text: (len(named[text][0]), text)):
        name, keywords = named[text]
        picture = None if _is_toned(text) else _draw(typeface, text)
        if picture is None:
            reason = "skin tones" if _is_toned(text) else "not a single glyph of the font"
        elif name.lower() in names:
            reason = "name of another"
        elif picture.tobytes() in pictures:
            twin = pictures[picture.tobytes()]
            twin.keywords += [word for word in (name, *keywords) if word not in twin.keywords]
            reason = "picture of another"
        else:
            names.add(name.lower())
            pictures[picture.tobytes()] = Emoji(text, name, keywords, picture)
            continue
        result.left_out.setdefault(reason, []).append(name)
    result.emoji = sorted(pictures.values(), key=lambda one: one.text)
    return result


def write(emoji: list[Emoji], folder: str | Path, size: int = 128) -> None:
    """Write ``<code points>.png`` (``size`` pixels square) and ``.txt`` for each, and all of them as ``table.jsonl``.

    Raises DataError when the folder cannot be written or holds other pictures, which would mix with these, and for a
    size below 1.
    """
    if size < 1:
        raise DataError(f"a size of {size} pixels is none; give 1 or more")
    folder = Path(folder)
    others = {path.name for path in folder.glob("*.png")} - {f"{one.stem}.png" for one in emoji}
    if others:
        raise DataError(f"{folder}: holds other pictures already, such as {min(others)}; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for one in emoji:
            picture = Image.fromarray(one.picture).resize((size, size), Image.Resampling.LANCZOS)
            picture.save(folder / f"{one.stem}.png")
            (folder / f"{one.stem}.txt").write_text("\n".join(one.captions) + "\n", encoding="utf-8")
            record = {"picture": f"{one.stem}.png", "captions": one.captions, "questions": [["这是什么？", one.name]]}
            lines.append(json.dumps(record, ensure_ascii=False))
        (folder / "table.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _typeface(path: str) -> ImageFont.FreeTypeFont:
    if not Path(path).is_file():
        raise DataError(f"{path}: the emoji font is missing; install it with `apt-get install fonts-noto-color-emoji`")
    try:
        return ImageFont.truetype(path, STRIKE)
    except OSError as error:
        raise DataError(f"{path}: not a bitmap emoji font with {STRIKE}-pixel glyphs ({error})") from None


def code_points(text: str) -> str:
    """The code points of an emoji in hexadecimal, such as ``1f34e`` or ``1f9d1_200d_1f680``."""
    return "_".join(f"{ord(letter):x}" for letter in text)


def chinese_name(words: str) -> str:
    """A name of CLDR as Chinese writes it, without blanks: 旗：中国."""
    return words.strip().replace(": ", "：").replace(" ", "")


def with_keywords(name: str, keywords: list[str]) -> str:
    """The name and as many of its key words as a caption of 24 characters holds: 红苹果，水果、红."""
    text = name
    for word in keywords:
        longer = text + ("，" if text == name else "、") + word
        if len(longer) <= LONGEST_CAPTION:
            text = longer
    return text


def read_annotations(root: Path, parts: tuple[str, ...] = ("annotations", "annotationsDerived")) \
        -> dict[str, tuple[str, list[str]]]:
    """Text of every annotated character or sequence → its Chinese name and key words, from CLDR's XML in ``root``.

    Raises DataError that names the package to install when a file is missing or damaged.
    """
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for part in parts:
        path = root / part / "zh.xml"
        if not path.is_file():
            raise DataError(f"{path}: the Chinese names are missing; "
                            "install them with `apt-get install unicode-cldr-core`")
        try:
            entries = ElementTree.parse(path).iter("annotation")
        except ElementTree.ParseError as error:
            raise DataError(f"{path}: not a whole CLDR file ({error}); install unicode-cldr-core again") from None
        for entry in entries:
            text, words = entry.get("cp", ""), (entry.text or "").strip()
            if entry.get("type") == "tts":
                names[text] = chinese_name(words)
            else:
                keywords[text] = [word.strip() for word in words.split("|") if word.strip()]
    return {text: (name, keywords.get(text, [])) for text, name in names.items() if text and name}


def _is_toned(text: str) -> bool:
    return any(ord(letter) in SKIN_TONES for letter in text)


def _draw(typeface: ImageFont.FreeTypeFont, text: str) -> np.ndarray | None:
    """An emoji on white, uint8 [136, 136, 3]; None when the font has no single glyph for it.

    Sequences (flags, families) are joined by Raqm; where Pillow lacks it they come out as several glyphs, too wide.
    """
    shown = text + EMOJI_STYLE if len(text) == 1 else text
    if len(text) > 1 and not features.check("raqm"):
        return None
    if round(typeface.getlength(shown)) != CANVAS:
        return None
    picture = Image.new("RGBA", (CANVAS, CANVAS))
    ImageDraw.Draw(picture).text((0, 4), shown, font=typeface, embedded_color=True)
    if picture.getbbox() is None:
        return None
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
