"""ling-nano deployed on nodes of `ray_nodes`, and clients that keep it busy."""

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.cluster.serving import free_port
from tests.deploy.chart import example
from tests.deploy.ray_nodes import LOOPBACK, RayNodes, write_config

READY_S = 150
_ASKED = {"model": "auto", "prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True, "stream": True}


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

    def decode_worker(self) -> tuple[str, int] | None:
        """Id and process of the one that takes requests."""
        workers = self.status()["pools"]["decode"]["workers"]
        live = [(worker["id"], worker["pid"]) for worker in workers if worker["state"] == "live"]
        return live[0] if live else None

    def serve_is_running(self) -> bool:
        """What `serve status` says, which asks Serve's controller by way of the GCS."""
        return "RUNNING" in self.nodes.run("serve", "status")


def deploy(nodes: RayNodes, **settings: Any) -> Deployed:
    """By what the chart renders for a cluster without GPUs, with further settings; once it is ready."""
    port = free_port()
    content = copy.deepcopy(example("cpu-mini").serve)
    content["applications"][0]["args"] |= settings
    nodes.run("serve", "deploy", str(write_config(nodes.folder, content, port)))
    found = Deployed(nodes, f"http://{LOOPBACK}:{port}")
    nodes.until(found.ready, READY_S)
    return found


class Load:
    """Three clients with a stream each, one after another."""

    def __init__(self, url: str) -> None:
        self.problems: list[str] = []
        self.answered = 0
        self._url = url
        self._over = threading.Event()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._over.is_set():
                answer = client.post("/v1/completions", json=_ASKED)
                if answer.status_code != 200 or not answer.text.endswith("data: [DONE]\n\n"):
                    self.problems.append(answer.text)
                self.answered += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until the block ends; `problems` then has the streams that were not answered whole."""
        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(self._ask) for _ in range(3)]
            try:
                yield
            finally:
                self._over.set()
        for client in clients:
            client.result()
