"""Tests the import law of docs/ARCHITECTURE.md: which package may import which."""

import ast
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "wire": set(),
    "router": {"wire"},
    "workers": {"wire", "kernels"},
    # What a checkpoint's config and files say, and (simulations) the scheduler's own decisions.
    "planner": {"workers"},
    "cluster": {"router", "workers", "wire", "planner", "kernels"},
    "training": {"cluster", "router", "workers", "wire", "kernels"},
}
ROOMS = {*MAY_IMPORT, "benchmarks", "tests"}


def _modules(top: str) -> Iterator[tuple[str, Path]]:
    for file in sorted((ROOT / top).rglob("*.py")):
        yield ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), file


def _imports(module: str, file: Path, others: Set[str] = frozenset()) -> set[str]:
    """Every module of ours, or of `others`, that `file` imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{module} imports relatively"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                is_module = (ROOT / full.replace(".", "/")).with_suffix(".py").exists()
                found.add(full if is_module else node.module)
    return {name for name in found if name.split(".")[0] in ROOMS | others}


@pytest.mark.parametrize("top", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(top: str) -> None:
    wrong = {
        f"{module} imports {name}"
        for module, file in _modules(top)
        for name in _imports(module, file)
        if name.split(".")[0] not in MAY_IMPORT[top] | {top}
    }
    assert not wrong


@pytest.mark.parametrize("top", ["wire", "router"])
def test_a_package_s_tests_need_what_it_needs(top: str) -> None:
    """Tests of router and engine together are in tests/integration, so that the router's need no torch."""
    allowed = {top, *MAY_IMPORT[top]}
    wrong = {
        f"{module} imports {name}"
        for module, file in _modules(f"tests/{top}")
        for name in _imports(module, file, {"torch"})
        if name.split(".")[0] not in allowed and name.split(".")[:2] not in (["tests", "certificates"], ["tests", top])
    }
    assert not wrong


def _room(module: str) -> str:
    """The folder of a module, among which circles are looked for."""
    path = ROOT / module.replace(".", "/")
    return module if path.is_dir() else module.rpartition(".")[0]


@pytest.mark.parametrize("top", [*MAY_IMPORT, "benchmarks"])
def test_no_folders_import_each_other_in_a_circle(top: str) -> None:
    graph: dict[str, set[str]] = {}
    for module, file in _modules(top):
        here = _room(module)
        for name in _imports(module, file):
            there = _room(name)
            # A package's own root names what its folders share: config, errors, the application that joins them.
            if there != here and top not in (here, there) and there.split(".")[0] == top:
                graph.setdefault(here, set()).add(there)
    assert _circle(graph) is None


@pytest.mark.parametrize("top", [*MAY_IMPORT, "benchmarks"])
def test_no_modules_import_each_other_in_a_circle(top: str) -> None:
    names = dict(_modules(top))
    graph = {module: {n for n in _imports(module, file) if n in names} for module, file in names.items()}
    assert _circle(graph) is None


def _circle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str] | None:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        for after in sorted(graph.get(node, ())):
            if found := walk(after, [*way, node]):
                return found
        done.add(node)
        return None

    for node in sorted(graph):
        if found := walk(node, []):
            return found
    return None
