"""What reads uploads never unpickles, evaluates or compiles; torch.export.load is for our own artifact alone."""

import ast
from pathlib import Path

import pytest

WORKERS = Path(__file__).parents[3] / "workers"
READERS = sorted([*WORKERS.glob("formats/pt2*.py"), WORKERS / "formats/operators.py", WORKERS / "formats/symbols.py"])
# It opens the artifact that this very job has written, as its user will.
OPENS_OUR_OWN = {WORKERS / "formats/verify.py"}
FORBIDDEN_MODULES = {
    "pickle", "marshal", "shelve", "dill", "cloudpickle", "sympy", "importlib", "subprocess", "socket", "ctypes",
    "torch.export", "torch.jit", "torch.package", "torch._export", "torch.serialization", "zipfile", "tempfile",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open", "system", "popen", "loads", "sympify"}


def dotted(node: ast.AST) -> str:
    """`torch.export.load` for that chain of attributes."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_readers_are_found() -> None:
    assert len(READERS) >= 7
    assert all(path.exists() for path in [*READERS, *OPENS_OUR_OWN])


@pytest.mark.parametrize("path", READERS, ids=lambda path: path.name)
def test_the_reader_imports_and_calls_nothing_that_runs_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imported(tree) & FORBIDDEN_MODULES
    calls = [dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {
        call
        for call in calls
        if call in FORBIDDEN_CALLS or call.rpartition(".")[2] in FORBIDDEN_CALLS - {"open", "compile"}
    }
    assert not {call for call in calls if call.startswith("torch.") and call.endswith(".load")}


def test_nothing_opens_an_archive_with_torchs_own_loader() -> None:
    for path in WORKERS.rglob("*.py"):
        if path in OPENS_OUR_OWN:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | imported(tree)
        assert not {name for name in names if name.endswith(("export.load", "export.pt2_archive", "jit.load"))}, path
