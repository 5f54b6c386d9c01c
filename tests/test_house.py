"""House rules that a reader of a single change overlooks."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vilg", "tools", "benchmarks", "model_zoo", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST_LINE = 120


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=names)
def test_lines_and_leftovers(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > LONGEST_LINE] == []
    leftover = re.compile(r"\b(TODO|FIXME|XXX)\b|breakpoint\(\)")
    assert [number for number, line in enumerate(lines, 1) if leftover.search(line) and path != Path(__file__)] == []


@pytest.mark.parametrize("path", FILES, ids=names)
def test_no_star_imports_bare_excepts_or_stubs(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"line {node.lineno}: import *")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
            found.append(f"line {node.lineno}: a stub")
    assert found == []
    assert path.name != "utils.py"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[len(ROOT.parts)] == "vilg"], ids=names)
def test_public_things_say_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = [] if ast.get_docstring(tree) or not tree.body else [names(path)]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            bare += [node.name] if not ast.get_docstring(node) else []
    assert bare == []


def test_every_config_opens_with_its_command():
    configs = sorted((ROOT / "configs").rglob("*.yaml"))
    assert [names(path) for path in configs if not path.read_text(encoding="utf-8").startswith("#")] == []
