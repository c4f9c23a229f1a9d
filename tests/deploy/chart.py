"""Renders the chart with the real helm."""

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HELM = Path(sys.executable).with_name("helm")
CHART = Path(__file__).parents[2] / "helm"
NAMES = sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    manifests: tuple[Manifest, ...]

    def of(self, kind: str) -> list[Manifest]:
        return [m for m in self.manifests if m["kind"] == kind]

    def named(self, kind: str, name: str) -> Manifest:
        (found,) = [m for m in self.of(kind) if m["metadata"]["name"] == name]
        return found

    @property
    def service(self) -> Manifest:
        (found,) = self.of("RayService")
        spec: Manifest = found["spec"]
        return spec

    @property
    def cluster(self) -> Manifest:
        spec: Manifest = self.service["rayClusterConfig"]
        return spec

    @property
    def serve(self) -> Manifest:
        content: Manifest = yaml.safe_load(self.service["serveConfigV2"])
        return content

    @property
    def templates(self) -> dict[str, Manifest]:
        """The pod templates of the cluster's groups."""
        groups = {g["groupName"]: g["template"] for g in self.cluster["workerGroupSpecs"]}
        return {"head": self.cluster["headGroupSpec"]["template"]} | groups

    @property
    def pods(self) -> dict[str, Manifest]:
        """The specs of all pods, whoever starts them."""
        jobs = {j["metadata"]["name"]: j["spec"]["template"]["spec"] for j in self.of("Job")}
        jobs |= {d["metadata"]["name"]: d["spec"]["template"]["spec"] for d in self.of("DaemonSet")}
        bare = {p["metadata"]["name"]: p["spec"] for p in self.of("Pod")}
        return {name: t["spec"] for name, t in self.templates.items()} | jobs | bare


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HELM), *arguments], capture_output=True, text=True, timeout=60, check=False)


def render(*arguments: str, chart: Path = CHART) -> Rendered:
    done = helm("template", "ling", str(chart), "--namespace", "serving", *arguments)
    assert done.returncode == 0, done.stderr
    return Rendered(tuple(m for m in yaml.safe_load_all(done.stdout) if m))


@cache
def example(name: str) -> Rendered:
    return render("--values", str(CHART / "examples" / f"{name}.yaml"))


def refusal(*arguments: str) -> str:
    """Helm's error for these arguments, which it must refuse."""
    done = helm("template", "ling", str(CHART), "--values", str(CHART / "examples/1p1d-8gpu.yaml"), *arguments)
    assert done.returncode != 0, "helm rendered it"
    return done.stderr


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector selects a pod with these labels."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())
