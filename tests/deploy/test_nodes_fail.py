"""Tests nodes whose clocks differ, that are cut off from each other, and that fail."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.deploy.deployed import Deployed, Transcripts, deploy
from tests.deploy.network import Network, allowed
from tests.deploy.ray_nodes import ray_nodes

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not allowed(), reason="only root may make network namespaces"),
]

# The head with the router; a node with a worker of each pool, five minutes ahead; one with a decode worker.
HEAD, BOTH, DECODE = 1, 2, 3
AHEAD_S = 300.0


@dataclass(frozen=True)
class Machines:
    network: Network
    deployed: Deployed
    asked: Transcripts

    def unreachable(self) -> set[str]:
        """The workers that the other node's decode worker reports as unreachable."""
        workers = self.deployed.status()["pools"]["decode"]["workers"]
        at = self.network.address(DECODE)
        return {name for worker in workers if worker["host"] == at for name in worker.get("unreachable", ())}


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    network = Network()
    try:
        with ray_nodes(network=network, skewed={BOTH: AHEAD_S}) as nodes:
            nodes.start_head({"router": 1})
            nodes.start_worker(nodes.add(BOTH), {"prefill": 1, "decode": 1})
            nodes.start_worker(nodes.add(DECODE), {"decode": 1})
            one = {"tp": 1, "resources": {"prefill": 1}}
            two = {"tp": 1, "replicas": 2, "resources": {"decode": 1}}
            # As between machines: they share no memory.
            deployed = deploy(nodes, prefill=one, decode=two, handoff={"channel": "gloo"}, cache={"mode": "off"})
            nodes.until(lambda: live(deployed) == {"prefill": 1, "decode": 2}, 120)
            yield Machines(network, deployed, Transcripts(deployed.url))
    finally:
        network.close()


def live(deployed: Deployed) -> dict[str, int]:
    pools = deployed.status()["pools"]
    return {role: sum(w["state"] == "live" for w in pool["workers"]) for role, pool in pools.items()}


def answered(machines: Machines, count: int) -> None:
    more = machines.asked.answered + count
    machines.deployed.nodes.until(lambda: machines.asked.answered >= more, 120)


def test_clocks_of_nodes_may_differ(machines: Machines) -> None:
    clock = "python -c 'import time; print(time.time(), time.monotonic())'"
    wall, monotonic = map(float, machines.deployed.nodes.run(clock, at=machines.network.address(BOTH)).split())
    assert wall - time.time() > AHEAD_S - 60
    assert monotonic - time.monotonic() > 100_000
    with machines.asked.running():
        answered(machines, 12)
    assert machines.asked.problems == []


def test_a_network_that_is_cut_between_prefill_and_decode_breaks_no_stream(machines: Machines) -> None:
    nodes = machines.deployed.nodes
    with machines.asked.running():
        answered(machines, 6)
        machines.network.cut(BOTH, DECODE)
        nodes.until(lambda: len(machines.unreachable()) > 0, 60)
        answered(machines, 12)
        machines.network.mend(BOTH, DECODE)
        nodes.until(lambda: not machines.unreachable(), 60)
        answered(machines, 6)
    assert machines.asked.problems == []


def test_a_node_that_is_lost_breaks_no_stream(machines: Machines) -> None:
    """The only prefill worker is lost with it."""
    with machines.asked.running():
        answered(machines, 6)
        machines.deployed.nodes.lose(machines.network.address(BOTH))
        answered(machines, 12)
    assert machines.asked.problems == []
    machines.deployed.nodes.until(lambda: live(machines.deployed) == {"prefill": 0, "decode": 1}, 60)
