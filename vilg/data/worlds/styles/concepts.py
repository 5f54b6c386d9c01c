"""What the pictures show: characters with Chinese names and key words, and which icon of a set draws which of them."""
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from vilg.data.worlds.emoji import EMOJI_STYLE, chinese_name, code_points, read_annotations
from vilg.data.worlds.styles.packages import Package
from vilg.errors import DataError

NUMBERED = re.compile(r"-1$")  # a set with several drawings of a thing counts them; the first stands for it
FLAG = "旗"
FIRST_SYMBOL = "\u2000"  # what comes before are letters and signs of writing: an icon called asterisk may be a key


@dataclass(frozen=True)
class Concept:
    """One thing that styles draw: its text (one emoji), unique Chinese name, and key words other than the name."""

    text: str
    name: str
    tags: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its code points in hexadecimal, such as ``1f34e``."""
        return code_points(self.text)


@dataclass(frozen=True)
class IconSet:
    """The icons of one style: ``icons``, their SVG bodies and sizes by name; ``aliases``, further names, some of them
    mirrored; ``texts``, the emoji by name where the set says it; ``flags``, the names of flags, some of them called by
    their country alone, such as turkey; ``size``, the width and height of most icons."""

    icons: dict[str, dict]
    aliases: dict[str, dict]
    texts: dict[str, str]
    flags: frozenset[str]
    size: tuple[float, float]


def read_icons(package: Package) -> IconSet:
    """The icons of a package. Raises DataError when it is damaged or holds none."""
    content, texts = package.read("icons.json"), package.read("chars.json")
    icons, aliases = content.get("icons"), content.get("aliases", {})
    size = content.get("width", 16), content.get("height", 16)  # 16 is what the format says where a set is silent
    whole = (isinstance(icons, dict) and icons and isinstance(aliases, dict)
             and all(isinstance(side, int | float) for side in size)
             and all(isinstance(icon, dict) and isinstance(icon.get("body"), str) for icon in icons.values()))
    if not whole:
        raise DataError(f"{package.path}: icons.json is not a set of icons; fetch the package again with `npm pack`")
    aliases = {name: alias for name, alias in aliases.items()
               if isinstance(alias, dict) and alias.get("parent") in icons}
    try:
        texts = {str(name): _plain("".join(chr(int(point, 16)) for point in points.split("-")))
                 for points, name in sorted(texts.items(), reverse=True)}
    except (ValueError, OverflowError):
        raise DataError(f"{package.path}: chars.json has keys that are no code points; fetch the package again with "
                        "`npm pack`") from None
    return IconSet(icons, aliases, texts, _flags(package), size)


def read_concepts(package: Package) -> dict[str, Concept]:
    """Every character that CLDR names in Chinese, by its text, from npm's package. Raises DataError when damaged."""
    entries = package.read("annotations/zh/annotations.json").get("annotations")
    entries = entries.get("annotations") if isinstance(entries, dict) else None
    try:
        named = {text: (chinese_name(entry["tts"][0]), list(entry.get("default", [])))
                 for text, entry in entries.items() if entry.get("tts")}
    except (AttributeError, TypeError, KeyError):
        raise DataError(f"{package.path}: annotations/zh/annotations.json holds no names; fetch the package again with "
                        "`npm pack`") from None
    return _concepts(named)


def read_debian_concepts(root: str | Path) -> dict[str, Concept]:
    """The same from the folder of Debian's ``unicode-cldr-core``. Raises DataError when it is missing or damaged."""
    return _concepts(read_annotations(Path(root), parts=("annotations",)))


def match(sets: dict[str, IconSet], concepts: dict[str, Concept]) -> dict[str, dict[str, str]]:
    """Style → text of a concept → name of the icon (or alias) that draws it.

    A set's own code points decide; then the names that other sets give to theirs; then the same letters without
    hyphens, among those names and Unicode's own. An icon draws one concept, and a concept has one icon a style.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for icons in sets.values():
        for name, text in icons.texts.items():
            votes[name][text] += 1
    named = {name: min(count, key=lambda text: (-count[text], text)) for name, count in votes.items()}
    bare: dict[str, set[str]] = defaultdict(set)
    for name, text in named.items():
        if text in concepts:
            bare[_bare(name)].add(text)
    for text in concepts:
        if len(text) == 1 and text >= FIRST_SYMBOL and (name := unicodedata.name(text, "")):
            bare[_bare(name)].add(text)
    only = {name: next(iter(texts)) for name, texts in bare.items() if len(texts) == 1}
    return {style: _match_set(icons, named, only, concepts) for style, icons in sets.items()}


def _match_set(icons: IconSet, named: dict[str, str], bare: dict[str, str],
               concepts: dict[str, Concept]) -> dict[str, str]:
    """Text of a concept → icon of this set. Aliases count where their icon has no concept of its own, or is mirrored.
    """
    found: dict[str, str] = {}
    known: set[str] = set()
    lookups = (icons.texts.get, named.get, lambda name: bare.get(_bare(NUMBERED.sub("", name))))
    for lookup in lookups:
        for names in (icons.icons, icons.aliases):
            for name in sorted(names):
                alias = icons.aliases.get(name, {}) if names is icons.aliases else {}
                drawing = name if len(alias) > 1 or not alias else alias["parent"]  # what else it has mirrors it
                text = lookup(name)
                if text is None or drawing in known:
                    continue
                known.add(drawing)
                if text in concepts and (name not in icons.flags or FLAG in concepts[text].name):
                    found.setdefault(text, name)
    return found


def _flags(package: Package) -> frozenset[str]:
    """The names that a package's categories list as flags."""
    categories = package.read("metadata.json").get("categories", {})
    lists = [names for title, names in categories.items() if title.lower() == "flags" and isinstance(names, list)] \
        if isinstance(categories, dict) else []
    return frozenset(str(name) for names in lists for name in names)


def _concepts(named: dict[str, tuple[str, list[str]]]) -> dict[str, Concept]:
    """Concepts by text, without variation selectors; of two characters of one name the first keeps it."""
    result: dict[str, Concept] = {}
    taken: set[str] = set()
    for text, (name, words) in sorted(named.items()):
        text = _plain(text)
        if name.casefold() in taken or text in result:
            continue
        taken.add(name.casefold())
        tags = dict.fromkeys(word for word in words if chinese_name(word).casefold() != name.casefold())
        result[text] = Concept(text, name, tuple(tags))
    return result


def _plain(text: str) -> str:
    return text.replace(EMOJI_STYLE, "")


def _bare(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
