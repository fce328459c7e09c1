"""Who may import whom: no arrow up, no circle, no command that imports another; imports in functions count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"errors", "files", "progress", "settings", "distributed", "checkout", "pictures", "_torchvision"}
MAY_IMPORT = {
    "tome": {"kernels"},
    "compat": {"tome", "kernels"},
    "methods": {"tome", "kernels"},
    "measure": {"methods", "tome", "kernels"},
    "data": set(),
    "corpus": {"data"},
    "report": {"data"},
    "model": {"tome", "corpus", "kernels"},
    "inference": {"report", "model", "data", "corpus", "tome", "kernels"},
    "training": {"inference", "model", "data", "corpus"},
    "paper": {"training", "inference", "data"},
}
"""What a folder may import besides itself and the leaves, in reading order: from the ground up."""

COMMANDS = {"corpus.__main__", "data.__main__"} | {
    path.stem for path in (ROOT / "alt_fast").glob("*.py") if path.stem not in {*LEAVES, "__init__", "__main__", "cli"}
}


def modules() -> dict[str, Path]:
    """Every module of the package, by its name below alt_fast."""
    found = {}
    for path in sorted((ROOT / "alt_fast").rglob("*.py")):
        parts = path.relative_to(ROOT / "alt_fast").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports of ours, below alt_fast; "kernels" for any of alt_fast_kernels."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "alt_fast_kernels":
                yield "kernels"
            elif package == "alt_fast":
                while rest and rest not in MODULES:
                    rest = rest.rpartition(".")[0]
                yield rest


def room(module: str) -> str:
    return module if module in COMMANDS else module.partition(".")[0]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in COMMANDS])
def test_nothing_imports_upward(module: str) -> None:
    own = room(module)
    found = {room(name) for name in imports(MODULES[module]) if name} - {own}
    if own in MAY_IMPORT:
        assert found <= MAY_IMPORT[own] | LEAVES
    elif own in LEAVES:
        assert found <= LEAVES
    else:  # the package itself, its door, and what commands share
        assert found <= {"", "__main__", "cli", "corpus", "data", "inference"} | LEAVES


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_imports_another(command: str) -> None:
    found = {room(name) for name in imports(MODULES[command])} - {command}
    assert not found & COMMANDS
    assert "kernels" not in found


def test_the_table_reads_from_the_ground_up() -> None:
    order = ["kernels", *MAY_IMPORT]
    for folder, below in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(folder) for other in below)
    folders = {path.name for path in (ROOT / "alt_fast").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(MAY_IMPORT)


def test_no_file_is_in_a_circle() -> None:
    above = {name: {other for other in imports(path) if other and other != name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done and name in above:
            for other in above[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in above:
        visit(name, ())


def test_kernels_import_nothing_of_ours() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert set(imports(path)) <= {"kernels"}, path
