"""The Terraform modules: parsed, what they refer to resolved, what they set on the chart tried on it.

Providers' own schemas are not at hand, so `terraform validate` isn't run; what needs none is done by terraform itself,
where it is installed.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from tests.deploy.chart import CHART, render

ROOT = CHART.parent / "terraform"
FOLDERS = sorted({path.parent for path in ROOT.rglob("*.tf")})
CALLS = [folder for folder in FOLDERS if folder.parent.name == "examples"]
TERRAFORM = shutil.which("terraform")
needs_terraform = pytest.mark.skipif(TERRAFORM is None, reason="terraform is not installed")

Body = dict[str, Any]
_HEADS = r"var|local|module|data|ephemeral|(?:aws|google|helm|kubernetes|random)_\w+"
_REFERENCE = re.compile(rf"(?<![\w.$/\"-])({_HEADS})((?:\.[A-Za-z_][\w-]*|\[[^]\[]*\])+)")


@dataclass(frozen=True)
class Module:
    """A folder of .tf files. blocks: (kind, labels, body), all of them, in no order that matters."""

    folder: Path
    blocks: tuple[tuple[str, tuple[str, ...], Body], ...]

    def of(self, kind: str) -> dict[str, Body]:
        """Bodies by their labels with dots between: aws_vpc.this for a resource."""
        return {".".join(labels): body for name, labels, body in self.blocks if name == kind}

    @property
    def local_names(self) -> set[str]:
        return {key for kind, _, body in self.blocks if kind == "locals" for key in body}

    @property
    def references(self) -> set[tuple[str, ...]]:
        """Every traversal in an expression: (var, name), (module, name, output), (aws_vpc, this) and so on."""
        found = set()
        for _, _, body in self.blocks:
            for text in texts(body):
                for head, tail in _REFERENCE.findall(text):
                    found.add((head, *re.findall(r"\.([A-Za-z_][\w-]*)", tail)))
        return found


def plain(value: Any) -> Any:
    """As hcl2 gives it, without the quotes of strings and its own marks."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items() if k not in {"__is_block__", "__comments__"}}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        # Prose is no expression, and neither is the text around what a string interpolates.
        inner = re.findall(r"\$\{(.*?)\}(?=[^}]|$)", value) if not value.startswith("${") else [value[2:]]
        yield from inner


def unfold(kind: str, depth: int, labels: tuple[str, ...], body: Body) -> Iterator[tuple[str, tuple[str, ...], Body]]:
    if depth == 0:
        yield kind, labels, body
        return
    for label, inner in body.items():
        yield from unfold(kind, depth - 1, (*labels, label), inner)


@cache
def module(folder: Path) -> Module:
    labels = {"resource": 2, "data": 2, "ephemeral": 2, "variable": 1, "output": 1, "module": 1, "provider": 1}
    blocks = []
    for path in sorted(folder.glob("*.tf")):
        for kind, bodies in plain(hcl2.loads(path.read_text())).items():
            for body in bodies:
                blocks += unfold(kind, labels.get(kind, 0), (), body)
    return Module(folder, tuple(blocks))


def called(folder: Path, call: Body) -> Module:
    return module((folder / call["source"]).resolve())


