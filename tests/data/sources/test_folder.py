import io
import json
import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from vilg.data.images import read_image
from vilg.data.loader import Loader, LoaderConfig, Mixture
from vilg.data.packing import Packing, write_shards
from vilg.data.sample import BrokenSample, Reading
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.worlds.scenes import parse_caption
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource
from vilg.errors import DataError


def paint(path, colour=(200, 30, 30), size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_scenes():
    source = ScenesSource(ScenesConfig(split="test", count=5, first=100, size=32))
    sample = source[2]
    assert len(source) == 5 and sample.image.shape == (32, 32, 3) and sample.image.dtype == np.uint8
    assert sample.key == "scenes/test/102" and sample.captions and sample.questions
    assert source[2].captions == sample.captions
    with pytest.raises(ValueError):
        ScenesConfig(count=0)
    with pytest.raises(ValueError, match="kinds is 1, 2 or 3"):
        ScenesConfig(kinds=4)
    with pytest.raises(ValueError, match="at most 2 in split unseen"):
        ScenesConfig(kinds=3, split="unseen")


@pytest.mark.parametrize("say", ["places", "relations"])
def test_a_scenes_source_that_prefers_what_captions_say(say):
    anything = ScenesSource(ScenesConfig(count=40, size=16, kinds=2))
    source = ScenesSource(ScenesConfig(count=40, size=16, kinds=2, say=say))

    def says(sample):
        claims = [parse_caption(text) for text in sample.captions]
        return [bool(c.relations) if say == "relations" else all(group.cell for group in c.groups) for c in claims]

    mixed = 0
    for index in range(40):
        assert 1 <= len(source[index].captions) <= 4
        assert len(set(says(source[index]))) == 1  # all of them say it, or no caption of the scene does
        mixed += len(set(says(anything[index]))) == 2
        if any(says(anything[index])):
            assert all(says(source[index]))
    assert mixed > 10  # without the preference most scenes have both


def test_a_scenes_source_of_several_kinds():
    source = ScenesSource(ScenesConfig(count=4, size=32, kinds=3))
    for index in range(4):
        groups = parse_caption(source[index].captions[0]).groups
        assert sum(group.count for group in groups) == 3


def test_folder_is_read_recursively_with_several_captions(tmp_path):
    paint(tmp_path / "a.png")
    paint(tmp_path / "deep" / "b.JPG")
    (tmp_path / "a.txt").write_text("第一句\n\n 第二句 \n", encoding="utf-8")
    (tmp_path / "deep" / "b.txt").write_text("\ufeff另一句\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("no image")
    source = FolderSource(FolderConfig(path=str(tmp_path)))
    assert [source[i].key for i in range(len(source))] == ["a.png", "deep/b.JPG"]
    assert source[0].captions == ["第一句", "第二句"] and source[1].captions == ["另一句"]
    assert source[0].image.shape == (10, 20, 3)
    assert FolderSource(FolderConfig(path=str(tmp_path), first_caption_only=True))[0].captions == ["第一句"]


def test_folder_names_what_is_broken(tmp_path):
    for stem in ("cut", "mute", "empty", "binary"):
        paint(tmp_path / f"{stem}.png", size=(64, 64))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    (tmp_path / "cut.txt").write_text("一句")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    source = FolderSource(FolderConfig(path=str(tmp_path)))
    reasons = {}
    for index in range(len(source)):
        with pytest.raises(BrokenSample) as caught:
            source[index]
        reasons[caught.value.name.removeprefix(f"{tmp_path}/")] = caught.value.reason
    assert reasons["mute.png"] == "no caption file mute.txt"
    assert reasons["empty.png"] == "empty.txt holds no caption"
    assert "UTF-8" in reasons["binary.png"] and "not a whole image" in reasons["cut.png"]


@pytest.mark.parametrize("make, message", [
    (lambda path: FolderSource(FolderConfig(path=str(path / "none"))), "no such folder"),
    (lambda path: FolderSource(FolderConfig(path=str(path))), "holds no image"),
    (lambda path: TableSource(TableConfig(path=str(path / "none.tsv"))), "cannot be read"),
    (lambda path: TableSource(TableConfig(path=str(path / "table.csv"))), "a .tsv or a .jsonl"),
])
def test_data_that_are_not_there(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        make(tmp_path)


def test_tsv(tmp_path):
    paint(tmp_path / "pictures" / "a.png")
    (tmp_path / "t.tsv").write_text("a.png\t一句\t又一句\n\nb.png\t没有图\na.png\t \na.png\n", encoding="utf-8")
    source = TableSource(TableConfig(path=str(tmp_path / "t.tsv"), pictures=str(tmp_path / "pictures")))
    assert len(source) == 4 and source[0].captions == ["一句", "又一句"] and source[0].questions == []
    for index, reason in ((1, "t.tsv line 3 .*missing"), (2, "line 4 .*no caption"), (3, "line 5 .*no caption")):
        with pytest.raises(BrokenSample, match=reason):
            source[index]


def test_jsonl(tmp_path):
    paint(tmp_path / "a.png")
    records = [{"picture": "a.png", "captions": ["一句"], "questions": [["什么颜色？", "红色"]]},
               {"picture": "a.png", "captions": "一句"}, {"picture": "a.png", "caption": "一句", "questions": [["一"]]},
               {"picture": 3, "caption": "一句"}, {"captions": ["一句"]}, {"picture": "a.png"}, ["a.png"],
               {"picture": "a.png", "captions": {"zh": "一句"}}, {"picture": "a.png", "captions": [["一句"]]},
               {"picture": "a.png", "caption": "一句", "questions": ["什么"]},
               {"picture": "a.png", "caption": "一句", "questions": {"什么": "圆"}}]
    lines = [json.dumps(record, ensure_ascii=False) for record in records] + ['{"picture": "a.p']
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = TableSource(TableConfig(path=str(tmp_path / "t.jsonl")))
    assert source[0].questions == [("什么颜色？", "红色")] and source[1].captions == ["一句"]
    for index in range(2, len(source)):
        with pytest.raises(BrokenSample, match=f"line {index + 1}"):
            source[index]


def test_jsonl_with_nulls_blank_questions_and_half_characters(tmp_path):
    paint(tmp_path / "a.png")
    lines = ['{"picture": "a.png", "captions": null, "caption": "一句", "questions": null}',
             '{"picture": "a.png", "caption": "猫\\ud83d", '
             '"questions": [["", "一"], ["\\u200b", "二"], ["几？", "三\\udc00"]]}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = TableSource(TableConfig(path=str(tmp_path / "t.jsonl")))
    assert (source[0].captions, source[0].questions) == (["一句"], [])
    assert (source[1].captions, source[1].questions) == (["猫?"], [("几？", "三?")])


def test_caption_lines_end_at_line_feeds_alone(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("\ufeff一只\u2028猫\x85坐\x0b在\r\n\n第二\n".encode())
    assert FolderSource(FolderConfig(path=str(tmp_path)))[0].captions == ["一只\u2028猫\x85坐\x0b在", "第二"]


def test_linked_folders_are_searched_once_and_circles_end(tmp_path):
    for name in ("far/x.png", "near/b/own.png", "near/hidden/y.png", "near/c.png", "near/b-1/z.PNG"):
        paint(tmp_path / name)
    near = tmp_path / "near"
    found = sorted(path.relative_to(near).as_posix() for path in near.rglob("*") if path.suffix.lower() == ".png")
    assert sorted(FolderSource(FolderConfig(path=str(near)), Reading(texts=False)).images) == found
    order = ["/".join(path.relative_to(near).parts) for path in sorted(near.rglob("*")) if path.is_file()]
    assert FolderSource(FolderConfig(path=str(near)), Reading(texts=False)).images == order
    for link, target in (("a", "far"), ("d", "far"), ("a2", "near/b"), ("b/back", "near"), ("e.png", "far/x.png")):
        (near / link).symlink_to(tmp_path / target)
    (tmp_path / "far/round").symlink_to(near)
    linked = FolderSource(FolderConfig(path=str(near)), Reading(texts=False))
    assert linked.images == sorted([*order, "a/x.png", "e.png"],
                                                                         key=lambda name: name.split("/"))


def test_file_names_that_are_not_utf8(tmp_path):
    paint(tmp_path / "a.png")
    for name in ("鸟", "狗"):
        stem = os.fsencode(tmp_path) + b"/" + name.encode("gbk")
        shutil.copy(tmp_path / "a.png", stem + b".png")
        with open(stem + b".txt", "w", encoding="utf-8") as texts:
            texts.write(name)
    (tmp_path / "a.png").unlink()
    source = FolderSource(FolderConfig(path=str(tmp_path)))
    assert {source[0].key, source[1].key} == {r"\xc4\xf1.png", r"\xb9\xb7.png"}
    assert write_shards(tmp_path / "shards", source, Packing("png")).written == 2
    os.remove(os.fsencode(tmp_path) + b"/" + "鸟".encode("gbk") + b".txt")
    with pytest.raises(BrokenSample, match=r"/\\xc4\\xf1.png: no caption file \\xc4\\xf1.txt"):
        [source[number] for number in range(2)]


def test_a_set_with_five_per_cent_broken_files_goes_round(tmp_path, caplog):
    for number in range(60):
        paint(tmp_path / f"{number:02d}.png", colour=(number, 0, 0))
        (tmp_path / f"{number:02d}.txt").write_text(f"第{number}张", encoding="utf-8")
    (tmp_path / "07.png").write_bytes((tmp_path / "07.png").read_bytes()[:40])
    (tmp_path / "20.txt").unlink()
    (tmp_path / "41.txt").write_text("")
    stream = Mixture([FolderSource(FolderConfig(path=str(tmp_path)))])
    run = Loader(stream, LoaderConfig(), lambda samples, seeds: {"key": np.array([s.key for s in samples])}, 8)
    keys = np.concatenate([next(run)["key"] for _ in range(30)])
    run.close()
    assert set(keys) == {f"{number:02d}.png" for number in range(60)} - {"07.png", "20.png", "41.png"}
    assert len(run.broken) == 3
    assert [caplog.text.count(name) for name in ("07.png (", "20.png (", "41.png (")] == [1, 1, 1]


def test_pictures_are_upright_opaque_rgb(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", "clear") == 255).all()
    turned = Image.new("RGB", (8, 4), (10, 200, 10))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image((tmp_path / "turned.jpg").read_bytes(), "turned").shape == (8, 4, 3)
    Image.new("L", (5, 5), 7).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png", "grey") == 7).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_exif_orientation(tmp_path, orientation, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype="uint8")
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif, lossless=True)
    with Image.open(tmp_path / f"a.{suffix}") as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}", "a"), expected)


def test_exif_of_wrong_types_does_not_matter():
    tags = [(0x100, 2, 4, b"20\0\0"), (0x112, 3, 1, b"\6\0\0\0"), (0x11a, 1, 4, b"72\0\0")]  # width as text …
    table = b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3) + table + bytes(4)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "JPEG")
    content = buffer.getvalue()
    content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]
    assert read_image(content, "x").shape == (20, 10, 3)


def test_whatever_a_decoder_raises_is_a_broken_picture():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "TIFF")
    where = struct.pack("<HH", 0x111, 4)  # the tag of the pixels' place, a whole number
    assert where in buffer.getvalue()
    content = buffer.getvalue().replace(where, struct.pack("<HH", 0x111, 2))  # Pillow: TypeError
    with pytest.raises(BrokenSample, match="x: not a whole image"):
        read_image(content, "x")


def test_grey_of_sixteen_bits_is_scaled_and_what_cannot_be_is_broken(tmp_path):
    levels = np.linspace(0, 65535, 256).reshape(16, 16)
    for name, kind in (("a.png", "uint16"), ("a.tif", "uint16"), ("b.tif", "int32")):
        Image.fromarray(levels.astype(kind)).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name, name)[..., 1].ravel(), range(256))
    Image.fromarray(levels.astype("uint16")).save(tmp_path / "c.png", transparency=0)
    assert (read_image(tmp_path / "c.png", "c")[0, 0] == 255).all()
    Image.fromarray((levels / 65535).astype("float32")).save(tmp_path / "f.tif")
    Image.fromarray((levels * 100).astype("int32")).save(tmp_path / "i.tif")
    for name, reason in (("f.tif", "mode F with levels from 0 to 1;"), ("i.tif", "mode I with levels from 0 to 6")):
        with pytest.raises(BrokenSample, match=reason):
            read_image(tmp_path / name, name)
