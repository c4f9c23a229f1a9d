"""Tests a cluster of three machines by the on-premise recipe, with the chart's config without GPUs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from cluster.resolve import EMBEDDED
from tests.cluster.fetch.hub_server import Repository, hub_server, of_folder
from tests.deploy.chart import CHART, example
from tests.deploy.deployed import Deployed, Load, Transcripts, deploy
from tests.deploy.ray_nodes import HEAD, LOOPBACK, listening, ray_nodes

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(300)]

PREFILL, DECODE = "127.0.0.12", "127.0.0.13"


@pytest.fixture(scope="module")
def repository() -> Repository:
    return of_folder("org/ling-nano", EMBEDDED)


@pytest.fixture(scope="module")
def deployed(repository: Repository) -> Iterator[Deployed]:
    """A deployed cluster. Each node fetches from a hub into its user's own cache."""
    with hub_server(repository) as url, ray_nodes(every={"HF_ENDPOINT": url}) as nodes:
        nodes.start_head({"router": 8}, own="")
        nodes.keep_gcs()
        nodes.start_worker(PREFILL, {"prefill": 4})
        nodes.start_worker(DECODE, {"decode": 2})
        two = {"replicas": 2, "tp": 1, "resources": {"prefill": 1}}
        one = {"replicas": 1, "tp": 1, "resources": {"decode": 1}}
        # Storage alone: else a worker takes its weights from another that serves by then.
        # Routers that are replaced let their streams end, as long as those take on a busy machine.
        found = deploy(nodes, model=repository.name, load="storage", prefill=two, decode=one, drain_s=60)
        nodes.until(lambda: len(live(found)) == 3, 120)
        yield found


def live(deployed: Deployed) -> list[dict[str, Any]]:
    workers = [worker for pool in deployed.status()["pools"].values() for worker in pool["workers"]]
    return [worker for worker in workers if worker["state"] == "live"]


def test_each_node_fetches_the_weights_once(deployed: Deployed, repository: Repository) -> None:
    """There are three workers on two nodes. The head, with the routers, fetches only what describes the checkpoint."""
    size = (EMBEDDED / "model.safetensors").stat().st_size
    assert repository.sent["model.safetensors"] == 2 * size
    caches = {path.relative_to(deployed.nodes.folder).parts[0] for path in deployed.nodes.folder.rglob("*.safetensors")}
    assert caches == {PREFILL, DECODE}
    assert len({worker["weights_id"] for worker in live(deployed)}) == 1


def test_each_pool_is_on_its_own_node(deployed: Deployed) -> None:
    pools = deployed.status()["pools"]
    where = {role: [worker["host"] for worker in pool["workers"]] for role, pool in pools.items()}
    assert where == {"prefill": [PREFILL, PREFILL], "decode": [DECODE]}
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


def test_a_node_s_health_needs_no_token_as_the_chart_s_probes_have_none(deployed: Deployed) -> None:
    for component in ("prefill", "decode"):
        container = example("cpu-mini").templates[component]["spec"]["containers"][0]
        assert container["readinessProbe"]["httpGet"] == {"path": "/api/healthz", "port": "agent"}
    assert all(deployed.nodes.healthy(address) for address in (HEAD, PREFILL, DECODE))


def test_a_gcs_that_dies_under_load_is_restarted_and_no_stream_breaks(deployed: Deployed) -> None:
    before, load = deployed.live_decode_worker(), Load(deployed.url)
    assert before is not None
    with load.running():
        deployed.nodes.kill_gcs()
        deployed.nodes.until(deployed.serve_is_running, 60)
        answered = load.answered
        deployed.nodes.until(lambda: load.answered >= answered + 6, 60)
    assert load.problems == []
    assert deployed.live_decode_worker() == before
    # Ray still starts anew what ends.
    psutil.Process(before[1]).kill()
    deployed.nodes.until(lambda: deployed.decode_worker() not in (None, before), 120)


def test_serve_s_controller_dies_under_load_and_no_stream_breaks(deployed: Deployed) -> None:
    """The next controller knows the application and restarts what ends."""
    (controller,) = deployed.nodes.named("ray::ServeCont")
    before, asked = deployed.live_decode_worker(), Transcripts(deployed.url)
    assert before is not None
    with asked.running():
        controller.kill()
        deployed.nodes.until(deployed.serve_is_running, 60)
        answered = asked.answered
        deployed.nodes.until(lambda: asked.answered >= answered + 6, 60)
        assert deployed.live_decode_worker() == before
        psutil.Process(before[1]).kill()
        deployed.nodes.until(lambda: deployed.decode_worker() not in (None, before), 120)
    assert asked.problems == []


def test_a_changed_setting_is_rolled_out_and_no_stream_breaks(deployed: Deployed) -> None:
    """Routers and workers are replaced: successors serve before they go."""
    deployed.nodes.until(lambda: len(deployed.workers()) == 3, 120)
    before, asked = deployed.workers(), Transcripts(deployed.url)
    with asked.running():
        deployed.change(slots=6)
        deployed.nodes.until(lambda: len(deployed.workers() - before) == 3 and not deployed.workers() & before, 120)
        answered = asked.answered
        deployed.nodes.until(lambda: asked.answered >= answered + 6, 60)
    assert asked.problems == []
