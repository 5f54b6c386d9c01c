"""Files as people have them: each test rebuilds a kind of input that once went wrong."""
import gzip
import io
import json
import logging
import os
import struct
import tarfile
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from vilg import config
from vilg.data.captions import read_captions
from vilg.data.config import DataConfig, build_stream
from vilg.data.images import read_image
from vilg.data.loader import Loader, LoaderConfig, Mixture
from vilg.data.sample import BrokenSample, Reading
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.members import scan
from vilg.data.sources.shards import INDEX_FILE, ShardsConfig, ShardStream
from vilg.data.sources.table import TableConfig, TableSource
from vilg.errors import ConfigError, DataError


def image(number=0, form="PNG", size=(16, 12), **settings):
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 11 % 256, 40, 90)).save(buffer, form, **settings)
    return buffer.getvalue()


def member(name, content, size=None):
    """A header and its blocks; ``size`` may lie, as base-256 where it is negative."""
    item = tarfile.TarInfo(name)
    item.size = len(content)
    block = bytearray(item.tobuf(tarfile.USTAR_FORMAT))
    if size is not None:
        block[124:136] = struct.pack(">i", -1) + size.to_bytes(8, "big", signed=True) if size < 0 else (
            b"%011o\0" % size)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


def shard(path, files, end=True):
    content = b"".join(part if isinstance(part, bytes) else member(*part) for part in files)
    path.write_bytes(content + (bytes(1024 + -(len(content) + 1024) % 10240) if end else b""))
    return path


def pairs(count, name="{:05d}", text="第{}张图"):
    return [(name.format(number) + suffix, content) for number in range(count)
            for suffix, content in ((".png", image(number)), (".txt", text.format(number).encode()))]


def read_all(source):
    usable, broken = {}, []
    for number in range(len(source)):
        try:
            sample = source[number]
            usable[sample.key.split("/")[-1]] = sample
        except BrokenSample as problem:
            broken.append(str(problem))
    return usable, broken


def shards(folder, **settings):
    return ShardStream(ShardsConfig(path=str(folder)), **settings)


def colour(sample):
    return int(sample.image[0, 0, 0])


def test_a_repeated_key_breaks_its_sample_and_names_both_places(tmp_path):
    shard(tmp_path / "a.tar", [("0.png", image(1)), ("0.txt", b"one"), ("0.png", image(2)), *pairs(3, "x{}")])
    usable, broken = read_all(shards(tmp_path))
    assert sorted(usable) == ["x0", "x1", "x2"]
    assert len(broken) == 1 and "a.tar/0: its .png comes twice, at bytes 0 and 2048" in broken[0]


def test_samples_are_grouped_by_key_wherever_their_files_stand(tmp_path):
    files = pairs(20)
    shard(tmp_path / "a.tar", [*files[::2], *reversed(files[1::2])])
    usable, broken = read_all(shards(tmp_path))
    assert not broken and len(usable) == 20
    for number in range(20):
        sample = usable[f"{number:05d}"]
        assert sample.captions == [f"第{number}张图"] and colour(sample) == number * 11 % 256


def test_keys_with_dots_are_told_by_known_suffixes(tmp_path):
    shard(tmp_path / "a.tar", [*pairs(20, "IMG.{:05d}"), ("v1.2/a.png", image(3)), ("v1.2/a.caption.txt", b"a"),
                               ("p.q.JPEG", image(4, "JPEG")), ("p.q.Text", b"pq")])
    usable, broken = read_all(shards(tmp_path))
    assert not broken and len(usable) == 22
    assert usable["IMG.00007"].captions == ["第7张图"] and usable["p.q"].captions == ["pq"]


def test_further_images_of_a_sample_leave_it_whole(tmp_path):
    shard(tmp_path / "a.tar", [("0.seg.png", image(9)), ("0.png", image(1)), ("0.txt", b"one")])
    usable, broken = read_all(shards(tmp_path))
    assert not broken and colour(usable["0"]) == 11


def test_a_compressed_shard_is_named_with_what_unpacks_it(tmp_path):
    shard(tmp_path / "a.tar", pairs(4))
    index = {"a.tar": 4, "b.tar": 4}
    shard(tmp_path / "b.tar", pairs(4, "b{}"))
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    with pytest.raises(DataError, match=r"b.tar: is compressed by gzip.*`gzip -dc .*b.tar > NEW.tar`"):
        shards(tmp_path)
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes() + os.urandom(4096))
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(DataError, match="compressed by gzip"):
        read_all(shards(tmp_path))


