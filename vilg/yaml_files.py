"""YAML as configs and released folders write it: one mapping a file, small, shallow, and nothing read by surprise.

A config may name another that it goes on from, ``base: other.yaml`` beside it; what it says itself goes over that.
"""
import copy
import re
from pathlib import Path
from typing import Any

import yaml

from vilg.errors import ConfigError

MOST_BYTES = 2**20
DEEPEST = 50
LARGEST = 2**63 - 1
LONGEST_CHAIN = 20
BASE = "base"

# PyYAML raises the last two for a date that does not exist and for tags that do not fit their value.
_NOT_YAML = (yaml.YAMLError, ValueError, AttributeError, TypeError, OverflowError, RecursionError)
_LONGEST_REASON = 200
_SURROGATES = re.compile("[\ud800-\udfff]")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping. Raises ConfigError when the file is missing, too large, is not YAML or not a mapping."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: is over {MOST_BYTES // 2**20} MB, which no config is")
        values = yaml.load(content.decode("utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; `ls configs/*` shows the configs that ship") from None
    except (*_NOT_YAML, OSError) as error:
        raise ConfigError(f"{path}: not a YAML file that can be read ({_reason(error)})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found {type(values).__name__}")
    return values


def read_chain(path: str | Path) -> dict[str, Any]:
    """Read a config with all that its ``base:`` stands on: mappings are laid over each other key by key, lists and
    plain values replace what was there, and so does a mapping that names another ``kind``.

    Raises ConfigError for a base that is missing, leads in a circle or is no path.
    """
    layers, seen = [], []
    here = Path(path)
    while True:
        values = read_yaml(here)
        layers.append(values)
        seen.append(here.resolve())
        base = values.pop(BASE, None)
        if base is None:
            break
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{here}: base: must be the path of another config, got {shown(base)}")
        there = here.parent / base
        if not there.is_file():
            raise ConfigError(f"{here}: base: there is no file {there}; the path goes from the config's own folder")
        if there.resolve() in seen or len(seen) > LONGEST_CHAIN:
            raise ConfigError(f"{here}: base: {base} leads back to a config that this one is the base of")
        here = there
    result: dict[str, Any] = {}
    for values in reversed(layers):
        result = _over(result, values)
    return result


def parse_value(text: str) -> Any:
    """One YAML value, as a command line gives it. Raises ConfigError saying that it is none."""
    try:
        return yaml.load(text, _Loader)
    except _NOT_YAML:
        raise ConfigError(f"{shown(text)} is not a YAML value") from None


def shown(value: Any) -> str:
    """A value as a message shows it: short, and printable anywhere."""
    text = _SURROGATES.sub("�", repr(value))
    return text if len(text) <= 60 else text[:57] + "…"


def _over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(lower)
    for key, value in upper.items():
        below = result.get(key)
        same = isinstance(below, dict) and isinstance(value, dict) and below.get("kind") == value.get(
            "kind", below.get("kind"))
        result[key] = _over(below, value) if same else value
    return result


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice (PyYAML would keep the last), depth without end, integers that nothing can
    hold and half characters; and reads 1:30 as text, where YAML 1.1 means ninety."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"it is nested more than {DEEPEST} levels deep",
                                              self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {shown(key.value)[1:-1]} is given twice",
                                                        node.start_mark)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.Node) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and _SURROGATES.search(value):
            raise yaml.constructor.ConstructorError(None, None, "it holds half a character", node.start_mark)
        return value

    def construct_yaml_int(self, node: yaml.Node) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) > LARGEST:
            raise yaml.constructor.ConstructorError(None, None, "a whole number is too large", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_WITHOUT_COLONS = {
    "tag:yaml.org,2002:int": re.compile(r"^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)"
                                        r"|[-+]?0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?"
                                          r"|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
                                          r"|\.(?:nan|NaN|NAN))$"),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, _WITHOUT_COLONS.get(tag, pattern)) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
