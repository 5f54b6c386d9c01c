"""Every field of every config is read somewhere: a setting that nothing reads is a bug."""
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def trees() -> list[ast.Module]:
    files = [path for name in ("vilg", "tools", "benchmarks") for path in sorted((ROOT / name).rglob("*.py"))]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in files]


def is_config(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        getattr(mark, "id", getattr(mark, "attr", None)) == "configclass" for mark in node.decorator_list)


def declared(parsed: list[ast.Module]) -> list[tuple[str, str]]:
    configs = [node for tree in parsed for node in ast.walk(tree) if is_config(node)]
    return [(node.name, line.target.id) for node in configs for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]


class Reads(ast.NodeVisitor):
    """Names of attributes that are read, outside the checks a config makes of itself."""

    def __init__(self):
        self.names: set[str] = set()
        self.in_config = False

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self.in_config = self.in_config, is_config(node)
        self.generic_visit(node)
        self.in_config = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not (self.in_config and node.name == "__post_init__"):
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.names.add(node.attr)
        self.generic_visit(node)


def dead(parsed: list[ast.Module]) -> list[str]:
    reads = Reads()
    for tree in parsed:
        reads.visit(tree)
    # ``kind`` chooses the class of a union and need not be read again.
    return [f"{owner}.{name}" for owner, name in declared(parsed) if name not in reads.names and name != "kind"]


def test_every_field_of_every_config_is_read():
    parsed = trees()
    assert declared(parsed), "no config class was found: the test looks in the wrong place"
    assert dead(parsed) == []


def test_the_test_finds_a_dead_field():
    source = """
@configclass
class Example:
    kind: str = "example"
    used: int = 1
    only_checked: int = 2
    only_written: int = 3

    def __post_init__(self):
        if self.only_checked < 0:
            raise ValueError

    def twice(self):
        return 2 * self.used

def write(config):
    config.only_written = 4
"""
    assert dead([ast.parse(source)]) == ["Example.only_checked", "Example.only_written"]
