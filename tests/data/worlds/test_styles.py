"""The world of styles, on small packages in the format of the real ones, drawn and written in full."""
import hashlib
import io
import json
import os
import runpy
import shutil
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg.config import from_dict
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.worlds import styles
from vilg.data.worlds.styles import packages, splits
from vilg.data.worlds.styles.concepts import match, read_concepts, read_debian_concepts, read_icons
from vilg.data.worlds.styles.draw import draw
from vilg.errors import ConfigError, DataError

pytest.importorskip("resvg_py", reason="needs the extra styles")
ROOT = Path(__file__).resolve().parents[3]
TWINS = ("fluent-emoji", "fluent-emoji-flat")
APPLE, TURKEY, ASTRONAUT, WOMAN_ASTRONAUT = "🍎", "🦃", "🧑\u200d🚀", "👩\u200d🚀"
FRUIT = {text: (f"果{number}", f"fruit-{number}") for number, text in enumerate("🍇🍈🍉🍊🍋🍌🍍🍏🍐🍑🍒🍓🥝🍅🥥🥑🍆🥔🥕🌽🌶🥒🥬🥦🧄🧅🍄🥜🌰🍞")}
NAMED = {APPLE: ("红苹果", "red-apple"), TURKEY: ("火鸡", "turkey"), ASTRONAUT: ("宇航员", "astronaut"),
         WOMAN_ASTRONAUT: ("女宇航员", "woman-astronaut"), **FRUIT}
ALIKE_CONCEPTS = {"🍈": "🍇"}  # drawn by all styles as the other one
BREAD = "🍞"  # drawn by fxemoji alone, which does not draw the turkey
DRAWN = 10 * (len(NAMED) - 1)


def squares(*seed) -> str:
    """An SVG body of 8 × 8 coloured squares in 64 × 64, a pure function of the seed."""
    rng = np.random.default_rng(list(hashlib.sha256(repr(seed).encode()).digest()))
    return "".join(f'<path fill="#{rng.integers(0, 2**24):06x}" d="M{8 * x} {8 * y}h8v8h-8z"/>'
                   for x in range(8) for y in range(8))


def body(text: str, style: str) -> str:
    text = ALIKE_CONCEPTS.get(text, text)
    if style == "fxemoji" and text == "🍉":
        style = "twemoji"  # the held-out style's copy of a trained picture
    dot = '<circle cx="20" cy="20" r="5" fill="#123"/>' if style == TWINS[1] else ""
    return squares(text, TWINS[0] if style in TWINS else style) + dot


def json_files(style: str) -> dict[str, object]:
    """The files of a style's package; fxemoji says no code points and writes names without hyphens."""
    known = packages.STYLES[style]
    plain_names = style == "fxemoji"
    icons = {name.replace("-", "") if plain_names else name: {"body": body(text, style)}
             for text, (_, name) in NAMED.items() if text != (TURKEY if plain_names else BREAD)}
    if plain_names:
        icons["turkey"] = {"body": squares("a flag")}
    points = {"-".join(f"{ord(letter):x}" for letter in text): name for text, (_, name) in NAMED.items()}
    return {
        "package.json": {"name": known.package, "version": known.version, "license": "something else"},
        "icons.json": {"prefix": style, "icons": icons, "width": 64, "height": 64},
        "chars.json": {} if plain_names else points,
        "metadata.json": {"categories": {"Flags": ["turkey"]}} if plain_names else {},
        "info.json": {"author": {"name": f"Artist of {style}", "url": "https://example.org"},
                      "license": {"title": known.licence, "spdx": known.licence, "url": "https://example.org/licence"}},
    }


def names_package() -> dict[str, object]:
    entries = {text: {"default": ["食物", f"{name} ", "红"], "tts": [name]} for text, (name, _) in NAMED.items()}
    return {"package.json": {"name": packages.NAMES_PACKAGE, "version": "1.0.0"},
            "annotations/zh/annotations.json": {"annotations": {"annotations": entries}}}


