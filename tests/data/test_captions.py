"""Reading captions without pictures."""
import pytest

from vilg.data.captions import read_captions
from vilg.errors import DataError


def test_files_of_all_kinds_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.txt").write_text("一只猫\n\n两只狗\n", encoding="utf-8")
    (tmp_path / "a.tsv").write_text("x.png\t红的\t绿的\n", encoding="utf-8-sig")
    (tmp_path / "c.jsonl").write_text('{"picture": "y.png", "captions": ["蓝的"], "questions": [["几个", "三个"]]}\n'
                                      '{"picture": "z.png", "caption": "黄的"}\n', encoding="utf-8")
    (tmp_path / "b/picture.png").write_bytes(b"\x89PNG")
    assert list(read_captions(tmp_path)) == ["红的", "绿的", "一只猫", "两只狗", "蓝的", "几个", "三个", "黄的"]


def test_linked_folders_are_read_too(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "far/a.txt").write_text("一只猫", encoding="utf-8")
    (tmp_path / "near/b.txt").write_text("两只狗", encoding="utf-8")
    (tmp_path / "near/a").symlink_to(tmp_path / "far")
    assert list(read_captions(tmp_path / "near")) == ["一只猫", "两只狗"]


def test_broken_lines_are_left_out_and_reported(tmp_path, caplog):
    path = tmp_path / "table.jsonl"
    path.write_text('{"captions": ["好"]}\n{broken\n[]\n{"captions": [3]}\n', encoding="utf-8")
    assert list(read_captions(path)) == ["好"]
    assert "left out 3 lines, the first: line 2" in caplog.text
    (tmp_path / "table.tsv").write_text("only-a-path.png\na.png\t好\n", encoding="utf-8")
    assert list(read_captions(tmp_path / "table.tsv")) == ["好"]


def test_what_cannot_be_read_at_all(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "words.doc").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, message in [("latin.txt", "is not UTF-8"), ("words.doc", "captions are read from"),
                          ("empty", "holds no"), ("absent.txt", "no such file")]:
        with pytest.raises(DataError, match=message):
            list(read_captions(tmp_path / name))
