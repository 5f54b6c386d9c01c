import json

from vilg.evaluation.report import write_json


def test_figures_are_one_flat_object_with_their_context(tmp_path):
    path = tmp_path / "deep" / "figures.json"
    write_json(path, {"i2t": 0.5}, seed=3, config="tiny")
    read = json.loads(path.read_text())
    assert read["i2t"] == 0.5 and read["seed"] == 3 and read["config"] == "tiny"
    assert {"machine", "cores", "paddle"} <= read.keys()
    assert not any(isinstance(value, (dict, list)) for value in read.values())
    assert [child.name for child in path.parent.iterdir()] == ["figures.json"]
