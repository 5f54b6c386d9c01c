import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from vilg import config
from vilg.data.config import DataConfig, build_stream
from vilg.data.loader import Loader, LoaderConfig, Mixture
from vilg.data.packing import Packing, write_folder, write_shards
from vilg.data.sample import BrokenSample, Sample
from vilg.data.sources.codes import CodesConfig, CodesSource, write_codes
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.members import scan
from vilg.data.sources.shards import (
    INDEX_FILE, ShardsConfig, ShardStream, find_shards, index_folder, shuffled_through_buffer,
)
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.transforms import centre_crop
from vilg.data.worlds.scenes import sample_scene
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource
from vilg.errors import ConfigError, DataError

COUNT = 54  # in shards of 8 at most: five of eight and two of seven


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    report = write_shards(folder, ScenesSource(ScenesConfig(count=COUNT)), Packing("png"), samples_a_shard=8)
    assert (report.written, report.broken, report.filtered) == (COUNT, 0, 0)
    return folder


@pytest.fixture
def shards(packed, tmp_path):
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def collate(samples, seeds):
    return {"key": np.array([sample.key for sample in samples]), "seed": np.array(seeds)}


def loader(folder, batch_size=4, workers=1, max_broken=0.1, buffer=10, **settings):
    stream = ShardStream(ShardsConfig(path=str(folder), shuffle_buffer=buffer))
    return Loader(stream, LoaderConfig(workers=workers, max_broken=max_broken), collate, batch_size, **settings)


def take(run, count):
    keys = np.concatenate([next(run)["key"] for _ in range(count)])
    run.close()
    return list(keys)


def test_shards_hold_the_source_to_the_bit(packed):
    stream, source = ShardStream(ShardsConfig(path=str(packed))), ScenesSource(ScenesConfig(count=COUNT))
    assert len(stream) == len(source) and len(find_shards(str(packed))) == 7
    for number in (0, 7, 8, 53):
        np.testing.assert_array_equal(stream[number].image, source[number].image)
        assert stream[number].captions == source[number].captions
        assert stream[number].questions == source[number].questions
    assert ShardStream(ShardsConfig(path=[str(packed / "0000[01].tar")], first_caption_only=True))[9].captions == (
        source[9].captions[:1])


def test_packing_twice_gives_the_same_bytes(packed, tmp_path):
    write_shards(tmp_path, ScenesSource(ScenesConfig(count=COUNT)), Packing("png"), samples_a_shard=8)
    for path in packed.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(DataError, match="holds shards already"):
        write_shards(tmp_path, ScenesSource(ScenesConfig(count=8)), Packing("png"))


def test_one_lane_gives_every_sample_once_a_round_and_other_orders_after(packed):
    keys = take(loader(packed, batch_size=COUNT, seed=3), 2)
    assert sorted(keys[:COUNT]) == sorted(keys[COUNT:]) and len(set(keys[:COUNT])) == COUNT
    assert keys[:COUNT] != keys[COUNT:]
    assert keys == take(loader(packed, batch_size=COUNT, seed=3), 2)
    assert keys != take(loader(packed, batch_size=COUNT, seed=4), 2)


def test_shards_come_in_another_order_every_time_round(packed):
    # Without a buffer the samples of a shard stay together, so that only the order of the shards can differ.
    keys = take(loader(packed, batch_size=COUNT, seed=3, buffer=1), 4)
    walks = []
    for turn in range(4):
        shards = [key.partition("/")[0] for key in keys[turn * COUNT:(turn + 1) * COUNT]]
        walk = list(dict.fromkeys(shards))
        assert shards == sorted(shards, key=walk.index) and len(walk) == 7
        walks.append(walk)
    assert len(set(map(tuple, walks))) == 4 and all(walk != sorted(walk) for walk in walks[1:])


def test_facts_travel_through_shards_folders_and_codes(packed, tmp_path):
    source = ScenesSource(ScenesConfig(count=COUNT, wide=True))
    assert source[5].facts["scene"] == sample_scene(5, "train", wide=True) and source[5].facts["tags"]
    plain = {name: value for name, value in ScenesSource(ScenesConfig(count=COUNT))[5].facts.items() if name != "scene"}
    assert (plain["split"], plain["seed"]) == ("train", 5)  # a scene has no form in JSON
    assert ShardStream(ShardsConfig(path=str(packed)))[5].facts == plain
    write_folder(tmp_path / "folder", ScenesSource(ScenesConfig(count=6)), Packing("png"))
    table = TableSource(TableConfig(path=str(tmp_path / "folder" / "table.jsonl")))
    assert table[5].facts == plain
    write_codes(tmp_path / "codes", table, lambda images: images[:, :2, 0, 0], 32, "abc")
    assert CodesSource(CodesConfig(path=str(tmp_path / "codes")), "abc")[5].facts == plain


