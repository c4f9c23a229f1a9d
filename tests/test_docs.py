"""Tests that documents name commands, files, functions and variables that exist."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from wire.version import VERSION

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
ENVIRONMENT = (ROOT / "docs" / "ENVIRONMENT.md").read_text()
SOURCES = ("cluster", "router", "workers", "wire", "planner", "kernels")


def _names(file: str) -> set[str]:
    """The names of a module's functions and classes, and of methods as `Class.method`."""
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


@pytest.mark.parametrize(("file", "name"), sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", ARCHITECTURE))))
def test_a_request_s_way_leads_through_functions_that_exist(file: str, name: str) -> None:
    assert name in _names(file)


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_files_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    modules = re.findall(
        rf"python3? -m\s+((?:{'|'.join((*SOURCES, 'benchmarks', 'training', 'tests'))})[\w.]*\w)", text
    )
    paths = [ROOT / module.replace(".", "/") for module in modules]
    assert not [path for path in paths if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists())]
    files = re.findall(rf"`((?:{'|'.join((*SOURCES, 'benchmarks', 'tests'))})/[\w/.]+\.\w+)[`:]", text)
    assert not [file for file in files if "NAME" not in file and not (ROOT / file).exists()]


def _read_variables() -> Iterator[str]:
    """Variables that the code reads by name, from its environment or a mapping that stands for it."""
    for package in SOURCES:
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            yield from re.findall(r"""environ(?:\.get\(|\[)["'](\w+)["']""", text)
            yield from re.findall(r"""envvar=["'](\w+)["']""", text)
            yield from re.findall(r"""["'](LING_\w+|RAY_(?:USE_)?TLS\w*|RAY_AUTH_TOKEN\w*)["']""", text)


def _set_variables() -> Iterator[str]:
    """Variables that `ling serve` sets for the processes of its cluster."""
    for file in ("launch.py", "daemons.py", "local.py", "gpus.py"):
        text = (ROOT / "cluster" / file).read_text()
        yield from re.findall(r"\b(RAY_\w+)=", text)
        yield from re.findall(r"""["'](RAY_\w+)["']""", text)


@pytest.mark.parametrize("variable", sorted({*_read_variables(), *_set_variables()}))
def test_every_variable_of_the_environment_is_on_its_page(variable: str) -> None:
    assert f"`{variable}`" in ENVIRONMENT


def test_the_page_of_variables_names_none_that_is_not_there() -> None:
    kinds = {".py", ".tpl", ".sh", ".yaml"}
    files = (f for package in (*SOURCES, "helm") for f in (ROOT / package).rglob("*.*") if f.suffix in kinds)
    code = "\n".join(f.read_text() for f in files)
    rows = re.findall(r"^\| `(\w+)`", ENVIRONMENT, re.MULTILINE)
    assert rows
    assert not [variable for variable in rows if variable not in code]


def test_the_version_is_the_changelog_s_and_the_chart_s() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert re.search(rf"^## {re.escape(VERSION)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert f"appVersion: {VERSION}\n" in (ROOT / "helm" / "Chart.yaml").read_text()


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_makefile_finds_a_python_and_no_other_version() -> None:
    find, version = str(ROOT / ".ci" / "python"), "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    here = _run(sys.executable, "-c", version)
    assert _run(_run(find, "2.0", here), "-c", version) == here
    assert not _run(find, "2.0")
