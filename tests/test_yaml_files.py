"""Configs that go on from others, and YAML that no config is."""
import pytest

from vilg import yaml_files
from vilg.errors import ConfigError
from vilg.run import build


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def refused(path):
    with pytest.raises(ConfigError) as caught:
        yaml_files.read_chain(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + 2 * len(str(path))
    return str(caught.value)


def test_a_config_lies_over_its_base_key_by_key(tmp_path):
    write(tmp_path, a="task: {kind: x, model: {width: 1, heads: 2}}\nlist: [1, 2]\nkept: 3\n",
          b="base: a.yaml\ntask: {model: {width: 5}}\nlist: [9]\n", c="base: b.yaml\ntask: {model: {heads: 7}}\n")
    assert yaml_files.read_chain(tmp_path / "c.yaml") == {
        "task": {"kind": "x", "model": {"width": 5, "heads": 7}}, "list": [9], "kept": 3}


def test_another_kind_takes_nothing_from_the_base(tmp_path):
    write(tmp_path, a="loss: {kind: pixels, l1: 1}\nplain: {x: 1}\n",
          b="base: a.yaml\nloss: {kind: laplace}\nplain: {y: 2}\n", c="base: a.yaml\nloss: {kind: pixels, l2: 2}\n")
    assert yaml_files.read_chain(tmp_path / "b.yaml") == {"loss": {"kind": "laplace"}, "plain": {"x": 1, "y": 2}}
    assert yaml_files.read_chain(tmp_path / "c.yaml")["loss"] == {"kind": "pixels", "l1": 1, "l2": 2}


def test_a_base_is_found_from_the_folder_of_its_config(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, a="x: 1\n")
    (tmp_path / "deep" / "b.yaml").write_text("base: ../a.yaml\ny: 2\n")
    assert yaml_files.read_chain(tmp_path / "deep" / "b.yaml") == {"x": 1, "y": 2}


def test_a_missing_base_names_both_files(tmp_path):
    write(tmp_path, a="base: absent.yaml\n")
    message = refused(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in message and str(tmp_path / "absent.yaml") in message


@pytest.mark.parametrize("files, start", [
    ({"a": "base: a.yaml\n"}, "a"), ({"a": "base: b.yaml\n", "b": "base: a.yaml\n"}, "a"),
    ({"a": "base: b.yaml\n", "b": "base: c.yaml\n", "c": "base: ./b.yaml\n"}, "a")])
def test_a_circle_of_bases_is_refused(files, start, tmp_path):
    assert "leads back" in refused(write(tmp_path, **files) / f"{start}.yaml")


@pytest.mark.parametrize("base", ["3", "[a.yaml]", "{}", "''"])
def test_a_base_is_a_path(base, tmp_path):
    assert "must be the path" in refused(write(tmp_path, a=f"base: {base}\n") / "a.yaml")


@pytest.mark.parametrize("text, reason", [
    ("x: " + "{a: " * 3000 + "1" + "}" * 3000, "nested more than"), ("x: " + "[" * 3000 + "]" * 3000, "nested more"),
    ("x: " + "9" * 5000, "not a YAML file"), ("x: 100000000000000000000000000", "too large"),
    ('x: "\\ud800"', "half a character"), ('"\\udc00": 1', "half a character"), ("x: \0", "not a YAML file"),
    ("x: 1\n" * 300_000, "is over 1 MB"), ("? [1, 2]\n: 3\n", "not a YAML file"), ("x: *nowhere\n", "not a YAML file"),
])
def test_yaml_that_no_config_is(text, reason, tmp_path):
    assert reason in refused(write(tmp_path, a=text) / "a.yaml")


def test_minutes_are_text_and_not_ninety(tmp_path):
    write(tmp_path, a="steps: 1:30\nrate: 190:20:30.15\nplain: 12\nreal: 1.5\n")
    assert yaml_files.read_yaml(tmp_path / "a.yaml") == {"steps": "1:30", "rate": "190:20:30.15", "plain": 12,
                                                         "real": 1.5}


RUN = """name: {name}
output: {output}
task:
  kind: scene_features
  network: {{image_size: 64, channels: 32, dim: 64}}
data: {{sources: [{{kind: scenes, count: 4}}]}}
"""


@pytest.mark.parametrize("name, output, key", [
    ("'../../x'", "runs/{name}", "name"), ("..", "runs/{name}", "name"), ("''", "runs/{name}", "name"),
    ("a/b", "runs", "name"), ('"a\\nb"', "runs", "name"), ("x" * 101, "runs", "name"),
    ("x", "'runs/{name.foo}'", "output"), ("x", "'{name:>5000000000}'", "output"), ("x", "'{0}'", "output"),
    ("x", "'{'", "output"), ("x", "'{name!r}'", "output"), ("x", "a" * 2000, "output")])
def test_names_and_outputs_that_are_none(name, output, key, tmp_path):
    write(tmp_path, a=RUN.format(name=name, output=output))
    with pytest.raises(ConfigError, match=key) as caught:
        build.load_run(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_thousands_of_unknown_keys_are_one_short_sentence(tmp_path):
    keys = "".join(f"key{number}: 1\n" for number in range(20_000))
    write(tmp_path, a=RUN.format(name="x", output="runs") + keys)
    with pytest.raises(ConfigError, match="problems more") as caught:
        build.load_run(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 2000