def test_ranks_read_shards_of_their_own(packed):
    seen = []
    for rank in range(2):
        run = loader(packed, workers=2, rank=rank, ranks=2, seed=1)
        seen.append({key.partition("/")[0] for key in take(run, 40)})
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 7


@pytest.mark.parametrize("before, after", [(1, 1), (2, 2), (2, 1), (1, 2), (2, 4)])
def test_resume_at_any_number_of_ranks_goes_on_with_the_exact_sample(packed, before, after):
    def start(ranks, state=None):
        runs = [loader(packed, 8 // ranks, rank=rank, ranks=ranks, seed=1) for rank in range(ranks)]
        for run in runs:
            if state:
                run.load_state_dict(state)
        return runs

    def steps(runs, count):
        return [sorted(np.concatenate([next(run)["key"] for run in runs])) for _ in range(count)]

    runs = start(before)
    steps(runs, 3)
    state = json.loads(json.dumps(runs[0].state_dict()))
    expected = steps(runs, 12)
    resumed = start(after, state)
    assert steps(resumed, 12) == expected
    for run in (*runs, *resumed):
        run.close()


def test_the_buffer_shuffles_near_and_far():
    order = shuffled_through_buffer(1000, 50, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    assert max(order - np.arange(1000)) < 50 and np.mean(order != np.arange(1000)) > 0.9
    np.testing.assert_array_equal(shuffled_through_buffer(9, 1, np.random.default_rng(0)), np.arange(9))
    assert sorted(shuffled_through_buffer(5, 50, np.random.default_rng(0))) == list(range(5))


def test_fewer_shards_than_readers_are_refused(packed):
    with pytest.raises(DataError, match="7 shards are too few for 8 readers"):
        loader(packed, workers=4, ranks=2)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_cut_short_is_reported_and_the_rest_goes_on(shards, indexed, caplog):
    cut = shards / "00003.tar"
    cut.write_bytes(cut.read_bytes()[:len(cut.read_bytes()) // 2])
    if not indexed:
        (shards / INDEX_FILE).unlink()
    keys = take(loader(shards, batch_size=9, max_broken=0.2), 18)
    lost = {key for key in (f"00003.tar/{number:09d}" for number in range(24, 32)) if key not in keys}
    assert len(set(keys)) == COUNT - len(lost) and 0 < len(lost) < 8
    assert "00003.tar" in caplog.text and ("cut short" in caplog.text or "damaged" in caplog.text)
    with pytest.raises(DataError, match="00003.tar: is (cut short|damaged).*fetch it again"):
        index_folder(shards)


def test_a_shard_whose_end_never_arrived_is_reported(shards, caplog):
    path = shards / "00003.tar"
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 4] + bytes(len(content) - len(content) // 4))
    with pytest.raises(DataError, match="00003.tar: is nothing but zeros for its last .*fetch it again"):
        index_folder(shards)
    (shards / INDEX_FILE).unlink()
    loader(shards).close()
    assert "00003.tar (nothing but zeros for its last" in caplog.text


def test_a_shard_that_has_grown_or_gone_since_is_reported(shards, caplog):
    counts = json.loads((shards / INDEX_FILE).read_text(encoding="utf-8"))
    (shards / INDEX_FILE).write_text(json.dumps(counts | {"00002.tar": 3}), encoding="utf-8")
    run = loader(shards, batch_size=7, max_broken=0.4)
    assert len({key for _ in range(7) for key in next(run)["key"]}) == COUNT - 5
    assert caplog.text.count("00002.tar: holds 8 samples and index.json counts 3") == 1
    (shards / "00001.tar").unlink()
    take(run, 21)
    assert set(run.broken.reasons.values()) == {"its shard cannot be read any more (No such file or directory)"}


def test_a_shard_of_noise_costs_its_samples_only(shards):
    (shards / "00000.tar").write_bytes(np.random.default_rng(0).bytes(9000))
    keys = take(loader(shards, batch_size=9, max_broken=0.2), 18)
    assert len(set(keys)) == COUNT - 8
    with pytest.raises(DataError, match="too many|broken, more than"):
        take(loader(shards, batch_size=9, max_broken=0.05), 18)


@pytest.mark.parametrize("count, a_shard, sizes", [
    (54, 8, [8] * 5 + [7] * 2), (101, 100, [51, 50]), (33, 8, [7, 7, 7, 6, 6]), (16, 8, [8, 8]), (3, 8, [3])])
def test_shards_are_of_equal_size(tmp_path, count, a_shard, sizes):
    source = ScenesSource(ScenesConfig(count=count, size=16, captions=1, questions=1))
    write_shards(tmp_path, source, Packing("png"), a_shard)
    assert [len(scan(path).members) for path in find_shards(str(tmp_path))] == sizes
    names = [f"{number:05d}.tar" for number in range(len(sizes))]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, INDEX_FILE]
    stream = ShardStream(ShardsConfig(path=str(tmp_path)))
    assert [stream[number].captions for number in range(count)] == [source[number].captions for number in range(count)]
    assert [stream[number].key[-9:] for number in range(count)] == [f"{number:09d}" for number in range(count)]


def test_readers_of_unequal_shares_are_warned_about_once(packed, caplog):
    loader(packed, workers=1)
    assert caplog.text == ""
    run = loader(packed, workers=2)
    run.load_state_dict(run.state_dict())
    assert caplog.text.count("the 2 readers (ranks × data.loader.workers) get from 2") == 1


class Large:
    """Pictures of a megabyte; ``long`` makes one too long for WebP."""

    def __init__(self, count, long=()):
        self.count, self.long = count, long

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        shape = (17000, 8, 3) if index in self.long else (700, 500, 3)
        return Sample(f"k{index}", np.full(shape, index, np.uint8), ["text"])


@pytest.mark.parametrize("use", ["shards", "codes", "loader"])
def test_pictures_are_cropped_one_by_one(tmp_path, use):
    tracemalloc.start()
    try:
        if use == "shards":
            write_shards(tmp_path, Large(30), Packing("jpg", 32))
        elif use == "codes":
            write_codes(tmp_path, Large(30), lambda images: images[:, :2, 0, 0], 32, "abc")
        else:
            run = Loader(Mixture([Large(30)]), LoaderConfig(prefetch=1), lambda samples, seeds: {
                "image": np.stack(samples)}, 30, view=lambda sample, seed: centre_crop(sample.image, 32))
            assert next(run)["image"].shape == (30, 32, 32, 3)
            run.close()
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_picture_too_long_for_its_format_is_a_broken_sample(tmp_path, caplog):
    report = write_shards(tmp_path / "s", Large(12, long=[3]), Packing("webp"))
    assert (report.written, report.broken) == (11, 1)
    assert "k3 (8 × 17000 pixels cannot be written as webp" in caplog.text
    with pytest.raises(DataError, match="2 of 12 samples are broken.*give a size, or take png"):
        write_shards(tmp_path / "t", Large(12, long=[3, 9]), Packing("webp"), 2)
    assert not list((tmp_path / "t").iterdir())


def test_packing_that_cannot_be_is_refused(tmp_path):
    for size in (0, -5):
        with pytest.raises(DataError, match=f"a size of {size} pixels"):
            Packing(size=size)
    with pytest.raises(DataError, match="0 samples a shard"):
        write_shards(tmp_path, ScenesSource(ScenesConfig(count=2)), Packing(), 0)
    with pytest.raises(ConfigError, match="path: name at least one"):
        config.from_dict(DataConfig, {"sources": [{"kind": "shards", "path": []}]})


def test_the_limit_tells_shards_of_equal_names_apart(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (6, 6)).save(picture, "PNG")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tar_of(tmp_path / folder / "0.tar", {name: content for number in range(20) for name, content in (
            (f"{number}.png", picture.getvalue()), (f"{number}.txt", b"" if number < 3 else b"text"))})
    with pytest.raises(DataError, match=r"[56] of 40 samples are broken, more than .*/a/0.tar/\d \(no caption\)"):
        take(loader(tmp_path / "*/*.tar", max_broken=0.1), 30)


def test_a_single_usable_sample_of_several_lanes_is_found(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (6, 6)).save(picture, "PNG")
    for shard in range(2):
        tar_of(tmp_path / f"{shard}.tar", {f"{number}.png": picture.getvalue() for number in range(2)}
               | {"1.txt": b"text"} if shard else {f"{number}.png": picture.getvalue() for number in range(2)})
    assert set(take(loader(tmp_path, workers=2, max_broken=1), 4)) == {"1.tar/1"}


def test_flipped_bits_break_one_sample(shards):
    path = shards / "00001.tar"
    content = bytearray(path.read_bytes())
    offset, size = scan(path).members[2].files["png"]
    content[offset + size // 2] ^= 0x40
    path.write_bytes(bytes(content))
    run = loader(shards, batch_size=9)
    keys = take(run, 12)
    assert len(set(keys)) == COUNT - 1 and list(run.broken.reasons) == [f"{shards}/00001.tar/000000010"]


def tar_of(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))


def test_foreign_shards(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (9, 9, 9)).save(buffer, "JPEG")
    picture = buffer.getvalue()
    tar_of(tmp_path / "a.tar", {
        "x/1.jpg": picture, "x/1.txt": "一句\n两句".encode(), "x/2.JPG": picture, "x/2.json": b'{"caption": "a cat"}',
        "x/3.jpg": picture, "x/4.txt": b"text", "x/5.jpg": picture, "x/5.txt": b"\xff\xff",
        "x/6.jpg": picture, "x/6.json": b'{"url": "u"}', "x/6.txt": b"fallback",
        "x/7.jpg": picture, "x/7.json": b'\xef\xbb\xbf{"caption": "marked"}',
        "x/8.jpg": picture, "x/8.json": b'{"caption": null, "questions": null}', "x/8.txt": b"one\x0bline",
        "x/9.jpg": picture, "x/9.json": b"[1, 2]", "x/9.txt": b"fallback", "y/1.jpg": picture, "y/1.json": b"[1, 2]"})
    stream = ShardStream(ShardsConfig(path=str(tmp_path / "*.tar")))
    assert stream[0].captions == ["一句", "两句"] and stream[1].captions == ["a cat"]
    assert [stream[number].captions for number in (6, 7, 8)] == [["marked"], ["one\x0bline"], ["fallback"]]
    assert stream[5].captions == ["fallback"] and stream[0].image.shape == (6, 6, 3)
    for number, reason in ((2, "x/3: no caption"), (3, "x/4: no image"), (4, "x/5: its text is not UTF-8"),
                           (9, "y/1: not a record")):
        with pytest.raises(BrokenSample, match=reason):
            stream[number]
    assert index_folder(tmp_path) == {"a.tar": 10}


def test_bad_places(tmp_path):
    with pytest.raises(DataError, match="names no tar shard"):
        ShardStream(ShardsConfig(path=str(tmp_path)))
    tar_of(tmp_path / "a.tar", {})
    with pytest.raises(DataError, match="no sample"):
        ShardStream(ShardsConfig(path=str(tmp_path)))
    (tmp_path / INDEX_FILE).write_text("[1")
    with pytest.raises(DataError, match="not an index.*prepare_data.py index"):
        ShardStream(ShardsConfig(path=str(tmp_path)))


def test_shards_stand_alone_in_a_config(packed):
    data = config.from_dict(DataConfig, {"sources": [{"kind": "shards", "path": str(packed)}]})
    assert len(build_stream(data)) == COUNT
    with pytest.raises(ConfigError, match="shards stand alone"):
        config.from_dict(DataConfig, {"sources": [{"kind": "shards", "path": str(packed)}, {"kind": "scenes"}]})


def test_packing_crops_filters_and_counts(tmp_path):
    class Short:
        def keeps(self, text):
            return len(text) < 9

    source = ScenesSource(ScenesConfig(count=30))
    expected = sum(any(len(text) < 9 for text in source[i].captions) for i in range(30))
    report = write_shards(tmp_path / "s", source, Packing("jpg", 32, Short()), 10)
    assert (report.written, report.filtered) == (expected, 30 - expected)
    stream = ShardStream(ShardsConfig(path=str(tmp_path / "s")))
    assert stream[0].image.shape == (32, 32, 3)
    assert all(len(text) < 9 for number in range(len(stream)) for text in stream[number].captions)
    with pytest.raises(DataError, match="png, jpg, webp"):
        Packing("bmp")


def test_a_written_folder_reads_as_folder_and_as_table(tmp_path):
    source = ScenesSource(ScenesConfig(count=3))
    write_folder(tmp_path, source, Packing("png"))
    folder = FolderSource(FolderConfig(path=str(tmp_path)))
    table = TableSource(TableConfig(path=str(tmp_path / "table.jsonl")))
    for number in range(3):
        np.testing.assert_array_equal(folder[number].image, source[number].image)
        assert folder[number].captions == table[number].captions == source[number].captions
        assert table[number].questions == source[number].questions
    write_folder(tmp_path, source, Packing("png"))
    with pytest.raises(DataError, match="holds other images already, such as 0000002.png"):
        write_folder(tmp_path, ScenesSource(ScenesConfig(count=2)), Packing("png"))
