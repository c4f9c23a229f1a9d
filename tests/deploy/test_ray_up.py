"""Tests the `ray up` recipes by Ray's own launcher, without a cloud."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "cluster" / "ray").glob("*.yaml"))
TRUE_SIZES = {"flash-fp8.yaml": {"both": 1}, "flash-fp8-2p4d.yaml": {"prefill": 1, "decode": 2}}


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def commands(recipe: dict[str, Any]) -> list[str]:
    return [c for kind in ("head", "worker") for c in recipe[f"{kind}_start_ray_commands"] if "ray start" in c]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_ray_accepts_the_recipe_with_its_defaults_filled_in(path: Path) -> None:
    prepared = prepare_config(load(path))
    validate_config(prepared)
    assert prepared["max_workers"] >= sum(t.get("min_workers", 0) for t in prepared["available_node_types"].values())


def test_ray_refuses_a_recipe_with_an_unknown_setting() -> None:
    recipe = load(RECIPES[0]) | {"head_start_commands": []}
    with pytest.raises(Exception, match="head_start_commands"):
        validate_config(prepare_config(recipe))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_node_starts_with_the_token_and_the_dashboard_stays_on_loopback(path: Path) -> None:
    recipe = load(path)
    assert recipe["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    head, worker = commands(recipe)
    for command in (head, worker):
        assert ". ~/ling/cluster/ray/env.sh" in command
    assert "export RAY_AUTH_MODE=token" in (ROOT / "cluster/ray/env.sh").read_text().splitlines()
    assert re.findall(r"--dashboard-host=(\S+)", head + worker) == ["127.0.0.1"]
    assert "0.0.0.0" not in path.read_text()
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert "--port=6379" in head


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_head_s_state_is_kept_and_its_gcs_looked_after(path: Path) -> None:
    assert load(path)["head_start_ray_commands"][-1].startswith(
        ". ~/ling/cluster/ray/env.sh; setsid nohup python -m cluster.keep_gcs > "
    )
    assert 'export RAY_gcs_storage="${RAY_gcs_storage:-rocksdb}"' in (ROOT / "cluster/ray/env.sh").read_text()


@pytest.mark.parametrize("recipe", ["aws", "gcp"])
@pytest.mark.parametrize("app", TRUE_SIZES)
def test_the_node_types_hold_the_documented_sizes(recipe: str, app: str) -> None:
    types = load(ROOT / f"cluster/ray/{recipe}.yaml")["available_node_types"]
    args = load(ROOT / f"cluster/serve/{app}")["applications"][0]["args"]
    nodes = [types["head"]["resources"]]
    nodes += [types[kind]["resources"] for kind, count in TRUE_SIZES[app].items() for _ in range(count)]
    for role, mark in (("prefill", "prefill"), ("decode", "decode"), ("router", "router")):
        asked = args[role]["replicas"] * args[role]["resources"][mark]
        assert asked <= sum(node.get(mark, 0) for node in nodes)
    for node in nodes[1:]:
        per_node = sum(args[role]["tp"] * node.get(role, 0) for role in ("prefill", "decode"))
        assert per_node == node["GPU"]
    assert all(types[kind]["max_workers"] >= count for kind, count in TRUE_SIZES[app].items())
    grown = args["decode"].get("max_replicas", args["decode"]["replicas"])
    assert grown <= sum(t["max_workers"] * t["resources"].get("decode", 0) for t in types.values())


def test_machines_have_the_resource_marks_that_serve_asks_for() -> None:
    recipe = load(ROOT / "cluster/ray/onprem.yaml")
    marks = [
        json.loads(match)
        for kind in ("head", "worker")
        for match in re.findall(r"echo '(.*?)'", recipe[f"{kind}_setup_commands"][0])
    ]
    args = load(ROOT / "cluster/serve/flash-fp8.yaml")["applications"][0]["args"]
    offered = {mark for node in marks for mark in node}
    assert offered == {mark for role in ("router", "prefill", "decode") for mark in args[role]["resources"]}
