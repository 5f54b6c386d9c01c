"""YAML to validated dataclasses, with dotted overrides and errors that name the key.

Reading the files, and their ``base:``, is :mod:`vilg.yaml_files`.

A class that can be configured declares a dataclass beside it with :func:`configclass`; this module knows none of them.
Unknown keys, wrong types and contradictions (raised as ``ValueError`` in ``__post_init__``) are refused with the dotted
path of the key and what would be right.
"""
import copy
import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses
import yaml

from vilg.errors import ConfigError
from vilg.yaml_files import DEEPEST, parse_value, read_chain, shown

T = TypeVar("T")
MOST_PROBLEMS = 8
"""That one message names."""

# What a field wants, by the kind of pydantic's complaint; the rest of its complaints read well as they are.
_WANTED = {
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "text (quote it)",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values", "model_attributes_type": "a mapping of keys to values",
}


@dataclass_transform(kw_only_default=True)
def configclass(cls: type[T]) -> type[T]:
    """Make ``cls`` a keyword-only dataclass whose fields are checked and coerced, and which refuses unknown keys."""
    takes = {name: {hint, *typing.get_args(hint)} for name, hint in typing.get_type_hints(cls).items()}
    numbers = [name for name, kinds in takes.items() if kinds & {int, float} and bool not in kinds]
    if numbers:
        cls.refuse_truth = pydantic.field_validator(*numbers, mode="before")(_refuse_truth)
    return pydantic.dataclasses.dataclass(
        kw_only=True, config=pydantic.ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)
    )(cls)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an interface needs to offer a field: its name and type, a line for users in English and in Chinese, and the
    range and step of a slider, or, for words to choose from, ``choices``."""

    name: str
    type: type
    meaning: str
    chinese: str
    slider: tuple[float, float, float] | None
    choices: tuple[str, ...] = ()


def setting(default: Any, meaning: str, chinese: str, slider: tuple[float, float, float] | None = None) -> Any:
    """A field of a config class that users set in tools and on the page as well: a :class:`Setting`. A field of words
    to choose from (Literal) has no slider."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "chinese": chinese, "slider": slider})


def settings_of(cls: type) -> list[Setting]:
    """The fields of ``cls`` made by :func:`setting`, in their order."""
    hints = typing.get_type_hints(cls)
    return [_setting(field, hints[field.name]) for field in dataclasses.fields(cls) if "meaning" in field.metadata]


def _setting(field: dataclasses.Field, hint: Any) -> Setting:
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return Setting(field.name, str if choices else hint, choices=choices, **field.metadata)


def _refuse_truth(cls: type, value: Any) -> Any:
    """YAML reads yes and on as true, which Python counts as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return ``values`` with every ``a.b=c`` of ``overrides`` put in; the value is read as YAML. The input is kept.

    Items of a list are named by their number (``data.sources.0.path=…``). Raises ConfigError for an override that is
    not of this form, and for a path through something that has no keys.
    """
    result = copy.deepcopy(values)
    for override in overrides:
        path, separator, text = override.partition("=")
        names = path.strip().split(".")
        if not separator or not all(names):
            raise ConfigError(f"--set {shown(override)[1:-1]}: write it as key.subkey=value")
        if len(names) > DEEPEST:
            raise ConfigError(f"--set {shown(path)}: no key lies that deep")
        try:
            value = parse_value(text)
        except ConfigError as error:
            raise ConfigError(f"--set {path}: {error}") from None
        node: Any = result
        for depth, name in enumerate(names[:-1]):
            key = _key(node, name, names[:depth], path)
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]
        node[_key(node, names[-1], names[:-1], path)] = value
    return result


def from_dict(cls: type[T], values: dict[str, Any], source: str = "config") -> T:
    """Build the config dataclass ``cls`` from plain values. Raises ConfigError that lists every offending key."""
    adapter = pydantic.TypeAdapter(cls)
    try:
        return adapter.validate_python(values)
    except ConfigError as error:  # of a part that its owner checks as it builds itself
        raise ConfigError(f"{source}: {error}") from None
    except pydantic.ValidationError as error:
        problems = error.errors()
        named = dict.fromkeys(_sentence(cls, values, problem) for problem in problems[:MOST_PROBLEMS])
        more = len(problems) - MOST_PROBLEMS
        raise ConfigError(f"{source}: " + "; ".join(named)
                          + (f"; and {more} problems more" if more > 0 else "")) from None


def load(path: str | Path, cls: type[T], overrides: list[str] = ()) -> T:
    """Read ``path`` and its ``base:``, put in the ``overrides`` (``a.b=c``) and build ``cls``. Raises ConfigError."""
    return from_dict(cls, apply_overrides(read_chain(path), list(overrides)), source=str(path))


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values that :func:`from_dict` takes back."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    """A config dataclass as YAML text, keys in the order of declaration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _key(node: Any, name: str, parents: list[str], path: str) -> str | int:
    """``name`` as a key of a mapping or a number in a list."""
    if isinstance(node, dict):
        return name
    where = ".".join(parents)
    if not isinstance(node, list):
        raise ConfigError(f"{where}: has no keys of its own, so {path} cannot be set")
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"{where}: is a list of {len(node)}; name an item by its number, from {where}.0")
    return int(name)


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
    dotted = shown(".".join(path))[1:-1] or "top level"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(cls, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{dotted}: unknown key ({hint})"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{dotted}: is required"
    if problem["type"].startswith("union_tag"):
        key, kinds = problem["ctx"]["discriminator"].strip("'"), _kinds_at(cls, location)
        given = problem["ctx"].get("tag")
        return f"{dotted}.{key}: must be one of {', '.join(kinds)}" + (f", got {shown(given)[1:-1]}" if given else "")
    given = problem.get("input")
    got = f", got {shown(given)}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    if problem["type"] in _WANTED:
        return f"{dotted}: must be {_WANTED[problem['type']]}{got}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{dotted}: {message[0].lower() + message[1:]}{got}"


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


def _kinds_at(cls: Any, location: tuple) -> list[str]:
    """The tags that a discriminated union at ``location`` takes."""
    candidates = _dataclasses_in(cls)
    for part in location:
        hints = [typing.get_type_hints(candidate) for candidate in candidates]
        candidates = [found for hint, candidate in zip(hints, candidates)
                      for found in _dataclasses_in(hint.get(part, candidate))]
    return [str(_tag(candidate)) for candidate in candidates]


def _tag(cls: type) -> Any:
    kind = typing.get_type_hints(cls).get("kind")
    return next(iter(typing.get_args(kind)), None)


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in _dataclasses_in(argument)]
