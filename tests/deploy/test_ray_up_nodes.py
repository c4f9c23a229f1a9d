"""A cluster of three machines by the on-premise recipe, with what the chart renders for a cluster without GPUs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.cluster.serving import free_port
from tests.deploy.chart import CHART, example
from tests.deploy.ray_nodes import HEAD, LOOPBACK, RayNodes, listening, ray_nodes, write_config

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(300)]

PREFILL, DECODE = "127.0.0.12", "127.0.0.13"
READY_S = 150


@dataclass(frozen=True)
class Deployed:
    nodes: RayNodes
    url: str

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/status", timeout=10, trust_env=False).json()
        return found


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    with ray_nodes() as nodes:
        nodes.start_head({"router": 8})
        nodes.start_worker(PREFILL, {"prefill": 1})
        nodes.start_worker(DECODE, {"decode": 1})
        port = free_port()
        nodes.run("serve", "deploy", str(write_config(nodes.folder, example("cpu-mini").serve, port)))
        found = Deployed(nodes, f"http://{LOOPBACK}:{port}")
        nodes.until(found.ready, READY_S)
        yield found


def test_each_pool_is_on_its_own_node(deployed: Deployed) -> None:
    pools = deployed.status()["pools"]
    where = {role: [worker["host"] for worker in pool["workers"]] for role, pool in pools.items()}
    assert where == {"prefill": [PREFILL], "decode": [DECODE]}
    assert deployed.status()["model"] == "ling-nano"


def test_helm_test_s_chat_is_answered(deployed: Deployed) -> None:
    done = subprocess.run(
        [sys.executable, str(CHART / "files/chat.py")],
        env={"LING_URL": deployed.url, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_dashboard_and_routers_listen_on_loopback_alone(deployed: Deployed) -> None:
    processes = deployed.nodes.processes()
    for url in (deployed.nodes.dashboard, deployed.url):
        assert listening(processes, url) == {LOOPBACK}


def test_ray_does_nothing_without_the_token(deployed: Deployed) -> None:
    assert deployed.nodes.ask("/api/serve/applications/") == 200
    for path in ("/api/serve/applications/", "/api/jobs/", "/api/version"):
        assert deployed.nodes.ask(path, token="0" * 64) in (401, 403)
        assert httpx.get(deployed.nodes.dashboard + path, timeout=10, trust_env=False).status_code == 401


def test_a_node_s_health_is_told_without_the_token_as_the_chart_s_probes_ask(deployed: Deployed) -> None:
    for component in ("prefill", "decode"):
        container = example("cpu-mini").templates[component]["spec"]["containers"][0]
        assert container["readinessProbe"]["httpGet"] == {"path": "/api/healthz", "port": "agent"}
    assert all(deployed.nodes.healthy(address) for address in (HEAD, PREFILL, DECODE))
