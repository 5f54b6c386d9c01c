"""A build from raw pairs to shards: what is kept, and what a build that is stopped, killed or given bad input does."""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from built_data import drops_of, samples_of
from PIL import Image
from plain_loop import PlainLoop

from vilg.config import to_yaml
from vilg.data.building.build import Build
from vilg.data.building.files import WORK
from vilg.data.building.parts import find_parts
from vilg.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def plain(raw, web):
    return PlainLoop(web(), [str(raw[0])])


def digest(output):
    files = [*sorted(output.glob("*.tar")), output / "index.json", output / "report.json", output / "dropped.parquet"]
    return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


def test_a_build_keeps_and_drops_what_a_plain_loop_does(built, plain):
    output, report = built
    assert samples_of(output) == plain.kept
    assert drops_of(output) == sorted((key, rule, text or "", gone) for key, rule, text, gone in plain.drops)
    assert {name: rule["samples"] for name, rule in report["rules"].items() if rule["samples"]} == plain.counts()
    assert report["samples_read"] == 240 and report["samples_kept"] == len(plain.kept) == sum(
        json.loads((output / "index.json").read_text()).values())


def test_every_planted_fault_is_found_by_its_rule(built, raw):
    output, _ = built
    by_source = {row[0]: row[1] for row in drops_of(output) if row[3]}
    found = Counter()
    for source, rule in raw[1].items():
        key = hashlib.blake2b(source.encode(), digest_size=10).hexdigest()
        found[rule, by_source.get(key)] += 1
    wrong = {pair: count for pair, count in found.items() if pair[0] != pair[1]}
    assert wrong == {} and len(found) == 14


def test_a_caption_may_have_as_many_images_as_the_rule_says_and_no_more(web, engine, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    texts = ["公园的照片"] * 3 + ["城市的照片"] * 4 + ["红色的苹果"]
    for number, text in enumerate(texts):
        image = np.random.default_rng(number).integers(0, 255, [80, 80, 3], "uint8")
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text + "\n")
    config = web("rules.frequency=3", "rules.similarity=null", "rules.near_images=null", "rules.near_texts=null")
    Build(config, [str(folder)], tmp_path / "out").run(engine)
    assert Counter(kept[0] for kept in samples_of(tmp_path / "out").values()) == {"公园的照片": 3, "红色的苹果": 1}
    assert {row[1] for row in drops_of(tmp_path / "out")} == {"frequency"}


def test_shards_are_level_and_records_whole(built):
    output, report = built
    counts = json.loads((output / "index.json").read_text())
    assert len(counts) == report["shards"] > 1 and max(counts.values()) - min(counts.values()) <= 1
    with tarfile.open(output / "00000.tar") as tar:
        image, record = tar.getmembers()[:2]
        said = json.load(tar.extractfile(record))
    assert said["raw_key"].startswith("web/00000.tar/") and said["url"].startswith("https://")
    assert image.name == f"{said['key']}.jpg" and not (output / WORK).exists()


def test_the_report_names_thresholds_and_examples(built):
    _, report = built
    assert report["rules"]["words"]["threshold"] == 14
    example = report["rules"]["sides"]["examples"][0]
    assert example["source"].startswith("web/0") and example["value"].endswith("x63")
    assert report["rules"]["same_bytes"]["examples"][0]["value"] in {key for key in samples_of(built[0])}


def test_a_finished_build_is_not_begun_again(built, raw, web, engine):
    output, report = built
    with pytest.raises(DataError, match="holds a finished build; go on with it by --resume"):
        Build(web(), [str(raw[0])], output).run(engine)
    before = digest(output)
    assert Build(web(), [str(raw[0])], output).run(engine, resume=True) == json.loads(json.dumps(report))
    assert digest(output) == before and not (output / WORK).exists()


def test_other_rules_or_inputs_are_refused(built, raw, web, engine, tmp_path):
    output, _ = built
    with pytest.raises(DataError, match=r"other inputs or rules \(rules.frequency changed\)"):
        Build(web("rules.frequency=3"), [str(raw[0])], output).run(engine, resume=True)
    other = tmp_path / "web"
    shutil.copytree(raw[0], other)
    (other / "00000.tar").write_bytes((other / "00001.tar").read_bytes())
    with pytest.raises(DataError, match=r"\(the inputs changed\)"):
        Build(web(), [str(other)], output).run(engine, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(DataError, match="holds other files"):
        Build(web(), [str(raw[0])], tmp_path / "mine").run(engine)


def test_settings_of_running_may_change(built, raw, web, engine):
    assert Build(web("batch=7", "rows_at_once=50"), [str(raw[0])], built[0]).run(engine, resume=True)


def test_a_kill_costs_no_more_than_a_part(built, raw, web, tmp_path):
    """The driver is killed while it reads, and again where it compares; the same command ends with the same bytes."""
    config = tmp_path / "web.yaml"
    config.write_text(to_yaml(web()))
    command = [sys.executable, str(ROOT / "tools/build_data.py"), "--config", str(config), "--input", str(raw[0]),
               "--output", str(tmp_path / "out"), "--workers", "1", "--resume"]
    work = tmp_path / "out" / WORK
    for reached in (lambda: len(list(work.glob("read/*.json"))) >= 2, lambda: (work / "compared").exists()):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL,
                                   env=os.environ | {"PYTHONPATH": str(ROOT)})
        while not reached():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out/report.json").exists()
    marks = {path: path.stat().st_mtime_ns for path in work.glob("read/*.json")}
    assert len(marks) == 4, "all parts were read before the second kill"
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert digest(tmp_path / "out") == digest(built[0])


