"""Tests the Dockerfile by reading it; no image is built."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.deploy.chart import example

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def _stages() -> dict[str, list[str]]:
    """The instructions of each stage, without those before the first stage."""
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


def test_image_targets_run_as_an_unprivileged_user() -> None:
    stages = _stages()
    assert list(stages)[-2:] == ["cpu", "cuda"]
    for target in ("cpu", "cuda"):
        assert stages[target][-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK") and "/health" in line for line in stages["runtime"])


def test_torch_is_the_one_the_project_names() -> None:
    wanted = next(r for r in _requirements() if r.name == "torch")
    assert f'"{wanted}"' in " ".join(_stages()["build-cpu"])


def test_every_copied_file_is_in_the_build_context() -> None:
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


def test_compose_s_own_schema_takes_the_file() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout


def test_compiled_kernels_outlive_a_run() -> None:
    """They are in a volume that begins as a copy of the image's folder, which the image's user may write."""
    gpu = SERVICES["ling-gpu"]
    folder = Path(gpu["environment"]["TRITON_CACHE_DIR"]).parent
    assert f"kernels:{folder}" in gpu["volumes"]
    assert f"RUN install --directory --owner=ling --group=ling {folder}" in _stages()["runtime"]


def test_services_of_one_box_are_closed() -> None:
    assert set(SERVICES) == {"ling", "prometheus", "grafana", "ling-gpu", "prometheus-gpu", "grafana-gpu"}
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service["cap_drop"] == ["ALL"]
        if name.startswith("ling"):
            assert service["read_only"] is True
            assert service["build"]["target"] in _stages()
            assert any("metrics-port=8001" in word for word in service["command"])
        else:
            assert service["network_mode"] == "service:ling" + ("-gpu" if name.endswith("-gpu") else "")
        assert service.get("profiles") == (["gpu"] if name.endswith("-gpu") else None)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), source


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH: apt-get install prometheus")
def test_prometheus_of_one_machine_keeps_the_metrics_of_the_boards(tmp_path: Path) -> None:
    settings = (ROOT / "cluster/dashboards/compose/prometheus.yaml").read_text()
    local = settings.replace("/etc/ling/alerts.yaml", str(ROOT / "dashboards/alerts.yaml"))
    (tmp_path / "prometheus.yaml").write_text(local)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (scrape,) = yaml.safe_load(settings)["scrape_configs"]
    (keep,) = scrape["metric_relabel_configs"]
    read = set(re.findall(r"\bray_\w+", " ".join(path.read_text() for path in (ROOT / "dashboards").iterdir())))
    assert read
    assert [name for name in read if not re.fullmatch(keep["regex"], name)] == []
    (monitor,) = example("1p1d-8gpu").of("PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["metricRelabelings"][0]["regex"] == keep["regex"]