def write_files(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def pack(folder: Path, files: dict[str, object]) -> Path:
    about = files["package.json"]
    path = folder / f"{about['name'].lstrip('@').replace('/', '-')}-{about['version']}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Half of the packages packed, half unpacked, beside a folder of something else."""
    folder = tmp_path_factory.mktemp("packages")
    for number, style in enumerate(packages.STYLES):
        files = json_files(style)
        pack(folder, files) if number % 2 else write_files(folder / "node_modules" / style, files)
    pack(folder, names_package())
    write_files(folder / "other", {"package.json": {"name": "left-pad"}})
    (folder / "other-1.0.tgz").write_bytes(b"not a package")
    return folder


def make_world(downloads, permissive=False, **config):
    found, concepts = styles.gather(downloads, fetching=False, permissive=permissive, debian=None)
    config = from_dict(styles.SplitConfig, {"held_concepts": 0.15, "held_cells": 0.3, **config})
    return styles.collect(found, concepts, config), config


@pytest.fixture(scope="module")
def written(downloads, tmp_path_factory):
    world, config = make_world(downloads)
    folder = tmp_path_factory.mktemp("data") / "styles"
    return folder, styles.write(world, folder, 48, config)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for name in styles.SPLITS if (folder / f"{name}.jsonl").exists()
            for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_tables_are_read_as_ordinary_sources(written):
    folder, about = written
    table = TableSource(TableConfig(path=str(folder / "train.jsonl")))
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(table) == len(lines) == about["splits"]["train"] > 150
    for number in range(0, len(lines), 7):
        sample, line = table[number], lines[number]
        style, name = packages.STYLES[line["style"]].description, line["name"]
        image = next(value for value in vars(sample).values() if isinstance(value, np.ndarray))
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / line["picture"])))
        assert image.shape == (48, 48, 3)
        assert sample.captions[:2] == [name, f"{style}的{name}"] and sample.captions[-1] == f"{name}，食物、红"
        assert len(sample.captions) == 5 and all(name in text for text in sample.captions)
        assert sample.questions == [("这是什么？", name), ("什么风格？", style)]
        assert line["split"] == "train" and line["tags"] == ["食物", "红"] and line["style_name"] == style
        assert line["picture"] == f"{line['style']}/{line['concept']}.png"


def test_every_icon_becomes_the_picture_of_its_concept(written):
    folder, about = written
    found = {(line["concept"], line["style"]) for line in records(folder)}
    assert len(found) == about["images"] == DRAWN
    assert ("1f34e", "fxemoji") in found and ("1f34e", "openmoji") in found
    assert ("1f983", "fxemoji") not in found, "the flag of Turkey is no turkey"
    assert sorted(path.name for path in folder.glob("*/*.png")) == sorted(f"{concept}.png" for concept, _ in found)


def assert_no_leak(lines: list[dict], held_styles: list[str]) -> None:
    by_split = defaultdict(list)
    for line in lines:
        by_split[line["split"]].append(line)

    def seen(*keys, split="train"):
        return {tuple(line[key] for key in keys) for line in by_split[split]}

    families = {line["style"]: line["family"] for line in lines}
    held_families = {(families[style],) for style in held_styles}
    assert seen("family") & held_families == set()
    for split in ("styles", "both"):
        assert seen("family", split=split) <= held_families
    for split in ("concepts", "both"):
        assert seen("group") & seen("group", split=split) == set()
    assert seen("concept", split="styles") <= seen("concept")
    assert seen("family", split="concepts") & held_families == set()
    cells = seen("group", "family", split="cells")
    assert cells & seen("group", "family") == set()
    assert seen("concept", split="cells") <= seen("concept") and seen("style", split="cells") <= seen("style")


