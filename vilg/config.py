"""YAML to validated dataclasses, with dotted overrides and errors that name the key.

A class that can be configured declares a dataclass beside it with :func:`configclass`; this module knows none of them.
Unknown keys, wrong types and contradictions (raised as ``ValueError`` in ``__post_init__``) are refused with the dotted
path of the key and what would be right.
"""
import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses
import yaml

from vilg.errors import ConfigError

T = TypeVar("T")


@dataclass_transform(kw_only_default=True)
def configclass(cls: type[T]) -> type[T]:
    """Make ``cls`` a keyword-only dataclass whose fields are checked and coerced, and which refuses unknown keys."""
    return pydantic.dataclasses.dataclass(
        kw_only=True, config=pydantic.ConfigDict(extra="forbid", protected_namespaces=())
    )(cls)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping. Raises ConfigError when the file is missing, is not YAML or is not a mapping."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; `ls configs/*` shows the configs that ship") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found {type(content).__name__}")
    return content


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return ``values`` with every ``a.b=c`` of ``overrides`` put in; the value is read as YAML. The input is kept."""
    result = _deep_copy(values)
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"--set {override}: write it as key.subkey=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: {text!r} is not a YAML value") from None
        *parents, last = path.strip().split(".")
        node = result
        for depth, name in enumerate(parents):
            child = node.setdefault(name, {})
            if child is None:
                child = node[name] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"{'.'.join(parents[:depth + 1])}: has no keys of its own, so {path} cannot be set")
            node = child
        node[last] = value
    return result


def from_dict(cls: type[T], values: dict[str, Any], source: str = "config") -> T:
    """Build the config dataclass ``cls`` from plain values. Raises ConfigError that lists every offending key."""
    adapter = pydantic.TypeAdapter(cls)
    try:
        return adapter.validate_python(values)
    except pydantic.ValidationError as error:
        problems = [_sentence(cls, values, problem) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(dict.fromkeys(problems))) from None


def load(path: str | Path, cls: type[T], overrides: list[str] = ()) -> T:
    """Read ``path``, put in the ``overrides`` (``a.b=c``) and build ``cls``. Raises ConfigError."""
    return from_dict(cls, apply_overrides(read_yaml(path), list(overrides)), source=str(path))


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values that :func:`from_dict` takes back."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    """A config dataclass as YAML text, keys in the order of declaration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _deep_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep_copy(child) for key, child in value.items()}
    return list(value) if isinstance(value, list) else value


def _sentence(cls: type, values: dict[str, Any], problem: dict[str, Any]) -> str:
    # The location names union members by their tag as well; only what the user wrote, or should have, is kept.
    path, node = [], values
    location = problem["loc"]
    for position, part in enumerate(location):
        last = position == len(location) - 1
        absent = isinstance(node, dict) and part not in node
        if absent and not (last and problem["type"] in ("missing", "missing_argument")):
            continue
        path.append(str(part))
        node = node[part] if isinstance(node, (dict, list)) and _has(node, part) else None
    dotted = ".".join(path) or "config"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(cls, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{dotted}: unknown key ({hint})"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{dotted}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f", got {given!r}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{dotted}: {message[0].lower() + message[1:]}{shown}"


def _has(node: Any, part: Any) -> bool:
    return part in node if isinstance(node, dict) else isinstance(part, int) and part < len(node)


def _fields_at(cls: Any, location: tuple) -> list[str]:
    """Field names of the dataclass reached from ``cls`` along a validation location (union tags included)."""
    candidates = _dataclasses_in(cls)
    for part in location:
        step = []
        for candidate in candidates:
            hints = typing.get_type_hints(candidate, include_extras=False)
            if part in hints:
                step += _dataclasses_in(hints[part])
        if step:
            candidates = step
        else:
            tagged = [candidate for candidate in candidates if part in (candidate.__name__, _tag(candidate))]
            candidates = tagged or candidates
    return [field.name for candidate in candidates for field in dataclasses.fields(candidate)]


def _tag(cls: type) -> Any:
    kind = typing.get_type_hints(cls).get("kind")
    return next(iter(typing.get_args(kind)), None)


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in _dataclasses_in(argument)]
