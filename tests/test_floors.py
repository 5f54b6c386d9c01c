"""The floors of the house (docs/architecture.md): which folder may import which, read from the source without running
it, wherever in a file the import stands."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("vilg.errors", "vilg.machine", "vilg.progress"),
    ("vilg.cli", "vilg.yaml_files", "vilg.config", "vilg.weights", "vilg.metrics", "vilg.kernels"),
    ("vilg.nn",),
    ("vilg.tokenizers", "vilg.engine", "vilg.runtime"),
    ("vilg.losses", "vilg.data", "vilg.planning"),
    ("vilg.models",),
    ("vilg.release", "vilg.generation"),
    ("vilg.tasks", "vilg.app"),
    ("vilg.run", "hubconf", "model_zoo"),
    ("vilg.evaluation",),
    ("tools", "benchmarks"),
)
"""From the ground. Nothing imports what stands above it; on one floor nothing imports in a circle."""
# Downward, and still not allowed: a model knows nothing of how it is trained, fed or judged.
CLOSED = {
    "vilg.models": ("vilg.losses", "vilg.engine"),
    "vilg.generation": ("vilg.data", "vilg.engine"),
}
EXTRAS = {"paddlenlp", "paddlehub", "torch", "matplotlib", "gradio", "webdataset", "pycocoevalcap", "numba",
          "resvg_py", "daft", "ray", "faiss", "fastapi", "starlette", "uvicorn", "prometheus_client", "openai"}
EXTRAS_ALONE = {"vilg.kernels.jit.kernels",
                *(f"vilg.app.serving.{name}" for name in ("api", "drawing", "figures", "hub", "waiting", "words"))}
"""Modules that are imported only where their extra is installed, and that a function imports."""
AT_THE_TOP = 6
"""Files that ``vilg/`` itself may hold."""
LONGEST_FILE, LONGEST_FUNCTION = 330, 50
LONG_FILES = {
    "vilg/kernels/jit/kernels.py": "numba compiles anew by the file that a kernel stands in, so they share one",
}
LONG_FUNCTIONS: dict[str, str] = {}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    folders = [path for name in ("vilg", "tools", "benchmarks", "model_zoo") for path in (ROOT / name).rglob("*.py")]
    return sorted([*folders, *ROOT.glob("hubconf.py")])


MODULES = {module_name(path) for path in sources()}


def room(module: str) -> str:
    """The folder or file of the house that a module belongs to: its first two names."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "vilg" else parts[0]


def floor(module: str) -> int | None:
    return next((number for number, rooms in enumerate(FLOORS) if room(module) in rooms), None)


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module a file imports, wherever in the file it does, with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: name the module in full"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.append((deeper if deeper in MODULES else node.module, node.lineno))
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other, by repeatedly dropping what nothing in the rest is reached from."""
    reach = {node: set(nexts) for node, nexts in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    groups = {tuple(sorted(other for other in graph if other in reach[node] and node in reach[other]))
              for node in graph if node in reach[node]}
    return sorted(list(group) for group in groups)


def graph_of(name=lambda module: module) -> dict[str, set[str]]:
    graph = {name(module): set() for module in MODULES}
    for path in sources():
        own = name(module_name(path))
        graph[own] |= {name(target) for target, _ in imports(path) if target in MODULES and name(target) != own}
    return graph


def test_every_room_has_a_floor():
    rooms = {room(module) for module in MODULES} - {"vilg"}
    known = {name for rooms in FLOORS for name in rooms}
    assert rooms - known == set(), "give these rooms a floor"
    assert known - rooms == set(), "these rooms are gone"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_run_down(path):
    own = module_name(path)
    if own == "vilg":  # the door: it starts the runtime, and loads a model when asked to
        return
    wrong = []
    for name, line in imports(path):
        target = floor(name)
        if target is not None and target > floor(own):
            wrong.append(f"line {line}: {own} (floor {floor(own)}) imports {name} (floor {target})")
        if room(name) in CLOSED.get(room(own), ()):
            wrong.append(f"line {line}: {own} may not look into {name}")
    assert wrong == []


def test_no_folder_imports_in_a_circle():
    graph = graph_of(room)
    graph.pop("vilg")
    assert circles({name: targets - {"vilg"} for name, targets in graph.items()}) == []


def test_no_module_imports_in_a_circle():
    graph = graph_of()
    graph.pop("vilg")
    assert circles({name: targets - {"vilg"} for name, targets in graph.items()}) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_files_and_functions_are_short():
    long = []
    for path in (path for path in sources() if module_name(path).startswith("vilg")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST_FILE and name not in LONG_FILES:
            long.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION and f"{name}:{node.name}" not in LONG_FUNCTIONS:
                    long.append(f"{name}:{node.name}: {lines} lines")
    assert long == []


def test_the_top_holds_few_files():
    assert len(list((ROOT / "vilg").glob("*.py"))) <= AT_THE_TOP


def test_only_the_parallel_engine_knows_other_processes():
    users = [module_name(path) for path in sources()
             if any(name.startswith("paddle.distributed") for name, _ in imports(path))
             or any(isinstance(node, ast.Attribute) and ast.unparse(node).startswith("paddle.distributed")
                    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    assert [name for name in users if name.startswith("vilg.") and not name.startswith("vilg.engine.parallel")] == []


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