@pytest.mark.parametrize("files", [
    [*pairs(2), ("2.png", image(2), -512), ("3.png", image(3), -1024), *pairs(2)],
    [*pairs(2), ("2.png", image(2), -512)],
    [("2.png", image(2), -512), *pairs(2)],
    [*pairs(2), ("2.png", image(2), 8 ** 11 - 1)],
])
def test_sizes_that_lie_cost_their_shard_alone_and_no_time(tmp_path, files):
    shard(tmp_path / "good.tar", pairs(5, "good{}"))
    shard(tmp_path / "lies.tar", files)
    started = time.monotonic()
    stream = shards(tmp_path)
    usable, _ = read_all(stream)
    assert time.monotonic() - started < 5
    assert {f"good{number}" for number in range(5)} <= set(usable) and "2" not in usable
    assert [problem.name for problem in stream.problems()] == [str(tmp_path / "lies.tar")]


@pytest.mark.parametrize("records", [
    b"".join(b"%d %s\n" % (len(text) + 4, text) for text in
             (b"GNU.sparse.major=1", b"GNU.sparse.name=0.png", b"GNU.sparse.realsize=999999999999")),
    b"0 size=3\n", b"9999999 path=x\n", b"no length\n", b"12 size=-51\n", b"13 size=x12\n\n"])
def test_extensions_that_lie_cost_their_shard_alone(tmp_path, records):
    block = bytearray(member("PaxHeaders/0", records))
    block[156:157] = b"x"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    shard(tmp_path / "good.tar", pairs(3, "good{}"))
    shard(tmp_path / "pax.tar", [bytes(block), ("0.png", image()), ("0.txt", b"a"), *pairs(2)])
    stream = shards(tmp_path)
    assert set(read_all(stream)[0]) == {"good0", "good1", "good2"}
    assert "pax.tar" in stream.problems()[0].name


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_chinese_names_are_read(tmp_path, form):
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name, content in (("很长的名字" * 30 + ".png", image(5)), ("很长的名字" * 30 + ".txt", "猫".encode()),
                              ("./._x.png", b"mac"), ("__MACOSX/y.png", b"mac"), (".hidden/z.png", b"")):
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    usable, broken = read_all(shards(tmp_path))
    assert not broken and usable["很长的名字" * 30].captions == ["猫"]


@pytest.mark.parametrize("content", ['{"a.tar": Infinity}', '{"a.tar": -5}', '{"a.tar": true}', '{"a.tar": 1.5}', "[3]",
                                     '{"a.tar": "3"}', "[" * 100_000, "\x00"])
def test_an_index_that_is_none_is_refused_with_what_writes_it(tmp_path, content):
    shard(tmp_path / "a.tar", pairs(3))
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(DataError, match="not an index of shards; write it again with `tools/prepare_data.py index"):
        shards(tmp_path)


def test_an_index_that_counts_more_than_a_shard_can_hold_is_counted_anew(tmp_path):
    shard(tmp_path / "a.tar", pairs(3))
    (tmp_path / INDEX_FILE).write_text(json.dumps({"a.tar": 10 ** 15, "gone.tar": 3}))
    assert len(shards(tmp_path)) == 3


def test_webdataset_texts_under_every_name(tmp_path):
    texts = {"a.txt": "一", "b.text": "二", "c.caption": "三", "d.caption.txt": "四",
             "e.json": '{"text": "五", "url": "u"}',
             "f.json": '{"caption": null, "text": ["六", "七"], "key": "k"}',
             "g.json": '{"url": "u"}', "g.txt": "八"}
    shard(tmp_path / "a.tar", [*((f"{key}.png", image()) for key in "abcdefg"),
                               *((name, text.encode()) for name, text in texts.items())])
    usable, broken = read_all(shards(tmp_path))
    assert not broken and [usable[key].captions[0] for key in "abcdefg"] == list("一二三四五六八")
    assert usable["e"].facts == {"url": "u"} and usable["f"].captions == ["六", "七"]


@pytest.mark.parametrize("files, texts, told", [
    ([(f"{n}.cls", b"3") for n in range(9)], True, r"all of the first 9 samples are broken: 9 × no image.*9 × \.cls"),
    ([(f"{n}.png", image()) for n in range(9)], True, r"all of the first 9 .*9 × no caption.*9 × \.png.*\.caption"),
])
def test_wholly_wrong_shards_say_what_they_hold(tmp_path, files, texts, told):
    shard(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=told):
        shards(tmp_path)


