"""The pieces of a build: parts, shards, translation, clicks, what workers report."""
import functools
import json
import sys

import pytest
from built_data import samples_of
from tests.data.building.deadly_work import deadly

from vilg.config import from_dict
from vilg.data.building.build import Build
from vilg.data.building.config import BuildConfig, TranslateConfig, thresholds
from vilg.data.building.pairs import candidates
from vilg.data.building.parts import find_parts
from vilg.data.building.shards import plan
from vilg.data.building.translation import Translation
from vilg.data.filtering.texts import MEANING
from vilg.errors import ConfigError, DataError


@pytest.mark.parametrize("kept, size", [({0: 5, 2: 0, 3: 9}, 4), ({0: 1}, 100), ({1: 100, 2: 100}, 7), ({0: 0}, 5)])
def test_shards_are_planned_level_and_whole(kept, size):
    shards = list(plan(kept, size))
    counts = [sum(count for _, _, count in pieces) for pieces in shards]
    assert sum(counts) == sum(kept.values()) and len(shards) == -(-sum(kept.values()) // size)
    assert not counts or (max(counts) <= size and max(counts) - min(counts) <= 1)
    walked = [(part, first + number) for pieces in shards for part, first, count in pieces for number in range(count)]
    assert walked == [(part, number) for part in sorted(kept) for number in range(kept[part])]


def test_inputs_of_one_name_and_of_no_kind_are_refused(tmp_path):
    for folder in ("a/web", "b/web"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.tar").touch()
    given = [str(tmp_path / "a/web"), str(tmp_path / "b/web")]
    with pytest.raises(DataError, match="is called web too.*--input other="):
        list(find_parts(given, 10))
    assert [part.name for part in find_parts([given[0], f"b={given[1]}"], 10)] == ["web/x.tar", "b/x.tar"]
    (tmp_path / "notes.docx").touch()
    with pytest.raises(DataError, match="is none of .tar"):
        list(find_parts([str(tmp_path / "notes.docx")], 10))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.docx").touch()
    with pytest.raises(DataError, match="holds 1 × .docx"):
        list(find_parts([str(tmp_path / "c")], 10))


def test_unknown_rules_and_contradictions_name_their_key():
    for values, message in (({"rules": {"near_image": {}}}, "rules.near_image: unknown key .did you mean near_images"),
                            ({"images": False, "rules": {"near_images": {}}}, "images is false"),
                            ({"rules": {"near_images": {"confirm": "embeddings"}}}, "there is no similarity rule"),
                            ({"rules": {"near_texts": {"alike": 0.2}}}, "rules.near_texts: alike lies from 0.6")):
        with pytest.raises(ConfigError, match=message):
            from_dict(BuildConfig, values)
    every = from_dict(BuildConfig, {"rules": {"near_images": {}, "near_texts": {}, "similarity": {"model": "m"},
                                              "texts": {"script": {}, "blocked": ["a"]}},
                                    "translate": {"worker": "a:B"}})
    assert thresholds(every).keys() == MEANING.keys(), "every rule has a name for people, and a threshold"


def test_candidates_are_near_pairs_the_smaller_first():
    import numpy as np

    numbers, values = np.array([9, 2, 5]), np.array([0b111, 0b011, 0b1110000], np.uint64)
    assert candidates(numbers, values, 1).tolist() == [[2, 9]]
    assert candidates(numbers, values, 64).tolist() == [[2, 5], [2, 9], [5, 9]]
    assert candidates(np.array([1, 2, 3]), np.array([7, 7, 8], np.uint64), None).tolist() == [[1, 3], [2, 3]]
    many = np.arange(2000)
    found = candidates(many, many.astype(np.uint64) * 0, 0)
    assert set(found[:, 1].tolist()) == set(range(1, 2000)), "each of a large group has a candidate"
    assert len(found) <= 32 * 2000 and (found[:, 0] < found[:, 1]).all()


class Shouting:
    def __init__(self, mark):
        self.mark = mark

    def translate(self, texts):
        if any("bad" in text for text in texts):
            raise ValueError("a bad word")
        return [text.upper() + self.mark for text in texts]


def translation(monkeypatch, failures=3, **options):
    monkeypatch.setitem(sys.modules, "shouting", sys.modules[Shouting.__module__])
    return Translation(TranslateConfig(worker="shouting:Shouting", options=options, batch=4, failures=failures))


def test_a_row_that_fails_is_named_and_the_rest_translated(monkeypatch):
    results = translation(monkeypatch, mark="!")(["a", "bad", "b", "c", "d"])
    assert results == ["A!", ("translation", "ValueError: a bad word"), "B!", "C!", "D!"]


def test_translation_stops_after_many_failures_in_a_row(monkeypatch):
    made = translation(monkeypatch, mark="!")
    assert len(made(["bad", "bad", "a", "bad", "bad", "b"])) == 6
    with pytest.raises(DataError, match="failed on 3 rows in a row, last on 'bad 3': ValueError: a bad word.*--resume"):
        made(["bad 1", "bad 2", "bad 3", "a"])
    with pytest.raises(DataError, match="cannot be made .TypeError"):
        translation(monkeypatch, tone="!")
    with pytest.raises(DataError, match="is not module:Class"):
        Translation(TranslateConfig(worker="shouting"))


def test_the_example_of_a_dictionary_translates_and_keeps_the_source(web, engine, tmp_path):
    (tmp_path / "words.tsv").write_text("red\t红色的\nred apple\t红苹果\nbook\t图书\n", encoding="utf-8")
    table = tmp_path / "public.jsonl"
    texts = ("A red apple book", "nothing", "red book")
    table.write_text("".join(json.dumps({"caption": text}) + "\n" for text in texts))
    config = web("images=false", "rules.near_images=null", "rules.texts.script=null",
                 f"translate={{worker: 'vilg.data.building.translation:Dictionary', options: {{path: "
                 f"{tmp_path / 'words.tsv'}}}}}")
    report = Build(config, [str(table)], tmp_path / "out").run(engine)
    import tarfile
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        said = [json.load(tar.extractfile(item)) for item in tar]
    assert [(one["captions"], one["source_captions"]) for one in said] == [
        (["a 红苹果图书"], ["A red apple book"]), (["红色的图书"], ["red book"])]
    assert report["rules"]["translation"]["samples"] == 1
    assert "no word of 'nothing'" in report["rules"]["translation"]["examples"][0]["value"]


def test_clicked_queries_become_captions(raw, web, engine, tmp_path):
    keys = [name.rpartition("/")[2] for name, rule in raw[1].items() if rule is None][:3]
    log = tmp_path / "log.tsv"
    clicks = [("商店的红色苹果", keys[0], 2), ("商店的红色苹果", keys[0], 2), ("城市的公园", keys[0], 9), ("老师的图书", keys[1], 1)]
    log.write_text("query\turl\tclicks\n" + "".join(f"{query}\thttps://pictures.example/{key}\t{count}\n"
                                                    for query, key, count in clicks))
    config = web(f"clicks={{path: {log}, image: url, most: 2}}")
    Build(config, [str(raw[0])], tmp_path / "out").run(engine)
    found = [texts for texts in samples_of(tmp_path / "out").values() if len(texts) > 1]
    assert [texts[1:] for texts in found] == [["城市的公园", "商店的红色苹果"]]
    with pytest.raises(DataError, match="has no column key but query, url, clicks"):
        Build(web(f"clicks={{path: {log}}}"), [str(raw[0])], tmp_path / "other").run(engine)


def test_a_worker_that_dies_is_replaced_and_one_job_that_kills_all_is_named(engine, tmp_path):
    jobs = {f"{number:03d}": str(number) for number in range(7)}
    done = list(engine.run(functools.partial(deadly, str(tmp_path / "once")), tmp_path / "a", jobs))
    assert sorted(done) == [] or len(list((tmp_path / "a").glob("*.json"))) == 7
    with pytest.raises(DataError, match="a worker died 3 times at 5"):
        list(engine.run(functools.partial(deadly, None), tmp_path / "b", jobs))
    assert len(list((tmp_path / "b").glob("*.json"))) == 6, "all other jobs are done"


def test_a_sentence_of_a_worker_stops_the_build_with_it(engine, tmp_path):
    with pytest.raises(DataError, match="^seven$"):
        list(engine.run(functools.partial(deadly, "x"), tmp_path, {"007": "7"}))


def test_a_cluster_that_does_not_answer_is_a_sentence(engine):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'vilg[ray]'")
    from vilg.data.building.engine import Engine

    with pytest.raises(DataError, match="no Ray cluster answers at 127.0.0.1:1 .*--address is HOST:6379"):
        Engine("ray", "127.0.0.1:1")
