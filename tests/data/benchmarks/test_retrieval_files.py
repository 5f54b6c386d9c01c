"""Both public layouts, from scenes, give the same task; damaged files are named by their line."""
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from vilg.data.benchmarks.retrieval import (
    BENCHMARKS,
    Benchmark,
    normalised,
    read_predictions,
    read_retrieval,
    write_predictions,
)
from vilg.data.worlds import scenes
from vilg.errors import DataError

TEST = Benchmark("Scenes-CN", "test")
COUNT = 5


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(scenes.render(scenes.sample_scene(number, "test"), 24)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def texts(number):
    return scenes.captions(scenes.sample_scene(number, "test"), np.random.default_rng(number), 2)


@pytest.fixture
def two_files(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "test_imgs.tsv").write_text("".join(f"{100 + number}\t{png(number)}\n" for number in range(COUNT)))
    rows = [{"text_id": 10 * number + place, "text": text, "image_ids": [100 + number]}
            for number in range(COUNT) for place, text in enumerate(texts(number))]
    rows[0]["image_ids"].append(103)
    (folder / "test_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def one_file(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    lines = [f"{text}\t{100 + number}\t{png(number)}\n" for number in range(COUNT) for text in texts(number)]
    (folder / "test.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def test_two_files(two_files):
    task = read_retrieval(two_files, TEST)
    assert task.texts == [text for number in range(COUNT) for text in texts(number)]
    assert task.image_ids == ["100", "101", "102", "103", "104"] and task.text_ids[:3] == ["0", "1", "10"]
    assert task.positives == [[0, 3], [0], [1], [1], [2], [2], [3], [3], [4], [4]]
    assert task.texts_of_images() == [[0, 1], [2, 3], [4, 5], [0, 6, 7], [8, 9]]
    for number, image in enumerate(task.images()):
        np.testing.assert_array_equal(image, scenes.render(scenes.sample_scene(number, "test"), 24))


def test_one_file_is_the_same_task(one_file, two_files):
    task, other = read_retrieval(one_file, TEST), read_retrieval(two_files, TEST)
    assert (task.texts, task.image_ids) == (other.texts, other.image_ids)
    assert task.positives == [[0], *other.positives[1:]]
    assert all(np.array_equal(*pair) for pair in zip(task.images(), other.images(), strict=True))


def test_the_first_lines_alone_count_and_their_images(one_file, two_files):
    few = Benchmark("few", "test", 4)
    assert read_retrieval(one_file, few).image_ids == ["100", "101"]
    assert read_retrieval(two_files, few).image_ids == ["100", "101", "103"]
    assert read_retrieval(two_files, few).positives == [[0, 2], [0], [1], [1]]
    assert BENCHMARKS["aic-icc"].texts == 10_000 and BENCHMARKS["aic-icc"].split == "valid"


def test_predictions_go_round(two_files, tmp_path):
    task = read_retrieval(two_files, TEST)
    ranked = np.random.default_rng(0).permuted(np.tile(np.arange(COUNT), [len(task.texts), 1]), axis=1)
    write_predictions(tmp_path / "out/predictions.jsonl", task, ranked)
    first = json.loads((tmp_path / "out/predictions.jsonl").read_text().splitlines()[0])
    assert first == {"text_id": 0, "image_ids": [100 + number for number in ranked[0].tolist()]}
    assert read_predictions(tmp_path / "out/predictions.jsonl", task) == ranked.tolist()


@pytest.mark.parametrize("line, sentence", [
    ("{}", "line 1: is no record with text_id, image_ids"),
    ('{"text_id": 0, "image_ids": [7]}', "line 1: image_ids has 7"),
    ('{"text_id": 0, "image_ids": [100, 100]}', "an id twice"),
    ('{"text_id": 0, "image_ids": [100]}', "no prediction for text 1 of Scenes-CN")])
def test_bad_predictions_are_named(two_files, tmp_path, line, sentence):
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=sentence):
        read_predictions(tmp_path / "p.jsonl", read_retrieval(two_files, TEST))


@pytest.mark.parametrize("file, line, content, sentence", [
    ("test_imgs.tsv", 1, "101 no tab", "test_imgs.tsv line 2: is no id"),
    ("test_imgs.tsv", 2, "100\tAAAA", "test_imgs.tsv line 3: has the id of another line"),
    ("test_texts.jsonl", 0, "[]", "test_texts.jsonl line 1: is no record with text_id, text, image_ids"),
    ("test_texts.jsonl", 3, '{"text_id": 1, "text": "a", "image_ids": [9]}', "line 4: image_ids has 9"),
    ("test_texts.jsonl", 3, '{"text_id": 1, "text": "a", "image_ids": []}', "line 4: image_ids has no id"),
    ("test_imgs.tsv", 1, "101\t$$$$", "test_imgs.tsv line 2: not base64"),
    ("test_imgs.tsv", 1, "101\tAAAA", "test_imgs.tsv line 2: not a whole image")])
def test_damaged_lines_are_named(two_files, file, line, content, sentence):
    lines = (two_files / file).read_text().splitlines()
    lines[line] = content
    (two_files / file).write_text("\n".join(lines))
    with pytest.raises(DataError, match=sentence):
        list(read_retrieval(two_files, TEST).images())


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(DataError, match="holds neither test_imgs.tsv and test_texts.jsonl nor test.tsv .* COCO-CN"):
        read_retrieval(tmp_path, BENCHMARKS["coco-cn"])
    (tmp_path / "test.txt").write_text("")
    with pytest.raises(DataError, match="COCO-CN has no text there"):
        read_retrieval(tmp_path, BENCHMARKS["coco-cn"])
    (tmp_path / "test.txt").write_text("一\t二\n")
    with pytest.raises(DataError, match="test.txt line 1: has 2 columns"):
        read_retrieval(tmp_path, BENCHMARKS["coco-cn"])


def test_texts_are_normalised():
    assert normalised("“A”和B") == '"a"和b'