def test_a_task_that_reads_no_texts_asks_for_none(tmp_path):
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards" / "a.tar", [(f"{number}.png", image(number)) for number in range(5)])
    (tmp_path / "t.jsonl").write_text("".join(f'{{"picture": "{number}.png"}}\n' for number in range(5)))
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    for source in ({"kind": "folder", "path": str(tmp_path)}, {"kind": "table", "path": str(tmp_path / "t.jsonl")},
                   {"kind": "shards", "path": str(tmp_path / "shards")}):
        data = config.from_dict(DataConfig, {"sources": [source]})
        stream = build_stream(data, None, 8, False)
        stream.begin(0, 1)
        assert {colour(stream.sample(position, 0)) for position in range(5)} == {number * 11 for number in range(5)}
        with pytest.raises(DataError, match="all of the first .* samples are broken"):
            build_stream(data, None, 8, True)


def table(tmp_path, text, name="t.tsv", count=5, **settings):
    for number in range(count):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    (tmp_path / name).write_text(text, encoding="utf-8")
    return TableSource(TableConfig(path=str(tmp_path / name), **settings))


def test_tables_quoted_as_csv_writes_them(tmp_path):
    rows = ['0.png\t"他说""你好""，第0张图"', '"1.png"\t"一\t二"\t三', "2.png\t\"你好\"他说", '3.png\t""\t四', "4.png\t5\"屏幕"]
    source = table(tmp_path, "\n".join(rows))
    assert [source[number].captions for number in range(5)] == [
        ['他说"你好"，第0张图'], ["一\t二", "三"], ['"你好"他说'], ["四"], ['5"屏幕']]
    assert list(read_captions(tmp_path / "t.tsv")) == ['他说"你好"，第0张图', "一\t二", "三", '"你好"他说', "四", '5"屏幕']
    open_ended = table(tmp_path, '0.png\t一\n1.png\t"没有完\n二"\n')
    with pytest.raises(BrokenSample, match="line 2: a quotation mark opens a field and none closes it"):
        open_ended[1]


@pytest.mark.parametrize("blank", ["\u200b", "\u00ad\ufeff", "\u0301", "\u3164", "\ufe0f\u200d", " \u3000", "\u2800"])
def test_captions_and_questions_that_show_nothing_are_none(tmp_path, blank):
    source = table(tmp_path, f"0.png\t{blank}\n1.png\t{blank}\t一\n")
    with pytest.raises(BrokenSample, match="no caption"):
        source[0]
    assert source[1].captions == ["一"]
    (tmp_path / "t.jsonl").write_text(json.dumps({"picture": "0.png", "captions": [blank, "一"],
                                                  "questions": [[blank, "一"], ["几？", blank], ["几？", "一"]]}))
    sample = TableSource(TableConfig(path=str(tmp_path / "t.jsonl")))[0]
    assert sample.captions == ["一"] and sample.questions == [("几？", "一")]
    (tmp_path / "0.txt").write_text(f"{blank}\n一\n", encoding="utf-8")
    assert FolderSource(FolderConfig(path=str(tmp_path)))[0].captions == ["一"]


@pytest.mark.parametrize("header", ["image\tcaption", "file_name\ttext", '"Picture"\t"Captions"'])
def test_a_header_is_no_sample(tmp_path, header):
    source = table(tmp_path, header + "\n0.png\t零\n1.png\t一\n")
    assert len(source) == 2 and source[0].captions == ["零"] and colour(source[1]) == 11
    turned = table(tmp_path, "id\tcaption\turl\timage\n7\t零\thttp://x\t0.png\n")
    assert turned[0].captions == ["零"] and turned[0].key == "0.png"


