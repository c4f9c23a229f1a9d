"""Tests the modules' variables with Terraform, where it is installed. That needs no provider."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import CHART, render
from tests.deploy.terraform import EXAMPLES, ROOT, TERRAFORM, Body, module, name_of, needs_terraform

pytestmark = needs_terraform


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TERRAFORM), f"-chdir={folder}", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def given(folder: Path, variables: Body) -> None:
    (folder / "terraform.tfvars.json").write_text(json.dumps(variables))


@pytest.mark.parametrize("folder", EXAMPLES, ids=name_of)
def test_the_chart_accepts_the_values_that_terraform_makes_of_an_example(folder: Path, tmp_path: Path) -> None:
    ling = ROOT / "modules/ling"
    call = module(folder).of("module")["ling"]
    variables = {name: call[name] for name in ("gpu", "prefill", "decode", "values")}
    assert call["model"] == "${var.model}"
    variables["model"] = module(folder).of("variable")["model"]["default"]
    storage = {"provisioner": "example.com/nfs", "parameters": {}}
    variables |= {"image": {"repository": "registry.example.com:5000/ling"}, "disk_storage": storage}
    variables["model_storage"] = storage | {"size": "1Ti"}
    for name in ("variables.tf", "values.tf"):
        shutil.copy(ling / name, tmp_path)
    (tmp_path / "made.tf").write_text('output "made" {\n  value = [local.values, var.values]\n}\n')
    given(tmp_path, variables)
    done = run(tmp_path, "apply", "-auto-approve", "-no-color", "-input=false")
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "terraform.tfstate").read_text())["outputs"]["made"]["value"]
    files = []
    for i, values in enumerate(made):
        files += ["--values", str(tmp_path / f"{i}.json")]
        (tmp_path / f"{i}.json").write_text(json.dumps(values))
    # helm itself checks against values.schema.json, defaults included.
    rendered = render(*files)
    groups = {g["groupName"]: g["replicas"] for g in rendered.cluster["workerGroupSpecs"]}
    assert groups == {"router": 2, "prefill": 1, "decode": 1}
    assert rendered.cluster["authOptions"] == {"mode": "token", "secretName": "ling-ray-token"}
    volumes = {v["name"]: v for v in rendered.pods["decode"]["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": "models"}
    args = rendered.serve["applications"][0]["args"]
    assert (args["model"], args["model_cache"]) == ("hf://inclusionAI/Ling-2.6-flash-FP8", "/cache")
    assert len(rendered.of("PodMonitor")) == 1


# Values by variable, each with what the refusal has to say of it.
REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    "ling": {
        "image": ({"repository": "ling:1"}, "image.repository"),
        "model": ({"path": "/models", "format": "fp9"}, "model.path", "model.format"),
        "model_storage": ({"provisioner": "x", "parameters": {}, "size": "300"}, "model_storage.size"),
        "prefill": ({"replicas": -1, "tp": 3, "max_replicas": 2}, "prefill.replicas", "prefill.tp", "prefill.max_rep"),
        "routers": (0.5, "routers"),
        "namespace": ("Ling", "namespace"),
        "secrets_revision": (0, "secrets_revision"),
        "monitoring": ({"size": "much"}, "monitoring"),
    },
    "ling pools": {
        "image": ({"repository": "ling"},),
        "model": ({"path": "ling", "shard": True},),
        "model_storage": ({"provisioner": "x", "parameters": {}, "size": "300Gi"},),
        "prefill": ({"replicas": 1, "tp": 2},),
        "decode": ({"replicas": 2, "tp": 4, "max_replicas": 1}, "decode.tp: differs", "decode.max_replicas"),
    },
    "eks": {
        "name": ("-", "name"),
        "kubernetes_version": ("1.34.1", "kubernetes_version"),
        "cidr": ("10.0.0.0/20", "cidr"),
        "zones": (["us-west-2a"], "zones"),
        "api_cidrs": (["0.0.0.0/0"], "api_cidrs: a network of fewer"),
        "admin_roles": (["me"], "admin_roles"),
        "cpu_pool": ({"min_nodes": 3, "max_nodes": 2}, "cpu_pool"),
    },
    # What looks at other variables is looked at once those are right.
    "eks pools": {
        "zones": (["us-west-2a", "us-west-2b"],),
        "api_cidrs": ([],),
        "gpu_pools": (
            {
                "cpu": {
                    "instance_type": "p5.48xlarge",
                    "zone": "us-west-2c",
                    "min_nodes": 2,
                    "max_nodes": 1,
                    "capacity_type": "CAPACITY_BLOCK",
                    "efa_interfaces": 33,
                },
                "b": {"instance_type": "p5.48xlarge", "min_nodes": 0, "max_nodes": 1, "capacity_type": "spot"},
            },
            "at least one, by a name",
            "zone must be",
            "at least 1 as max_nodes",
            "capacity_type is",
            "needs capacity_reservation_id",
            "efa_interfaces is",
        ),
    },
    "gke": {
        "project": ("My project", "project"),
        "name": ("-", "name"),
        "region": ("us-central1-a", "region"),
        "release_channel": ("FAST", "release_channel"),
        "cidrs": ({"control_plane": "172.16.0.0/24"}, "cidrs"),
        "api_cidrs": (["office", "0.0.0.0/0"], "api_cidrs: give IPv4", "api_cidrs: a network of fewer"),
        "kms_key": ("mine", "kms_key"),
        "cpu_pool": ({"min_nodes": 0}, "cpu_pool"),
    },
    "gke pools": {
        "project": ("my-project",),
        "region": ("us-central1",),
        "zone": ("europe-west4-a", "zone: give one of the region"),
        "api_cidrs": ([],),
        "gpu_pools": (
            {
                "cpu": {
                    "machine_type": "a3-highgpu-8g",
                    "accelerator": "nvidia-h100-80gb",
                    "accelerators": 3,
                    "zone": "elsewhere",
                    "min_nodes": 0,
                    "max_nodes": 0,
                    "spot": True,
                    "reservation": "ours",
                }
            },
            "at least one, by a name",
            "zone must be",
            "at least 1 as max_nodes",
            "accelerators is",
            "holds no spot",
        ),
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_variables_that_can_not_work_are_refused_by_name(case: str, tmp_path: Path) -> None:
    name = case.split(maxsplit=1)[0]
    shutil.copy(ROOT / "modules" / name / "variables.tf", tmp_path)
    others: dict[str, Body] = {
        "ling": {"disk_storage": {"provisioner": "x", "parameters": {}}, "gpu": {"type": "other"}},
        "eks": {"gpu_pools": {}},
        "gke": {"gpu_pools": {}, "zone": ""},
    }
    given(tmp_path, others[name] | {key: value for key, (value, *_) in REFUSED[case].items()})
    done = run(tmp_path, "plan", "-no-color", "-input=false")
    assert done.returncode != 0
    said = re.sub(r"[\s│]+", " ", done.stderr)
    for _, *messages in REFUSED[case].values():
        for message in messages:
            assert message in said, message


def test_the_formats_of_weights_are_the_chart_s() -> None:
    text = (ROOT / "modules/ling/variables.tf").read_text()
    (listed,) = re.findall(r"contains\((\[[^\]]*\]), var\.model\.format\)", text)
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(json.loads(listed)) == set(schema["properties"]["model"]["properties"]["format"]["enum"])
