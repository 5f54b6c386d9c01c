"""Configs: YAML in, validated dataclasses out, and errors that name the key."""
from dataclasses import field
from typing import Annotated, Literal

import pydantic
import pytest
import yaml

from vilg import config, yaml_files
from vilg.config import configclass
from vilg.errors import ConfigError


@configclass
class Block:
    width: int = 4
    rate: float = 0.1

    def __post_init__(self):
        if self.width % 2:
            raise ValueError("width must be even")


@configclass
class Drawing:
    kind: Literal["drawing"] = "drawing"
    block: Block = field(default_factory=Block)
    names: list[str] = field(default_factory=list)


@configclass
class Writing:
    kind: Literal["writing"] = "writing"
    deep: Block
    spare: Block | None = None


@configclass
class Run:
    name: str
    flag: bool = False
    task: Annotated[Drawing | Writing, pydantic.Field(discriminator="kind")]
    blocks: list[Block] = field(default_factory=list)
    grid: tuple[int, int] = (8, 8)


DRAWING = {"name": "x", "task": {"kind": "drawing"}}


def refused(**values):
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Run, values, source="run.yaml")
    return str(caught.value).removeprefix("run.yaml: ")


@pytest.mark.parametrize("values, message", [
    ({"name": "x"}, "task: is required"),
    ({"name": "x", "task": {"kind": "writing"}}, "task.deep: is required"),
    ({"name": "x", "task": {"kind": "painting"}}, "task.kind: must be one of drawing, writing, got painting"),
    ({"name": "x", "task": {}}, "task.kind: must be one of drawing, writing"),
    ({"name": "x", "task": 3}, "task: must be a mapping of keys to values, got 3"),
    ({"name": "x", "task": {"kind": "drawing", "block": {"width": 3}}}, "task.block: width must be even"),
    ({"name": "x", "task": {"kind": "drawing", "block": {"wdith": 4}}},
     "task.block.wdith: unknown key (did you mean width?)"),
    ({"name": "x", "task": {"kind": "writing", "deep": {"width": "wide"}}},
     "task.deep.width: must be a whole number, got 'wide'"),
    ({"name": "x", "task": {"kind": "drawing", "block": {"width": 2.5}}},
     "task.block.width: must be a whole number, got 2.5"),
    ({"name": "x", "task": {"kind": "drawing", "block": {"rate": ".nan"}}}, "task.block.rate: must be a number"),
    ({"name": "x", "task": {"kind": "drawing", "block": {"rate": float("nan")}}},
     "task.block.rate: must be a finite number"),
    ({"name": "x", "task": {"kind": "drawing", "names": "abc"}}, "task.names: must be a list, got 'abc'"),
    ({**DRAWING, "blocks": [{}, {"width": 5}]}, "blocks.1: width must be even"),
    ({**DRAWING, "blocks": [{"height": 5}]}, "blocks.0.height: unknown key (known keys: width, rate)"),
    ({**DRAWING, "flag": "maybe"}, "flag: must be true or false, got 'maybe'"),
    ({**DRAWING, "grid": [1, "a"]}, "grid.1: must be a whole number, got 'a'"),
    ({**DRAWING, "name": 3}, "name: must be text (quote it), got 3"),
])
def test_a_wrong_config_is_refused_by_the_path_of_its_key(values, message):
    assert refused(**values).startswith(message)


def test_every_problem_is_named_at_once():
    message = refused(**DRAWING, flag="maybe", nam="y")
    assert "flag: must be true or false" in message and "nam: unknown key (did you mean name?)" in message


def test_values_are_coerced_and_come_back_from_yaml():
    run = config.from_dict(Run, {"name": "x", "task": {"kind": "writing", "deep": yaml.safe_load("rate: 1e-4")}})
    assert run.task.deep.rate == 1e-4 and run.grid == (8, 8)
    assert config.from_dict(Run, yaml.safe_load(config.to_yaml(run))) == run


def test_overrides_reach_nested_keys_lists_and_empty_mappings():
    values = {"a": {"b": 1}, "sources": [{"path": "x"}], "none": None}
    result = config.apply_overrides(values, ["a.b=[1, 2]", "sources.0.path=y", "none.key=true", "new.deep.key=text"])
    assert result == {"a": {"b": [1, 2]}, "sources": [{"path": "y"}], "none": {"key": True},
                      "new": {"deep": {"key": "text"}}}
    assert values == {"a": {"b": 1}, "sources": [{"path": "x"}], "none": None}


@pytest.mark.parametrize("override, message", [
    ("a", "write it as key.subkey=value"),
    ("=1", "write it as key.subkey=value"),
    ("a..b=1", "write it as key.subkey=value"),
    ("a=[1,", "'[1,' is not a YAML value"),
    ("a.b.c=1", "a.b: has no keys of its own"),
    ("list.3=1", "list: is a list of 1"),
    ("list.x.y=1", "list: is a list of 1"),
])
def test_overrides_that_cannot_be_put_in(override, message):
    with pytest.raises(ConfigError) as caught:
        config.apply_overrides({"a": {"b": 1}, "list": [2]}, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("content, message", [
    (b"a: [1", "not a YAML file"),
    (b"- 1\n- 2\n", "a config is a mapping"),
    (b"", "a config is a mapping"),
    (b"\xff\xfe\x00", "not a YAML file"),
    (b"a: 1\nb:\n  c: 1\n  c: 2\n", "the key c is given twice"),
])
def test_files_that_are_no_configs(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        yaml_files.read_yaml(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        yaml_files.read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not a YAML file"):
        yaml_files.read_yaml(tmp_path)


def test_merge_keys_and_anchors_are_yaml_still(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("base: &base\n  width: 2\nblock:\n  <<: *base\n  rate: 1e-3\n")
    assert yaml_files.read_yaml(path)["block"] == {"width": 2, "rate": "1e-3"}


def test_load_reads_overrides_and_builds(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ntask: {kind: drawing}\n")
    assert config.load(path, Run, ["task.block.width=6", "flag=yes"]).task.block.width == 6
    with pytest.raises(ConfigError, match=r"run.yaml: task.block.width: must be a whole number"):
        config.load(path, Run, ["task.block.width=wide"])


@pytest.mark.parametrize("text", ["2026-02-30", "0b_", "!!int x", "!!timestamp x"])
def test_values_that_yaml_cannot_make_are_refused(text, tmp_path):
    with pytest.raises(ConfigError, match="is not a YAML value"):
        config.apply_overrides({}, [f"name={text}"])
    (tmp_path / "run.yaml").write_text(f"name: {text}\n")
    with pytest.raises(ConfigError, match="not a YAML file that can be read"):
        yaml_files.read_yaml(tmp_path / "run.yaml")


def test_a_truth_is_no_number():
    assert refused(**DRAWING | {"blocks": [{"width": True}]}) == "blocks.0.width: must be a number, got True"
    assert refused(**DRAWING | {"blocks": [{"rate": False}]}) == "blocks.0.rate: must be a number, got False"