def test_no_split_leaks_into_training(downloads):
    filled = set()
    for seed in range(12):
        held = [["fxemoji"], ["fluent-emoji"], [], ["noto", "openmoji"]][seed % 4]
        world, _ = make_world(downloads, seed=seed, held_styles=held, held_cells=[0.3, 0.3, 0.99, 0.3][seed % 4])
        lines = [{"concept": one.concept.key, "style": one.style.key, "split": split,
                  "family": world.splits.families[one.style.key], "group": world.splits.groups[one.concept.text]}
                 for one, split in zip(world.images, world.splits.splits)]
        assert_no_leak(lines, held)
        filled |= {line["split"] for line in lines}
        pixels = np.stack([one.render(32) for one in world.images]).reshape(len(lines), -1)
        likeness = np.corrcoef(pixels)
        trained = np.array([line["split"] == "train" for line in lines])
        tested = np.array([line["split"] not in ("train", "copies") for line in lines])
        copies = np.array([line["split"] == "copies" for line in lines])
        assert likeness[np.ix_(tested, trained)].max() < splits.ALIKE
        assert (likeness[np.ix_(copies, trained)].max(1) >= splits.ALIKE - 1e-6).all()
        assert world.splits.families[TWINS[0]] == world.splits.families[TWINS[1]]
        assert len(set(world.splits.families.values())) == 9
    assert filled == set(styles.SPLITS)


def test_concepts_drawn_alike_or_differing_in_gender_are_a_group(written):
    group = {line["concept"]: line["group"] for line in records(written[0])}
    assert group["1f348"] == group["1f347"], "drawn alike"
    assert group["1f9d1_200d_1f680"] == group["1f469_200d_1f680"], "woman and person"
    assert len(set(group.values())) == len(NAMED) - 2


def test_splits_depend_on_the_seed_and_not_on_the_size(downloads, written, tmp_path):
    dealt = {line["picture"]: line["split"] for line in records(written[0])}
    world, config = make_world(downloads)
    styles.write(world, tmp_path / "large", 96, config)
    assert {line["picture"]: line["split"] for line in records(tmp_path / "large")} == dealt
    assert Image.open(tmp_path / "large/noto/1f34e.png").size == (96, 96)
    other, _ = make_world(downloads, seed=5)
    assert other.splits.splits != [dealt[one.file] for one in world.images]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_packages_give_the_same_bytes(downloads, written, tmp_path):
    world, config = make_world(downloads)
    styles.write(world, tmp_path / "again", 48, config)
    assert contents(tmp_path / "again") == contents(written[0])
    (tmp_path / "again/noto/stale.png").write_bytes(b"of an earlier run")
    (tmp_path / "again.part").mkdir()  # of a run that was stopped
    styles.write(world, tmp_path / "again", 48, config)
    assert contents(tmp_path / "again") == contents(written[0])
    assert not (tmp_path / "again.part").exists()


def test_permissive_art_alone_and_whose_it_is(downloads, written, tmp_path):
    world, config = make_world(downloads, permissive=True)
    about = styles.write(world, tmp_path / "free", 16, config)
    assert {style["spdx"] for style in about["styles"].values()} == {"MIT", "Apache-2.0"} and len(about["styles"]) == 5
    free, everything = ((folder / "LICENCES.md").read_text() for folder in (tmp_path / "free", written[0]))
    for style in packages.STYLES.values():
        row = next(line for line in everything.splitlines() if line.startswith(f"| {style.key} |"))
        assert f"Artist of {style.key} |" in row and style.licence in row and style.version in row
        assert (f"| {style.key} |" in free) == (style.licence in packages.PERMISSIVE)


def icon_set(tmp_path, icons, chars=None, aliases=None, flags=()):
    files = {"package.json": {"name": "x", "version": "1"}, "chars.json": chars or {},
             "metadata.json": {"categories": {"Flags": list(flags)}},
             "icons.json": {"icons": {name: {"body": squares(name)} for name in icons} if isinstance(icons, list)
                            else icons, "aliases": aliases or {}, "width": 64, "height": 64}}
    return read_icons(packages.Package(write_files(tmp_path, files)))