def test_grouping_through_files_changes_nothing(built, raw, web, engine, tmp_path):
    Build(web("rows_at_once=100", "batch=17"), [str(raw[0])], tmp_path / "out").run(engine)
    assert digest(tmp_path / "out") == digest(built[0])


def test_a_dry_run_reports_and_writes_nothing(raw, web, engine, tmp_path):
    report = Build(web(), [str(raw[0])], tmp_path / "out").dry_run(engine, 80)
    assert report["samples_read"] == 80 and report["parts"] == 4 and 0 < report["samples_kept"] < 80
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_no_tar_is_named_and_the_rest_is_built(raw, web, engine, tmp_path, caplog):
    folder = tmp_path / "web"
    folder.mkdir()
    shutil.copy(raw[0] / "00000.tar", folder)
    (folder / "00001.tar").write_bytes(b"<html>404 not found</html>" * 99)
    report = Build(web(), [str(folder)], tmp_path / "out").run(engine)
    assert report["bad_parts"] == 1 and "not a tar file" in report["bad_parts_named"]["web/00001.tar"]
    assert "web/00001.tar: " in caplog.text and report["samples_read"] == 60
    with pytest.raises(DataError, match="not a tar file.*1 of 2 parts cannot be read.*max_bad_parts"):
        Build(web("max_bad_parts=0"), [str(folder)], tmp_path / "other").run(engine)
    assert (tmp_path / "other" / WORK / "read/0000000.json").exists(), "what was read is kept"


def test_a_rule_that_cannot_be_is_a_sentence(raw, web, engine, tmp_path):
    with pytest.raises(DataError, match="none.txt: cannot be read as blocked words"):
        Build(web("rules.texts.blocked=[none.txt]"), [str(raw[0])], tmp_path / "out").run(engine)
    with pytest.raises(DataError, match="there is no such file or folder"):
        Build(web(), ["nowhere"], tmp_path / "out").run(engine, resume=True)


def test_all_kinds_of_input_give_the_same_samples(raw, web, tmp_path):
    """A folder, tables and parquet of the same pairs as the tars: the same captions are kept."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    rows = []
    for number in range(12):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 255, [80, 80, 3], "uint8"))
        path = folder / "deep" / f"{number}.png"
        image.save(path)
        text = f"第{number}张照片" if number != 5 else "快跑"
        path.with_suffix(".txt").write_text(text + "\n")
        rows.append({"picture": f"photos/deep/{number}.png", "captions": [text]})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.tsv").write_text("image\tcaption\n" + "".join(
        f"{row['picture']}\t{row['captions'][0]}\n" for row in rows))
    contents = [(tmp_path / row["picture"]).read_bytes() for row in rows]
    parquet.write_table(pyarrow.table({"jpg": contents, "caption": [row["captions"][0] for row in rows],
                                       "similarity": [0.5] * 12}), tmp_path / "pairs.parquet", row_group_size=3)
    for given in ("photos", "pairs.jsonl", "pairs.tsv", "pairs.parquet"):
        for part_rows in (4, 1000):
            loop = PlainLoop(web("rules.near_images=null", f"part_rows={part_rows}"), [str(tmp_path / given)])
            assert {texts[0] for texts in loop.kept.values()} == {f"第{number}张照片" for number in range(12)
                                                                  if number != 5}, (given, part_rows)
        parts = list(find_parts([str(tmp_path / given)], 4))
        assert given not in ("photos", "pairs.parquet") or len(parts) == {"photos": 3, "pairs.parquet": 2}[given]


def test_keys_do_not_hang_on_how_inputs_are_cut(web, tmp_path):
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"caption": f"第{number}张照片"}) + "\n" for number in range(200)))
    keys = []
    for part_rows in (1, 7, 1000):
        config = web("images=false", "rules.near_images=null", f"part_rows={part_rows}")
        assert (len(list(find_parts([str(table)], part_rows))) > 1) == (part_rows < 40)
        keys.append(PlainLoop(config, [str(table)]).kept)
    assert keys[0] == keys[1] == keys[2] and len(keys[0]) == 200