def test_records_of_hugging_face_and_llava(tmp_path):
    lines = [{"file_name": "0.png", "text": "第0张图", "style": "漫画"},
             {"picture": "1.png", "captions": ["一"], "questions": [{"question": "几张？", "answer": "一张"}]},
             {"id": "2", "image": "2.png", "conversations": [
                 {"from": "human", "value": "<image>\n图里有什么？"}, {"from": "gpt", "value": "一只猫"},
                 {"from": "human", "value": "什么颜色？"}, {"from": "gpt", "value": "红色"}]}]
    source = table(tmp_path, "\n".join(json.dumps(line) for line in lines), "metadata.jsonl")
    assert source[0].captions == ["第0张图"] and source[0].facts == {"style": "漫画"}
    assert source[1].questions == [("几张？", "一张")]
    with pytest.raises(BrokenSample, match="no caption"):
        source[2]
    record = TableSource(TableConfig(path=str(tmp_path / "metadata.jsonl")), Reading(texts=False))[2]
    assert record.questions == [("图里有什么？", "一只猫"), ("什么颜色？", "红色")] and record.facts == {"id": "2"}


@pytest.mark.parametrize("name, text, told", [
    ("t.jsonl", '{"url": "0.png", "alt": "a"}\n' * 300,
     "200 samples are broken: 200 × names no image.*'url'.*wanted picture, image, file_name"),
    ("t.jsonl", '{"picture": "0.png", "alt": "a"}\n' * 20,
     "20 samples .* 20 × no caption.*'alt'.*captions, caption, text"),
    ("t.jsonl", '{"picture": "far/0.png", "text": "a"}\n' * 20, "20 × the image is missing.*`pictures`"),
    ("t.jsonl", "[1]\n" * 20, "20 × not a record.*no record"),
    ("t.tsv", "0.png,一\n" * 20, "20 × no caption.*20 × 1 columns"),
    ("t.tsv", "一\t0.png\n" * 20, "20 × the image is missing"),
])
def test_wholly_wrong_tables_say_what_they_hold(tmp_path, name, text, told):
    with pytest.raises(DataError, match=f"{name}: all of the first .*{told}"):
        table(tmp_path, text, name)


def test_every_suffix_that_is_read_and_what_is_left_out(tmp_path, caplog):
    forms = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.avif": "AVIF", "d.jp2": "JPEG2000", "e.JPG": "JPEG", "f.ppm": "PPM",
             "g.dib": "BMP", "h.webp": "WEBP", "i.gif": "GIF", "j.tiff": "TIFF"}
    for name, form in forms.items():
        (tmp_path / name).write_bytes(image(3, form, (64, 48)))
        (tmp_path / name).with_suffix(".txt").write_text("一")
    for name in ("x.heic", "y.heic", "z.mp4", "table.jsonl"):
        (tmp_path / name).write_bytes(b"?")
    source = FolderSource(FolderConfig(path=str(tmp_path)))
    usable, broken = read_all(source)
    assert sorted(usable) == sorted(forms) and not broken
    assert "left out what is neither image nor captions: 2 × .heic, 1 × .mp4" in caplog.text


