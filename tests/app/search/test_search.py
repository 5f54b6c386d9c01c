"""An index is whole, of one model and of images as they are; and hits are those of a plain product."""
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vilg.app import search
from vilg.app.search import files, index as index_module
from vilg.app.search.nearest import Neighbours
from vilg.data.packing import Packing, write_shards
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.worlds import scenes
from vilg.errors import ConfigError, DataError, VilgError

COUNT = 12
TEXTS = ["一个红色的圆形", "蓝色的方块在左边", "两个绿色的星星"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(COUNT):
        path = folder / ("more" if number % 2 else ".") / f"{number:02d}.png"
        Image.fromarray(scenes.render(scenes.sample_scene(number, "train"), 32)).save(path)
        path.with_suffix(".txt").write_text(f"第{number}张", encoding="utf-8")
    return folder


@pytest.fixture
def built(encoder, photos, tmp_path):
    search.build_index(encoder, search.open_collection(photos), tmp_path / "index", progress=False)
    return tmp_path / "index"


def test_hits_are_those_of_the_plain_product(encoder, photos, built):
    index = search.open_index(built, encoder)
    names = sorted((path.relative_to(photos).as_posix() for path in photos.rglob("*.png")),
                   key=lambda name: name.split("/"))
    assert index.names == names
    cosines = encoder.embed_text(TEXTS) @ encoder.embed_image([photos / name for name in names]).T
    hits = search.search_texts(index, encoder, TEXTS, k=5, least=0.0)
    for row, found in zip(cosines, hits):
        assert [hit.name for hit in found] == [names[place] for place in np.argsort(-row)[:5]]
        assert [hit.cosine for hit in found] == pytest.approx(sorted(row, reverse=True)[:5], abs=1e-5)
        assert [hit.similarity for hit in found] == pytest.approx(
            encoder.calibrated(np.sort(row)[::-1][:5]), abs=1e-5)
        assert found[0].path == str(photos / found[0].name)
    assert len({tuple(hit.name for hit in row) for row in hits}) == len(TEXTS), "texts are told apart"


def test_an_image_finds_itself_first(encoder, photos, built):
    index = search.open_index(built, encoder)
    for row, path in zip(search.search_images(index, encoder, sorted(photos.glob("*.png")), k=3),
                         sorted(photos.glob("*.png"))):
        assert row[0].name == path.name and row[0].cosine == pytest.approx(1, abs=1e-5) and row[0].similarity is None
        assert len(row) == 3 and row[1].cosine < 1 - 1e-4
    assert [len(row) for row in search.search_images(index, encoder, [path], 3, least=0.9999)] == [1]


def test_nothing_matches_below_the_threshold(encoder, built):
    index = search.open_index(built, encoder)
    best = search.search_texts(index, encoder, TEXTS[:1], least=0.0)[0][0].similarity
    assert search.search_texts(index, encoder, TEXTS[:1], least=best + 1e-4) == [[]]
    assert len(search.search_texts(index, encoder, TEXTS[:1], least=best - 1e-4)[0]) == 1


def test_tables_and_shards_give_the_same_vectors(encoder, photos, built, tmp_path):
    table = photos / "table.jsonl"
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    table.write_text("".join(json.dumps({"picture": name, "captions": []}) + "\n" for name in [*names, names[0]]))
    write_shards(tmp_path / "shards", FolderSource(FolderConfig(path=str(photos))), Packing("png"), 5)
    found = {}
    for kind, path in (("table", table), ("shards", tmp_path / "shards"), ("shard", tmp_path / "shards/00001.tar")):
        report = search.build_index(encoder, search.open_collection(path), tmp_path / f"{kind}_index", progress=False)
        assert report.images == (COUNT if kind != "shard" else 4)
        found[kind] = search.open_index(tmp_path / f"{kind}_index", encoder)
    plain = search.open_index(built, encoder)
    by_name = dict(zip(plain.names, plain.neighbours.vectors))
    for name, vector in zip(found["table"].names, found["table"].neighbours.vectors):
        np.testing.assert_allclose(vector, by_name[name], atol=1e-5)
    np.testing.assert_allclose(found["shards"].neighbours.vectors, plain.neighbours.vectors, atol=1e-5)
    assert found["shards"].names[4:8] == [f"00001.tar/{number:09d}" for number in range(4, 8)] == found["shard"].names


def test_an_index_of_another_model_is_refused(other_encoder, encoder, built):
    with pytest.raises(DataError, match="is an index by untrained_3 .* untrained_4 is"):
        search.open_index(built, other_encoder)
    with pytest.raises(DataError, match="search with the model that it was built by"):
        search.search_texts(search.open_index(built, encoder), other_encoder, TEXTS)


def test_texts_that_cannot_be_searched_for_are_refused(encoder, built):
    index = search.open_index(built, encoder)
    with pytest.raises(VilgError, match="has no word that the vocabulary of untrained_3 knows"):
        search.search_texts(index, encoder, ["龘靐"])
    with pytest.raises(VilgError, match="has 60 tokens and this model reads 38"):
        search.search_texts(index, encoder, ["红色" * 30])
    with pytest.raises(VilgError, match="empty"):
        search.search_texts(index, encoder, ["  "])


def test_changed_folders_are_refused_and_indexed_again_in_part(encoder, photos, built):
    (photos / "00.png").unlink()
    Image.new("RGB", (9, 9), "red").save(photos / "02.png")
    Image.new("RGB", (9, 9), "blue").save(photos / "new.png")
    with pytest.raises(DataError, match=r"1 images new, 1 gone, 1 changed"):
        search.open_index(built, encoder)
    assert len(search.open_index(built, encoder, unchecked=True).names) == COUNT
    report = search.build_index(encoder, search.open_collection(photos), built, progress=False)
    assert (report.images, report.embedded) == (COUNT, 2)
    index = search.open_index(built, encoder)
    assert search.search_images(index, encoder, [photos / "02.png"])[0][0].name == "02.png"
    np.testing.assert_allclose(index.neighbours.vectors[index.names.index("new.png")],
                               encoder.embed_image([photos / "new.png"])[0], atol=1e-5)
    assert len(list(built.glob("vectors-*.npy"))) == 1, "the old vectors are gone"


def test_a_stopped_build_goes_on_where_it_was(encoder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "BATCH", 2)
    monkeypatch.setattr(index_module, "PART", 4)
    calls = []

    class Stopping:
        name, fingerprint = encoder.name, encoder.fingerprint

        def embed_image(self, images):
            calls.append(len(images))
            if len(calls) == 4:
                raise KeyboardInterrupt
            return encoder.embed_image(images)

    with pytest.raises(KeyboardInterrupt):
        search.build_index(Stopping(), search.open_collection(photos), tmp_path / "index", progress=False)
    with pytest.raises(DataError, match="holds no index"):
        search.open_index(tmp_path / "index", encoder)
    report = search.build_index(encoder, search.open_collection(photos), tmp_path / "index", progress=False)
    assert (report.images, report.embedded) == (COUNT, COUNT - 4)
    assert not (tmp_path / "index/unfinished").exists()
    whole = search.open_index(tmp_path / "index", encoder)
    np.testing.assert_allclose(whole.neighbours.vectors,
                               encoder.embed_image([photos / name for name in whole.names]), atol=1e-5)


def test_what_another_model_left_is_not_taken_up(encoder, other_encoder, photos, built):
    first = files.Entry("00.png", search.open_collection(photos).items[0].mark)
    files.save_part(built, encoder.fingerprint, encoder.embed_image([photos / "00.png"]), [first])  # of a stopped build
    report = search.build_index(other_encoder, search.open_collection(photos), built, progress=False)
    assert report.embedded == COUNT
    assert search.open_index(built, other_encoder).fingerprint == other_encoder.fingerprint


def test_broken_images_are_left_out_and_known_as_such(encoder, photos, tmp_path):
    (photos / "05.png").write_bytes(b"no image")
    report = search.build_index(encoder, search.open_collection(photos), tmp_path / "index", progress=False)
    assert (report.images, report.broken) == (COUNT, 1)
    index = search.open_index(tmp_path / "index", encoder)
    assert "05.png" not in index.names and len(index.names) == len(index.neighbours.vectors)
    Image.new("RGB", (9, 9), "red").save(photos / "new.png")
    report = search.build_index(encoder, search.open_collection(photos), tmp_path / "index", progress=False)
    assert (report.images, report.embedded, report.broken) == (COUNT + 1, 1, 1)
    index = search.open_index(tmp_path / "index", encoder)
    np.testing.assert_allclose(index.neighbours.vectors,
                               encoder.embed_image([photos / name for name in index.names]), atol=1e-5)
    for name in ("06.png", "08.png"):
        (photos / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="max_broken"):
        search.build_index(encoder, search.open_collection(photos), tmp_path / "index", 0.1, progress=False)
    assert len(search.open_index(tmp_path / "index", encoder, unchecked=True).names) == COUNT + 1, "it stays"


def test_empty_and_foreign_folders_are_refused(encoder, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no image"):
        search.open_collection(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        search.open_collection(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds other data already"):
        search.build_index(encoder, search.open_collection(photos), photos, progress=False)
    with pytest.raises(DataError, match="holds other data already, such as a.txt"):
        (tmp_path / "half/unfinished").mkdir(parents=True)
        (tmp_path / "half/a.txt").touch()
        search.build_index(encoder, search.open_collection(photos), tmp_path / "half", progress=False)
    with pytest.raises(DataError, match="is a file"):
        search.build_index(encoder, search.open_collection(photos), photos / "00.txt", progress=False)
    with pytest.raises(DataError, match="holds no index"):
        search.open_index(tmp_path / "empty", encoder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def swap(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, swap, os.unlink])
@pytest.mark.parametrize("pattern", ["vectors-*", "names-*"])
def test_damaged_files_are_named(encoder, built, pattern, damage):
    path = next(built.glob(pattern))
    damage(path)
    with pytest.raises(DataError, match=f"{path.name}.*damaged; build it again"):
        search.open_index(built, encoder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"form": 2}', b"\xff", b"[" * 100_000])
def test_a_damaged_description_is_refused(encoder, built, content):
    (built / "search.json").write_bytes(content)
    with pytest.raises(DataError, match="search.json: is damaged"):
        search.open_index(built, encoder)


def test_a_description_cannot_point_outside(encoder, built, tmp_path):
    said = json.loads((built / "search.json").read_text())
    shutil.copy(built / said["vectors"]["file"], tmp_path / "elsewhere.npy")
    said["vectors"]["file"] = "../elsewhere.npy"
    (built / "search.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match="is damaged"):
        search.open_index(built, encoder)


def test_a_failed_write_leaves_the_old_index(encoder, photos, built, monkeypatch):
    (photos / "00.png").unlink()
    real = os.replace

    def full(source, target):
        if str(target).endswith("search.json"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(DataError, match="cannot be written \\(No space left"):
        search.build_index(encoder, search.open_collection(photos), built, progress=False)
    monkeypatch.undo()
    assert len(search.open_index(built, encoder, unchecked=True).names) == COUNT


@pytest.mark.parametrize("count, k", [(5, 10), (40, 3), (3000, 10), (140_000, 10)])
def test_nearest_are_those_of_a_full_sort(count, k):
    rng = np.random.default_rng(count)
    vectors = rng.integers(-2, 3, [count, 6]).astype("float32")  # many equal products
    queries = rng.integers(-2, 3, [9, 6]).astype("float32")
    rows, scores = Neighbours(vectors).top_k(queries, k)
    products = queries @ vectors.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(products, expected, 1))
    assert Neighbours(vectors).top_k(queries[:0], k)[0].shape == (0, min(k, count))


def test_many_queries_go_in_blocks():
    rng = np.random.default_rng(2)
    vectors, queries = rng.normal(size=[500, 8]), rng.normal(size=[600, 8])
    rows, _ = Neighbours(vectors.astype("float32")).top_k(queries, 1)
    np.testing.assert_array_equal(rows[:, 0], (queries @ vectors.T).argmax(1))


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(1)
    vectors, queries = (rng.normal(size=[count, 16]).astype("float32") for count in (2000, 7))
    ours, theirs = Neighbours(vectors).top_k(queries, 10), Neighbours(vectors, "faiss").top_k(queries, 10)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)


def test_what_cannot_be_asked_for_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        Neighbours(np.eye(3)).top_k(np.eye(3), 0)
    with pytest.raises(ConfigError, match="backend is one of numpy, faiss"):
        Neighbours(np.eye(3), "annoy")
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install 'vilg\\[search\\]'"):
        Neighbours(np.eye(3), "faiss")