def test_icons_are_matched_by_code_points_names_and_letters(downloads, tmp_path):
    concepts = read_concepts(packages.find([packages.NAMES_PACKAGE], downloads)[packages.NAMES_PACKAGE])
    said = icon_set(tmp_path / "said", ["red-apple", "melon"], {"1f34e": "red-apple", "1f348": "melon"})
    other = icon_set(tmp_path / "other", ["redapple", "melon-1", "melon-2", "ear-of-maize", "hot-pepper", "aubergine",
                                          "mushroom-x"], {"1f336-fe0f": "hot-pepper"}, {"egg-plant": {"parent": "x"}})
    found = match({"said": said, "other": other}, concepts)
    assert found["said"] == {"🍎": "red-apple", "🍈": "melon"}
    assert found["other"] == {"🍎": "redapple", "🍈": "melon-1", "🌽": "ear-of-maize", "🌶": "hot-pepper",
                              "🍆": "aubergine"}
    aliased = icon_set(tmp_path / "aliased", ["a", "b"], {"1f34e": "a"},
                       {"melon": {"parent": "a"}, "mushroom": {"parent": "b"}})
    assert match({"said": said, "aliased": aliased}, concepts)["aliased"] == {"🍎": "a", "🍄": "mushroom"}


def test_icons_are_padded_to_squares_and_mirrored_where_an_alias_says_so(tmp_path):
    half = '<path fill="#f00" d="M0 0h16v64H0z"/><path fill="#00f" d="M16 0h16v64H16z"/>'
    icons = icon_set(tmp_path, {"bar": {"body": half, "width": 32}, "blank": {"body": ""}, "bad": {"body": "<path"}},
                     aliases={"rab": {"parent": "bar", "hFlip": True}, "lying": {"parent": "bar", "rotate": 1}})
    image = draw(icons, "bar", 64)
    assert image.shape == (64, 64, 3) and (image[:, :16] == 255).all() and (image[:, 48:] == 255).all()
    assert (image[:, 16:32] == (255, 0, 0)).all() and (image[:, 32:48] == (0, 0, 255)).all()
    np.testing.assert_array_equal(draw(icons, "rab", 64), image[:, ::-1])
    np.testing.assert_array_equal(draw(icons, "lying", 64)[16:32, 32], np.full((16, 3), (255, 0, 0)))
    assert draw(icons, "blank", 64) is None and draw(icons, "bad", 64) is None


def test_debian_names_are_those_of_npm(downloads, tmp_path):
    (tmp_path / "annotations").mkdir()
    lines = "".join(f'<annotation cp="{text}">食物 | {name} | 红</annotation>'
                    f'<annotation cp="{text}" type="tts">{name}</annotation>' for text, (name, _) in NAMED.items())
    (tmp_path / "annotations/zh.xml").write_text(f"<ldml>{lines}</ldml>", encoding="utf-8")
    package = packages.find([packages.NAMES_PACKAGE], downloads)[packages.NAMES_PACKAGE]
    assert read_debian_concepts(tmp_path) == read_concepts(package)
    with pytest.raises(DataError, match="unicode-cldr-core"):
        read_debian_concepts(tmp_path / "none")