def name_of(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"


each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
each_example = pytest.mark.parametrize("folder", CALLS, ids=name_of)


def test_both_clouds_have_a_module_and_an_example() -> None:
    assert [name_of(f) for f in FOLDERS] == ["examples-eks", "examples-gke", "modules-eks", "modules-gke", "modules-ling"]


@needs_terraform
def test_files_are_formatted() -> None:
    done = subprocess.run(
        [str(TERRAFORM), "fmt", "-check", "-diff", "-recursive", str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@each_folder
def test_variables_are_described_typed_and_used(folder: Path) -> None:
    found = module(folder)
    for name, body in found.of("variable").items():
        assert body["description"].endswith("."), name
        assert "type" in body, name
        assert all(v["error_message"].startswith(f"{name}") for v in body.get("validation", [])), name
    # A variable's own validation is no use of it.
    outside = Module(folder, tuple(b for b in found.blocks if b[0] != "variable"))
    assert {name for head, name, *_ in outside.references if head == "var"} == set(found.of("variable"))
    assert all(body["description"].endswith(".") for body in found.of("output").values())


@each_folder
def test_references_resolve(folder: Path) -> None:
    found = module(folder)
    calls = found.of("module")
    declared = {
        "local": found.local_names,
        "data": set(found.of("data")),
        "ephemeral": set(found.of("ephemeral")),
        "": set(found.of("resource")),
    }
    assert found.references
    for head, *rest in found.references:
        if head == "var":
            assert rest[0] in found.of("variable"), (head, *rest)
        elif head == "local":
            assert rest[0] in declared["local"], (head, *rest)
        elif head == "module":
            assert rest[1] in called(folder, calls[rest[0]]).of("output"), (head, *rest)
        elif head in ("data", "ephemeral"):
            assert ".".join(rest[:2]) in declared[head], (head, *rest)
        else:
            assert f"{head}.{rest[0]}" in declared[""], (head, *rest)
    used = {name for head, name, *_ in found.references if head == "local"}
    assert used == declared["local"]


@each_folder
def test_providers_are_required_where_they_are_used(folder: Path) -> None:
    found = module(folder)
    (terraform,) = [body for kind, _, body in found.blocks if kind == "terraform"]
    (required,) = terraform["required_providers"]
    types = {labels[0] for kind, labels, _ in found.blocks if kind in ("resource", "data", "ephemeral")}
    used = {name.split("_")[0] for name in types} | set(found.of("provider"))
    assert set(required) == used
    assert all(body["version"].startswith("~> ") for body in required.values())


@each_example
def test_modules_are_called_as_they_ask(folder: Path) -> None:
    calls = module(folder).of("module")
    assert set(calls) == {folder.name, "ling"}
    for name, call in calls.items():
        variables = called(folder, call).of("variable")
        given = set(call) - {"source"}
        assert given <= set(variables), name
        assert {v for v, body in variables.items() if "default" not in body} <= given, name


def test_secrets_are_in_no_state_and_no_output() -> None:
    for folder in FOLDERS:
        found = module(folder)
        assert not any(name.startswith("random_") for name in found.of("resource"))
        for name, body in found.of("resource").items():
            assert not (name.startswith("kubernetes_secret") and {"data", "binary_data"} & set(body)), name
        for name, body in found.of("output").items():
            assert not any("ephemeral." in text or "sha256(" in text for text in texts(body)), name
    ling = module(ROOT / "modules/ling").of("resource")
    assert sum(name.startswith("kubernetes_secret") and "data_wo" in body for name, body in ling.items()) == 3


def test_nothing_is_open_to_the_internet() -> None:
    for folder in FOLDERS:
        for kind, labels, body in module(folder).blocks:
            # The nodes' way out.
            if labels[:1] == ("aws_route",):
                continue
            assert not re.search(r"0\.0\.0\.0/0|::/0", json.dumps(body)), (kind, labels)
            if labels and re.fullmatch("aws_vpc_security_group_(in|e)gress_rule", labels[0]):
                assert "referenced_security_group_id" in body
                assert not any(key.startswith("cidr") for key in body)
    eks, gke = (module(ROOT / "modules" / name) for name in ("eks", "gke"))
    for cloud in (eks, gke):
        assert "default" not in cloud.of("variable")["api_cidrs"]
    (access,) = eks.of("resource")["aws_eks_cluster.this"]["vpc_config"]
    assert access["endpoint_public_access"] == "${length(var.api_cidrs) > 0}"
    assert "var.api_cidrs" in access["public_access_cidrs"]
    (access,) = gke.of("resource")["google_container_cluster.this"]["private_cluster_config"]
    assert access["enable_private_nodes"] is True
    assert access["enable_private_endpoint"] == "${length(var.api_cidrs) == 0}"


def test_nodes_have_encrypted_disks_and_guard_their_metadata() -> None:
    eks, gke = (module(ROOT / "modules" / name).of("resource") for name in ("eks", "gke"))
    templates = [body for name, body in eks.items() if name.startswith("aws_launch_template.")]
    assert len(templates) == 2
    for body in templates:
        assert body["metadata_options"][0]["http_tokens"] == "required"
        assert body["metadata_options"][0]["http_put_response_hop_limit"] == 1
        assert body["block_device_mappings"][0]["ebs"][0]["encrypted"] is True
    assert eks["aws_efs_file_system.models"]["encrypted"] is True
    pools = [body["node_config"][0] for name, body in gke.items() if name.startswith("google_container_node_pool.")]
    assert len(pools) == 2
    for node in pools:
        assert node["workload_metadata_config"] == [{"mode": "GKE_METADATA"}]
        assert node["shielded_instance_config"][0]["enable_secure_boot"] is True
        assert node["gvnic"] == [{"enabled": True}]


def unknown(values: Any, known: Any, path: str = "") -> list[str]:
    """Keys of values that known lacks, by their path. An empty mapping in known takes any key."""
    if not isinstance(values, dict) or not isinstance(known, dict) or not known:
        return []
    missing = [f"{path}{key}" for key in values if key not in known]
    return missing + [
        bad for key in values.keys() & known.keys() for bad in unknown(values[key], known[key], f"{path}{key}.")
    ]


def test_what_is_set_on_the_chart_is_in_its_values() -> None:
    ling = module(ROOT / "modules/ling")
    (values,) = [body["values"] for kind, _, body in ling.blocks if kind == "locals" and "values" in body]
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {"prefill", "decode", "auth", "apiKeys"} <= set(values)
    assert unknown(values, known) == []
    assert unknown({"prefill": {"replcas": 1}}, known) == ["prefill.replcas"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TERRAFORM), f"-chdir={folder}", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def given(folder: Path, variables: Body) -> None:
    (folder / "terraform.tfvars.json").write_text(json.dumps(variables))


@needs_terraform
@each_example
def test_the_chart_takes_what_terraform_makes_of_an_example(folder: Path, tmp_path: Path) -> None:
    ling = ROOT / "modules/ling"
    call = module(folder).of("module")["ling"]
    variables = {name: call[name] for name in ("model", "gpu", "prefill", "decode", "values")}
    storage = {"provisioner": "example.com/nfs", "parameters": {}}
    variables |= {"image": {"repository": "registry.example.com:5000/ling"}, "disk_storage": storage}
    variables["model_storage"] = storage | {"size": "1Ti"}
    for name in ("variables.tf", "values.tf"):
        shutil.copy(ling / name, tmp_path)
    (tmp_path / "made.tf").write_text('output "made" {\n  value = [local.values, var.values]\n}\n')
    given(tmp_path, variables)
    done = run(tmp_path, "apply", "-auto-approve", "-no-color", "-input=false")
    assert done.returncode == 0, done.stderr
    made = json.loads(run(tmp_path, "output", "-json", "made").stdout)
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
    assert volumes["models"]["persistentVolumeClaim"] == {"claimName": "models"}
    assert len(rendered.of("PodMonitor")) == 1


REFUSED = {
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
        "model": ({"path": "ling"},),
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
        "zone": ("europe-west4-a", "zone"),
        "release_channel": ("FAST", "release_channel"),
        "cidrs": ({"control_plane": "172.16.0.0/24"}, "cidrs"),
        "api_cidrs": (["office", "0.0.0.0/0"], "api_cidrs: give IPv4", "api_cidrs: a network of fewer"),
        "kms_key": ("mine", "kms_key"),
        "cpu_pool": ({"min_nodes": 0}, "cpu_pool"),
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


@needs_terraform
@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_work_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    name = case.split()[0]
    shutil.copy(ROOT / "modules" / name / "variables.tf", tmp_path)
    extra = {"disk_storage": {"provisioner": "x", "parameters": {}}, "gpu": {"type": "other"}} if name == "ling" else {}
    given(tmp_path, extra | {key: value for key, (value, *_) in REFUSED[case].items()})
    done = run(tmp_path, "plan", "-no-color", "-input=false")
    assert done.returncode != 0
    said = re.sub(r"[\s│]+", " ", done.stderr)
    for _, *messages in REFUSED[case].values():
        for message in messages:
            assert message in said, message
