"""Files of many lines that stay on disk."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vilg.data.line_index import Lines
from vilg.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def test_lines_of_every_kind_of_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff一\r\n\n \u3000\r\n二\u2028三\x85四\nend".encode())
    lines = Lines(path)
    assert [lines[index] for index in range(len(lines))] == ["一", "", " \u3000", "二\u2028三\x85四", "end"]
    assert lines[-1] == "end"
    with pytest.raises(IndexError):
        lines[5]
    some = Lines(path, blank=False)
    assert [some.numbered(index) for index in range(len(some))] == [(1, "一"), (4, "二\u2028三\x85四"), (5, "end")]
    path.write_bytes(b"")
    assert len(Lines(path)) == 0


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(OSError):
        Lines(tmp_path / "none")
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2: 'utf-8' codec can't decode byte 0xff"):
        Lines(tmp_path / "a.txt")


def test_a_file_that_is_replaced_is_read_as_it_was_and_one_cut_short_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    lines = Lines(path)
    path.unlink()
    path.write_text("three\n", encoding="utf-8")
    assert lines[1] == "two"
    lines = Lines(path)
    path.write_text("th", encoding="utf-8")
    with pytest.raises(DataError, match="a.txt: has become shorter than it was.*line 1 is gone"):
        lines[0]


@pytest.mark.parametrize("new", ["x\n一只猫\n两只狗\n", "一只猫一只猫\n", "abcdefghij\n" * 3])
def test_a_file_written_anew_in_place_is_named(tmp_path, new):
    path = tmp_path / "a.txt"
    path.write_text("一只猫\n两只狗\n", encoding="utf-8")
    lines = Lines(path)
    with open(path, "r+", encoding="utf-8") as file:
        file.write(new)
    with pytest.raises(DataError, match="a.txt: has been written anew since the run began, line 1"):
        lines[0]


MEASURE = """
import sys
from vilg.data.sources.codes import CodesConfig, CodesSource
from vilg.data.sources.table import TableConfig, TableSource
from pathlib import Path

def kilobytes():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

def read(kind):
    if kind == "codes":
        return CodesSource(CodesConfig(path=sys.argv[1]), "abc")
    return TableSource(TableConfig(path=sys.argv[1] + "/texts.jsonl"))

for kind in ("codes", "table"):
    before = kilobytes()
    source = read(kind)
    built = kilobytes()
    if kind == "codes":
        for index in range(len(source)):
            source[index]
    print(built - before, kilobytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process")
def test_records_take_little_memory_when_they_are_found_and_none_more_when_they_are_read(tmp_path):
    import numpy as np

    from vilg.weights.files import save_weights

    count = 50_000
    record = json.dumps({"key": "scenes/train/0", "picture": "texts.jsonl",
                         "captions": ["左下方有一个粉色的三角形，左上方有一颗青色的星星"] * 6,
                         "questions": [["粉色的图形是什么形状？", "三角形"]] * 6}, ensure_ascii=False) + "\n"
    (tmp_path / "texts.jsonl").write_text(record * count, encoding="utf-8")
    save_weights(tmp_path / "codes.safetensors", {"codes": np.zeros([count, 64], np.uint16)},
                 {"image_tokenizer": "abc"})
    out = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    (built, read), (table, _) = (map(int, line.split()) for line in out.splitlines())
    # Kilobytes; texts and codes of these records take 59 000 in their files, and 3.5 times that as Python's strings.
    assert max(built, table) < count * 0.1
    assert read < count * 0.3
