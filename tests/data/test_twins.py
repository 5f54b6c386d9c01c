"""Which rows of a table show the same thing, and how a sample finds its twins."""
import json

import numpy as np
import pytest
from PIL import Image

from vilg.data.sample import BrokenSample
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.twins import TWIN, TwinIndex


def test_others_are_those_that_show_the_same():
    index = TwinIndex(["a", "b", None, "a", "a", "c", None, "b"])
    assert [index.count(row) for row in range(8)] == [2, 1, 0, 2, 2, 0, 0, 1]
    for row, others in ((0, {3, 4}), (3, {0, 4}), (1, {7}), (7, {1})):
        assert {index.other(row, seed) for seed in range(30)} == others
        assert index.other(row, 5) == index.other(row, 5)


@pytest.fixture
def table(tmp_path):
    rows = []
    for number, concept in enumerate(["sun", "moon", "sun", None, "star"]):
        Image.fromarray(np.full([8, 8, 3], 40 * number, "uint8")).save(tmp_path / f"{number}.png")
        rows.append({"picture": f"{number}.png", "captions": ["一"], "concept": concept})
    text = "\n".join([*(json.dumps(row) for row in rows), "not a record", '{"picture": "lost.png", "captions": ["一"], '
                      '"concept": "moon"}'])
    (tmp_path / "table.jsonl").write_text(text + "\n")
    return tmp_path / "table.jsonl"


def test_a_table_gives_samples_their_twins(table):
    source = TableSource(TableConfig(path=str(table), twins="concept"))
    first, third = source[0], source[2]
    assert first.facts[TWIN].sample(4).key == "2.png" and third.facts[TWIN].sample(9).key == "0.png"
    assert first.facts[TWIN].sample(0).image[0, 0, 0] == 80
    assert TWIN not in source[3].facts and TWIN not in source[4].facts
    with pytest.raises(BrokenSample, match="lost.png"):
        source[1].facts[TWIN].sample(0)
    assert all(TWIN not in TableSource(TableConfig(path=str(table)))[row].facts for row in range(5))
