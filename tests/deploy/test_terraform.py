"""Tests the Terraform modules by reading them: references resolve, and nothing is open to the internet."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import CHART
from tests.deploy.terraform import (
    EXAMPLES,
    FOLDERS,
    ROOT,
    TERRAFORM,
    Module,
    called,
    module,
    name_of,
    needs_terraform,
    texts,
)

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
each_example = pytest.mark.parametrize("folder", EXAMPLES, ids=name_of)


def test_both_clouds_have_a_module_and_an_example() -> None:
    assert [name_of(f) for f in FOLDERS] == [
        "examples-eks",
        "examples-gke",
        "modules-eks",
        "modules-gke",
        "modules-ling",
    ]


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
    """The paths of keys of `values` that `known` lacks. An empty mapping in `known` allows any key."""
    if not isinstance(values, dict) or not isinstance(known, dict) or not known:
        return []
    missing = [f"{path}{key}" for key in values if key not in known]
    return missing + [
        bad for key in values.keys() & known.keys() for bad in unknown(values[key], known[key], f"{path}{key}.")
    ]


def test_settings_of_the_module_exist_in_the_chart_s_values() -> None:
    ling = module(ROOT / "modules/ling")
    (values,) = [body["values"] for kind, _, body in ling.blocks if kind == "locals" and "values" in body]
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {"prefill", "decode", "auth", "apiKeys"} <= set(values)
    assert unknown(values, known) == []
    assert unknown({"prefill": {"replcas": 1}}, known) == ["prefill.replcas"]
