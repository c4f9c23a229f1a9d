"""A cluster of three machines by the on-premise recipe, with what the chart renders for a cluster without GPUs."""

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.deploy.chart import CHART, example
from tests.deploy.deployed import Deployed, Load, deploy
from tests.deploy.ray_nodes import HEAD, LOOPBACK, listening, ray_nodes

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(300)]

PREFILL, DECODE = "127.0.0.12", "127.0.0.13"


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    with ray_nodes() as nodes:
        nodes.start_head({"router": 8}, own="")
        nodes.keep_gcs()
        nodes.start_worker(PREFILL, {"prefill": 1})
        nodes.start_worker(DECODE, {"decode": 1})
        yield deploy(nodes)


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


def test_a_gcs_that_dies_under_load_comes_back_and_no_stream_breaks(deployed: Deployed) -> None:
    before, load = deployed.decode_worker(), Load(deployed.url)
    assert before is not None
    with load.running():
        deployed.nodes.kill_gcs()
        deployed.nodes.until(deployed.serve_is_running, 60)
        answered = load.answered
        deployed.nodes.until(lambda: load.answered >= answered + 6, 60)
    assert load.problems == []
    assert deployed.decode_worker() == before
    # Ray still starts anew what ends.
    psutil.Process(before[1]).kill()
    deployed.nodes.until(lambda: deployed.decode_worker() not in (None, before), 120)
