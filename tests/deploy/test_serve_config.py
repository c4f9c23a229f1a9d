"""Tests that Serve and the schema accept the Serve configs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.config import ClusterConfig
from cluster.parse import parse
from cluster.pool import actor_options
from planner.cards import find_card
from planner.memory import Layout, capacity, enough
from planner.model import load_model
from wire.protocol import Role

CONFIGS = sorted((Path(__file__).parents[2] / "cluster" / "serve").glob("*.yaml"))
SIZES = {
    "flash-fp8": (1, 1, 4, 8),
    "flash-fp8-2p4d": (2, 4, 4, 24),
    "flash-single-node": (0, 2, 2, 4),
    "nano-cpu": (1, 1, 2, 0),
}


def read(path: Path) -> tuple[ServeDeploySchema, ClusterConfig]:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = deployed.applications
    assert application.import_path == "cluster.app:build"
    return deployed, parse(application.args)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_serve_and_the_schema_accept_it_and_it_has_the_size_it_says(path: Path) -> None:
    deployed, config = read(path)
    prefill, decode, tp, gpus = SIZES[path.stem]
    assert (config.prefill.replicas, config.decode.replicas, config.decode.tp) == (prefill, decode, tp)
    assert deployed.proxy_location == "Disabled"
    assert config.port == 8000
    assert config.host == "127.0.0.1"
    pools: list[tuple[Role, int]] = [("prefill", prefill), ("decode", decode)]
    assert sum(count * actor_options(config, role)["num_gpus"] for role, count in pools) == gpus


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith("flash")], ids=lambda p: p.stem)
def test_a_worker_of_80_gb_cards_has_the_memory_for_it(path: Path) -> None:
    _, config = read(path)
    model = load_model("ling-2.6-flash", "fp8")
    context = config.max_model_len or model.config.max_model_len
    layout = Layout(config.decode.tp, context, 16384, config.slots, page_size=config.page_size)
    assert enough(capacity(model, find_card("h100-80gb"), layout), layout)


def test_a_worker_asks_for_its_pool_s_mark_once_and_for_cpus_by_the_rank() -> None:
    settings: dict[str, Any] = {"decode.tp": 4, "prefill.replicas": 0, "decode.resources.decode": "1", "device": "cpu"}
    options = actor_options(parse(settings | {"rank_cpus": 2}), "decode")
    assert options == {"num_cpus": 8.01, "num_gpus": 0, "resources": {"decode": 1}, "runtime_env": {}}