def test_what_programs_keep_for_themselves_is_no_data(tmp_path, caplog):
    for name in ("0.png", "._0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/0.png", ".thumbs/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image())
    for name in ("0.txt", "._0.txt", ".DS_Store"):
        (tmp_path / name).write_text("一")
    assert FolderSource(FolderConfig(path=str(tmp_path))).images == ["0.png"] and not caplog.text


def test_the_case_of_suffixes_does_not_matter(tmp_path):
    for number, (left, right) in enumerate([("JPG", "TXT"), ("jpg", "Txt"), ("Jpeg", "CAPTION"), ("PNG", "text"),
                                            ("png", "Caption.TXT")]):
        (tmp_path / f"IMG_{number}.{left}").write_bytes(image(number, "PNG" if left.lower() == "png" else "JPEG"))
        (tmp_path / f"IMG_{number}.{right}").write_text(f"第{number}张")
    usable, broken = read_all(FolderSource(FolderConfig(path=str(tmp_path))))
    assert not broken and [usable[key].captions for key in sorted(usable)] == [[f"第{n}张"] for n in range(5)]


def test_a_folder_without_captions_says_what_it_holds(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(image())
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(DataError, match="all of the first 30 samples are broken: 30 × no caption file.*30 × .json"):
        FolderSource(FolderConfig(path=str(tmp_path)))


def test_home_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data[1]").mkdir()
    (tmp_path / "data[1]" / "0.png").write_bytes(image())
    (tmp_path / "data[1]" / "0.txt").write_text("一")
    shard(tmp_path / "data[1]" / "a.tar", pairs(3))
    (tmp_path / "t.tsv").write_text("0.png\t一\n")
    assert len(FolderSource(FolderConfig(path="~/data[1]"))) == 1
    assert len(TableSource(TableConfig(path="~/t.tsv", pictures="~/data[1]"))) == 1
    assert len(shards("~/data[1]")) == len(shards("~/data[1]/a.tar")) == 3
    assert list(read_captions("~/t.tsv")) == ["一"]


def exif_png(exif):
    chunk = b"eXIf" + exif
    content = image()
    return content[:33] + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0", b"", b"MM\0*\0\0\xff\xff",
                                  b"II*\0\x08\0\0\0\x05\0" + bytes(4),
                                  b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0"])
def test_exif_that_cannot_be_read_means_no_turn(exif):
    assert read_image(exif_png(exif), "x").shape == (12, 16, 3)
    assert read_image(exif_png(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"), "x").shape == (
        16, 12, 3), "what can be read still turns"


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    width, height = 13_300, 13_400  # one bit each: 20 KB of file, gigabytes decoded
    rows = zlib.compress((b"\0" + bytes(-(-width // 8))) * height, 9)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(
        b"IDAT", rows) + chunk(b"IEND", b"")
    small = image()
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(BrokenSample, match="more than max_pixels"):
        read_image(content, "x")
    with pytest.raises(BrokenSample, match=r"16 × 12 pixels are more than max_pixels \(191\)"):
        read_image(small, "x", Reading(max_pixels=191))
    monkeypatch.undo()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "0.png").write_bytes(image())
    (tmp_path / "a" / "0.txt").write_text("一")
    shard(tmp_path / "b" / "a.tar", pairs(2))
    (tmp_path / "t.tsv").write_text("a/0.png\t一\n")
    for source in ({"kind": "folder", "path": str(tmp_path / "a")}, {"kind": "table", "path": str(tmp_path / "t.tsv")},
                   {"kind": "shards", "path": str(tmp_path / "b")}):
        for limit, fits in ((191, False), (192, True)):
            stream = build_stream(config.from_dict(DataConfig, {"sources": [source], "max_pixels": limit}))
            stream.begin(0, 1)
            if fits:
                assert stream.sample(0, 0).image.shape == (12, 16, 3)
            else:
                with pytest.raises(BrokenSample, match="max_pixels"):
                    stream.sample(0, 0)
    with pytest.raises(ConfigError, match="max_pixels lies between 1 and"):
        config.from_dict(DataConfig, {"sources": [{"kind": "scenes"}], "max_pixels": 10 ** 9})


def test_no_program_is_started_for_an_image(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n%%EOF\n",
                    b"\xd7\xcd\xc6\x9a" + bytes(60), b"%PDF-1.4\n"):
        with pytest.raises(BrokenSample, match="none of the formats that are read: PNG, JPEG"):
            read_image(content, "x.png")


def test_a_pipe_or_folder_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    for path in (tmp_path / "0.png", tmp_path):
        with pytest.raises(BrokenSample, match="is no file"):
            read_image(path, "x")


def test_what_is_left_out_is_counted_by_reason(tmp_path, caplog):
    for number in range(40):
        (tmp_path / f"{number:02d}.png").write_bytes(image() if number not in (3, 4) else b"cut")
        if number != 9:
            (tmp_path / f"{number:02d}.txt").write_text("一")
    run = Loader(Mixture([FolderSource(FolderConfig(path=str(tmp_path)))]), LoaderConfig(),
                 lambda samples, seeds: seeds, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            next(run)
        run.close()
    assert "so far 2 × not a whole image, 1 × no caption file" in caplog.text


def test_a_set_of_which_nothing_can_be_used_says_all(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.png").write_bytes(b"\x89PNG no more")
        (tmp_path / f"{number:02d}.txt").write_text("一")
    run = Loader(Mixture([FolderSource(FolderConfig(path=str(tmp_path)))]), LoaderConfig(),
                 lambda samples, seeds: seeds, 8)
    with pytest.raises(DataError, match=r"all of the first \d+ samples .*: \d+ × not a whole image: .*\.png"):
        next(run)
    run.close()


def test_scanning_finds_where_files_stand(tmp_path):
    path = shard(tmp_path / "a.tar", pairs(4))
    with tarfile.open(path) as tar:
        expected = {item.name: (item.offset_data, item.size) for item in tar}
    index = scan(path)
    assert index.problem is None
    assert {f"{one.key}.{suffix}": place for one in index.members for suffix, place in one.files.items()} == expected
    assert np.all([one.problem is None for one in index.members])
