"""The floors of the house: which module may import which, read from the source without running it."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The longest name that fits decides. Tools, hub entries and released modules stand above the library.
FLOORS = {
    "vilg": 6, "vilg.errors": 0, "vilg.cli": 0, "vilg.config": 0, "vilg.runtime": 0, "vilg.weights": 0, "vilg.nn": 0,
    "vilg.tokenizers": 1, "vilg.tokenizers.wordpiece": 0, "vilg.tokenizers.vocabulary": 0,
    "vilg.losses": 1, "vilg.data": 1, "vilg.evaluation": 1, "vilg.engine": 1,
    "vilg.models": 2, "vilg.generation": 3, "vilg.tasks": 4, "vilg.build": 5, "vilg.pipeline": 6,
    "vilg.demo": 6, "vilg.gallery": 6, "vilg.judge": 6, "vilg.serving": 6, "vilg.table7": 6,
    "vilg.web": 6,
    "tools": 7, "hubconf": 7, "model_zoo": 7, "benchmarks": 7,
}
# Downward, and still not allowed: a model knows nothing of how it is trained, fed or judged.
CLOSED = {
    "vilg.models": ("vilg.losses", "vilg.data", "vilg.evaluation", "vilg.engine"),
    "vilg.generation": ("vilg.data", "vilg.evaluation", "vilg.engine"),
}
EXTRAS = {"paddlenlp", "paddlehub", "torch", "matplotlib", "gradio", "webdataset", "pycocoevalcap", "numba"}
EXTRAS_ALONE = {"vilg.nn.loops.kernels"}
"""Modules that are imported only where their extra is installed, and that a function imports."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    folders = [path for name in ("vilg", "tools", "benchmarks", "model_zoo") for path in (ROOT / name).rglob("*.py")]
    return sorted([*folders, *ROOT.glob("hubconf.py")])


def floor(module: str) -> int | None:
    names = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return FLOORS[max(names, key=len)] if names else None


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module a file imports, wherever in the file it does, with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: name the module in full"
            for alias in node.names:
                submodule = ROOT / (node.module.replace(".", "/") + "/" + alias.name)
                deeper = submodule.is_dir() or submodule.with_suffix(".py").is_file()
                found.append((f"{node.module}.{alias.name}" if deeper else node.module, node.lineno))
    return found


def test_every_module_has_a_floor():
    assert [str(path) for path in sources() if floor(module_name(path)) is None] == []
    known = set(FLOORS)
    rooms = {".".join(module_name(path).split(".")[:2]) for path in (ROOT / "vilg").rglob("*.py")}
    assert rooms - known == set(), "give these rooms a floor of their own"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_run_down(path):
    own = module_name(path)
    wrong = []
    for name, line in imports(path):
        target = floor(name)
        if target is None:
            continue
        if target > floor(own):
            wrong.append(f"line {line}: {own} (floor {floor(own)}) imports {name} (floor {target})")
        closed = CLOSED.get(".".join(own.split(".")[:2]), ())
        if any(name == room or name.startswith(room + ".") for room in closed):
            wrong.append(f"line {line}: {own} may not look into {name}")
    assert wrong == []


def test_only_the_engine_knows_other_processes():
    users = [module_name(path) for path in sources()
             if any(name.startswith("paddle.distributed") for name, _ in imports(path))
             or any(isinstance(node, ast.Attribute) and ast.unparse(node).startswith("paddle.distributed")
                    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    assert [name for name in users if name.startswith("vilg.") and name != "vilg.engine.distributed"] == []


def test_extras_are_imported_where_they_are_used_and_not_above():
    early = []
    for path in sources():
        if not module_name(path).startswith("vilg") or module_name(path) in EXTRAS_ALONE:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                if isinstance(node, ast.ImportFrom) else [])
            early += [f"{module_name(path)}: {name}" for name in names
                      if name.split(".")[0] in EXTRAS or name in EXTRAS_ALONE]
    assert early == []


def test_importing_vilg_loads_no_extra():
    code = "import sys, vilg; print(sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(result.stdout.strip().splitlines()[-1])) & EXTRAS == set()