def test_packages_that_cannot_be_used_are_named(downloads, tmp_path):
    def gather(folder):
        return styles.gather(folder, fetching=False, permissive=True, debian=None)

    with pytest.raises(DataError, match="there is no such folder of packages"):
        gather(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no .*npm pack @iconify-json/noto @iconify-json/noto-v1"):
        gather(tmp_path)
    copy = shutil.copytree(downloads, tmp_path / "copy")
    twin = json_files("noto")
    twin["package.json"]["version"] = "0.1.0"
    pack(copy, twin)
    with pytest.raises(DataError, match=r"holds @iconify-json/noto twice, 0.1.0 and 1.2.9"):
        gather(copy)
    damaged = next(downloads.glob("*noto-v1*.tgz"))
    (tmp_path / damaged.name).write_bytes(damaged.read_bytes()[:900])
    with pytest.raises(DataError, match=rf"{damaged.name}: package.json cannot be read .*npm pack"):
        gather(tmp_path)


@pytest.mark.parametrize("member, content, words", [
    ("info.json", {"author": {"name": "A", "url": "u"}, "license": {"spdx": "GPL-3.0"}}, "under GPL-3.0, and Apache"),
    ("info.json", {}, "names no author and licence"),
    ("icons.json", {"icons": {"red-apple": "M0 0"}}, "not a set of icons"),
    ("icons.json", {"icons": {"nothing-of-ours": {"body": "<g/>"}}}, "no icon shows a concept"),
    ("chars.json", {"zz": "red-apple"}, "no code points"),
    ("icons.json", None, "has no icons.json"),
])
def test_damaged_packages_are_refused(downloads, tmp_path, member, content, words):
    files = json_files("noto")
    write_files(tmp_path, {**files, member: content})
    if content is None:
        (tmp_path / member).unlink()
    found, concepts = styles.gather(downloads, fetching=False, permissive=True, debian=None)
    with pytest.raises(DataError, match=f"{tmp_path}.*{words}"):
        styles.collect({**found, "noto": packages.Package(tmp_path)}, concepts, styles.SplitConfig())


def test_output_of_other_data_is_left_alone(downloads, written, tmp_path):
    world, config = make_world(downloads)
    for name, sentence in (("photo.jpg", "holds other data already, such as photo.jpg"),
                           ("train.jsonl", "holds other data already, such as train.jsonl")):
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        (place / name).write_text("mine")
        with pytest.raises(DataError, match=sentence):
            styles.write(world, place, 16, config)
        assert (place / name).read_text() == "mine"
    ours = shutil.copytree(written[0], tmp_path / "ours")
    (ours / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"such as notes\.txt"):
        styles.write(world, ours, 16, config)
    with pytest.raises(DataError, match="is a file"):
        styles.check_output(tmp_path / "photo/photo.jpg", 16)
    with pytest.raises(ConfigError, match="8 to 1024 pixels a side, not 4"):
        styles.check_output(tmp_path / "new", 4)
    with pytest.raises(ConfigError, match="noto-v2 is not among the styles"):
        make_world(downloads, held_styles=["noto-v2"])


@pytest.fixture
def tool(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/prepare_styles.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "tools/prepare_styles.py"), run_name="__main__")
        output, error = capsys.readouterr()
        assert "Traceback" not in error
        return left.value.code, output, error.strip().splitlines()[-1]

    return run


def test_the_tool_fetches_writes_and_tells(downloads, tmp_path, tool, monkeypatch):
    npm = tmp_path / "bin/npm"  # what npm does with `npm pack NAME@VERSION`, from a folder instead of the registry
    npm.parent.mkdir()
    npm.write_text('#!/bin/sh\nfor last; do :; done\nname=$(echo "${last%@*}" | sed "s/^@//; s,/,-,")\n'
                   f'cp {tmp_path}/packed/$name-[0-9]*.tgz "$4" || {{ echo "404 $last" >&2; exit 1; }}\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    output = tmp_path / "styles"
    (tmp_path / "packed").mkdir()
    status, _, last = tool("--output", output)
    assert status == 2 and "npm pack @iconify-json/noto@1.2.9 failed (404 @iconify-json/noto@1.2.9)" in last
    for style in packages.STYLES:
        pack(tmp_path / "packed", json_files(style))
    pack(tmp_path / "packed", names_package())
    status, told, _ = tool("--output", output, "--size", 16, "--download", tmp_path / "kept",
                           "--json", tmp_path / "figures.json")
    assert status == 0 and f"{DRAWN} pictures of {len(NAMED)} concepts" in told
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads((output / "world.json").read_text())
    assert len(list((tmp_path / "kept").glob("*.tgz"))) == 11
    monkeypatch.setenv("PATH", str(tmp_path / "kept"))
    status, _, last = tool("--output", output)
    assert status == 2 and last.startswith("error: npm is missing") and "--packages" in last


def test_a_missing_renderer_is_named_before_the_work(downloads, tmp_path, tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    status, _, last = tool("--output", tmp_path / "styles", "--packages", downloads)
    assert status == 2 and "resvg_py" in last and "vilg[styles]" in last
    assert not (tmp_path / "styles").exists()
