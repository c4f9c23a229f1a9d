"""Tests that the versions which the images install fit each other and exist at PyPI."""

import tomllib
import urllib.request
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.scripts import ROOT, load

BUILDS = ("cpu", "cuda")
SCRIPT = load("constraints")


def pinned(*files: str) -> dict[str, str]:
    """The version of each package in some constraint files."""
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


@pytest.mark.parametrize("build", BUILDS)
def test_they_hold_a_fitting_version_of_every_dependency(build: str) -> None:
    versions = pinned("constraints.txt", f"constraints-{build}.txt")
    for requirement in requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing: make constraints"
        assert requirement.specifier.contains(version), f"{requirement}: {version}; make constraints"


@pytest.mark.parametrize("build", BUILDS)
def test_packages_of_a_build_are_pinned_in_its_own_file(build: str) -> None:
    common, own = pinned("constraints.txt"), pinned(f"constraints-{build}.txt")
    assert not set(common) & set(own)
    # A local version such as +cpu is on torch's own index alone.
    assert not [name for name, version in (common | own).items() if "+" in version]
    assert own["torch"] == pinned("constraints-cpu.txt")["torch"]


@pytest.mark.parametrize("build", BUILDS)
def test_the_build_resolves_against_pypi(build: str, tmp_path: Path) -> None:
    try:
        urllib.request.urlopen(f"{SCRIPT.PYPI}/uv/", timeout=10).close()
    except OSError as error:
        pytest.skip(f"PyPI does not answer here: {error}")
    files = ["constraints.txt", f"constraints-{build}.txt"]
    wanted = [str(r) for r in requirements()]
    if build == "cpu":
        # The CPU wheel comes from torch's own index and asks for no Triton, unlike PyPI's.
        wanted = [text for text in wanted if not text.startswith("torch==")]
    (tmp_path / "requirements.in").write_text("\n".join(wanted))
    found = SCRIPT.resolve(files, requirements=str(tmp_path / "requirements.in"))
    versions = pinned(*files)
    assert {line.split("==")[0]: line.split("==")[1] for line in found}.items() <= versions.items()
    if build == "cuda":
        assert {n for n in SCRIPT.names(found) if n.startswith(("nvidia-", "cuda-", "triton"))} == {
            n for n in pinned(f"constraints-{build}.txt") if n.startswith(("nvidia-", "cuda-", "triton"))
        }


def test_versions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """The resolver refuses contradictory versions, without the network."""
    (tmp_path / "requirements.in").write_text("torch==2.13.0")
    (tmp_path / "wrong.txt").write_text("torch==2.12.0\n")
    with pytest.raises(RuntimeError, match="torch"):
        SCRIPT.resolve([str(tmp_path / "wrong.txt")], "--offline", requirements=str(tmp_path / "requirements.in"))
