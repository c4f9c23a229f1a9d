"""The image's recipe, read: no engine builds it here."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def _stages() -> dict[str, list[str]]:
    """Each stage's instructions; the part of the file before the first is left out."""
    stages: dict[str, list[str]] = {}
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "FROM":
            stages[words[3]] = []
        elif stages and words and not line.startswith("#"):
            stages[list(stages)[-1]].append(line.strip())
    return stages


def test_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_targets_run_as_nobody_special() -> None:
    stages = _stages()
    assert list(stages)[-2:] == ["cpu", "cuda"]
    for target in ("cpu", "cuda"):
        assert stages[target][-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK") and "/health" in line for line in stages["runtime"])


def test_torch_is_the_one_the_project_names() -> None:
    wanted = next(r for r in _requirements() if r.name == "torch")
    assert f'"{wanted}"' in " ".join(_stages()["build-cpu"])


def test_copied_is_what_the_context_lets_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {w for line in _stages()["source"] if line.startswith("COPY") for w in line.split()[1:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_packages_are_all_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {p.rstrip("*") for p in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {w for line in _stages()["source"] if line.startswith("COPY") for w in line.split()[1:-1]}
    assert packages <= copied


def _requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_each_build_installs_by_its_own_constraints(build: str) -> None:
    install = " ".join(_stages()[f"build-{build}"])
    assert re.findall(r"--constraint (\S+)", install) == ["constraints.txt", f"constraints-{build}.txt"]


def test_a_workflow_publishes_both_images_by_tag() -> None:
    path = ROOT / ".github/workflows/images.yml"
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.github-workflows", path]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout
    workflow = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True]["push"] == {"tags": ["v*"]}
    job = workflow["jobs"]["image"]
    assert job["strategy"]["matrix"]["target"] == list(_stages())[-2:]
    build = next(step["with"] for step in job["steps"] if step.get("uses", "").startswith("docker/build-push-action"))
    assert build["target"] == "${{ matrix.target }}"
    assert build["push"] == "${{ github.event_name == 'push' }}"


def test_services_of_one_box_are_closed() -> None:
    assert set(SERVICES) == {"ling", "ling-gpu"}
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["build"]["target"] in _stages()
    assert SERVICES["ling-gpu"]["profiles"] == ["gpu"]
