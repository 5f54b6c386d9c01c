"""The world of styles as data: every picture with its captions, questions, fields and split."""
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vilg.data.worlds.emoji import with_keywords
from vilg.data.worlds.styles.concepts import Concept, IconSet, match, read_concepts, read_debian_concepts, read_icons
from vilg.data.worlds.styles.draw import check_drawing, draw
from vilg.data.worlds.styles.packages import (
    NAMES_PACKAGE,
    NAMES_VERSION,
    PERMISSIVE,
    STYLES,
    Package,
    Style,
    fetch,
    find,
    licence_of,
)
from vilg.data.worlds.styles.splits import THUMBNAIL, SplitConfig, Splits, fingerprints, split
from vilg.errors import ConfigError, DataError
from vilg.progress import progress

# The first two stand with every picture, of the others a hash of the picture takes MORE.
TEMPLATES = ("{name}", "{style}的{name}")
MORE_TEMPLATES = ("一张{style}的{name}图", "{name}，{style}", "{style}的表情符号：{name}", "用{style}画的{name}",
                  "这是{name}，画成了{style}")
MORE = 2


@dataclass
class StyledImage:
    """A concept in one style, and the icon (of a set, by name) that shows it."""

    concept: Concept
    style: Style
    icons: IconSet
    icon: str

    @property
    def file(self) -> str:
        """Its path inside the written folder."""
        return f"{self.style.key}/{self.concept.key}.png"

    def render(self, size: int) -> np.ndarray | None:
        """On white, uint8 [size, size, 3]; None when the icon cannot be drawn or shows nothing."""
        return draw(self.icons, self.icon, size)

    @property
    def captions(self) -> list[str]:
        """The exact name; the name with the style, in three wordings; the name with key words where it has any."""
        chosen = sorted(MORE_TEMPLATES, key=lambda text: hashlib.sha256((self.file + text).encode()).digest())[:MORE]
        name, style = self.concept.name, self.style.description
        texts = [text.format(name=name, style=style) for text in (*TEMPLATES, *chosen)]
        return list(dict.fromkeys([*texts, with_keywords(name, list(self.concept.tags))]))

    @property
    def questions(self) -> list[tuple[str, str]]:
        """What it is, and in what style."""
        return [("这是什么？", self.concept.name), ("什么风格？", self.style.description)]


@dataclass
class World:
    """All pictures by style and code points, their splits, whose art they are, and what was left out by reason."""

    images: list[StyledImage]
    splits: Splits
    licences: dict[str, dict[str, str]]
    versions: dict[str, str]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Pictures by split."""
        return dict(Counter(self.splits.splits))


def gather(folder: Path, *, fetching: bool, permissive: bool,
           debian: str | None) -> tuple[dict[str, Package], dict[str, Concept]]:
    """The packages of the styles by key, from ``folder`` or fetched into it, and the concepts of CLDR.

    ``permissive`` takes styles of MIT and Apache licences alone; ``debian`` is CLDR's folder where the names are not to
    come from npm. Raises DataError.
    """
    check_drawing()
    styles = {key: style for key, style in STYLES.items() if not permissive or style.licence in PERMISSIVE}
    wanted = {style.package: style.version for style in styles.values()}
    if debian is None:
        wanted[NAMES_PACKAGE] = NAMES_VERSION
    named = None if debian is None else read_debian_concepts(debian)
    if fetching:
        fetch(wanted, folder)
    found = find(list(wanted), folder)
    return ({key: found[style.package] for key, style in styles.items()},
            read_concepts(found[NAMES_PACKAGE]) if named is None else named)


def collect(packages: dict[str, Package], concepts: dict[str, Concept], config: SplitConfig) -> World:
    """Find every concept that a package's icons show, and split these pictures by how they look when drawn small.

    ``packages`` is by key of style. Raises ConfigError for a held-out style that is not among them, DataError for
    damaged packages and for one that shows nothing.
    """
    strangers = [style for style in config.held_styles if style not in packages]
    if strangers:
        raise ConfigError(f"held_styles: {', '.join(strangers)} is not among the styles, {', '.join(packages)}")
    styles = [STYLES[key] for key in packages]
    licences = {style.key: licence_of(style, packages[style.key]) for style in styles}
    sets = {style.key: read_icons(packages[style.key]) for style in styles}
    images, thumbnails, left_out = _look_at_all(sets, concepts)
    empty = packages.keys() - {one.style.key for one in images}
    if empty:
        raise DataError(f"{packages[min(empty)].path}: no icon shows a concept with a Chinese name; fetch the package "
                        "again with `npm pack`")
    order = [(one.concept.text, one.style.key) for one in images]
    names = {one.concept.text: one.concept.name for one in images}
    splits = split(order, names, fingerprints(np.stack(thumbnails)), config)
    return World(images, splits, licences, {key: package.version for key, package in packages.items()}, left_out)


def _look_at_all(sets: dict[str, IconSet], concepts: dict[str, Concept]
                 ) -> tuple[list[StyledImage], list[np.ndarray], dict[str, list[str]]]:
    """The pictures, their thumbnails uint8 [32, 32, 3], and icons that cannot be drawn."""
    found = [StyledImage(concepts[text], STYLES[style], sets[style], name)
             for style, icons in match(sets, concepts).items() for text, name in sorted(icons.items())]
    images, thumbnails, left_out = [], [], defaultdict(list)
    for one in progress(found, desc="looking", unit="picture"):
        thumbnail = one.render(THUMBNAIL)
        if thumbnail is None:
            left_out["cannot be drawn"].append(f"{one.style.key}:{one.icon}")
            continue
        images.append(one)
        thumbnails.append(thumbnail)
    return images, thumbnails, dict(left_out)
