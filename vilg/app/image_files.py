"""Drawn pictures as files: numbered, whole, and with the story of each in its metadata."""
import io
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vilg.app.sheet import contact_sheet
from vilg.errors import VilgError


def write_pictures(texts: list[str], pictures: list[list[Image.Image]], output: str | Path) -> list[dict[str, Any]]:
    """Write every picture as a PNG that carries its ``info``, and a contact sheet; returns a record a picture.

    File names count upwards and never overwrite, whoever else writes there; the prompt is in the metadata, not in the
    name. Raises VilgError where pictures cannot be written.
    """
    output = Path(output)
    with _naming(output):
        output.mkdir(parents=True, exist_ok=True)
        taken = [int(path.stem) for path in output.glob("*.png") if re.fullmatch("[0-9]+", path.stem)]
        numbers = itertools.count(max(taken, default=-1) + 1)
        records = [{"image": str(_save_numbered(picture, output, numbers)), **picture.info}
                   for row in pictures for picture in row]
    save_whole(contact_sheet(texts, pictures), output / "contact_sheet.png")
    return records


def annotate(picture: np.ndarray, info: dict[str, Any]) -> Image.Image:
    """A picture uint8 [H, W, 3] with its story."""
    image = Image.fromarray(picture)
    image.info.update(info)
    return image


def save_whole(picture: Image.Image, path: Path) -> None:
    """Save a PNG in place of what was there, so that the path holds the old one or the whole new one. Raises VilgError
    where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with _naming(path.parent):
        try:
            save_png(picture, temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def save_png(picture: Image.Image, path: str | Path | BinaryIO) -> None:
    """Save a PNG with the picture's ``info`` as text chunks (UTF-8)."""
    chunks = PngInfo()
    for name, value in picture.info.items():
        chunks.add_itxt(str(name), str(value))
    picture.save(path, format="PNG", pnginfo=chunks)


def _save_numbered(picture: Image.Image, folder: Path, numbers: Iterator[int]) -> Path:
    """Save a picture, whole or not at all, under the first of ``numbers`` that is free."""
    content = io.BytesIO()
    save_png(picture, content)
    file = _open_free(folder, numbers)
    try:
        with file:
            file.write(content.getvalue())
    except BaseException:
        os.unlink(file.name)
        raise
    return Path(file.name)


def _open_free(folder: Path, numbers: Iterator[int]) -> BinaryIO:
    while True:
        try:
            return open(folder / f"{next(numbers):05d}.png", "xb")
        except FileExistsError:  # somebody else draws into this folder too
            continue


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VilgError(f"{folder}: pictures cannot be written there ({error.strerror or error}); "
                        "name another folder with --output") from None
