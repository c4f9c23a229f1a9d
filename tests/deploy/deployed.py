"""Deploys ling-nano on nodes of `ray_nodes`, and runs clients that keep it busy."""

import copy
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.cluster.serving import free_port
from tests.deploy.chart import example
from tests.deploy.ray_nodes import RayNodes, write_config

READY_S = 150
_ASKED = {"model": "auto", "prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True, "stream": True}


@dataclass(frozen=True)
class Deployed:
    nodes: RayNodes
    url: str
    config: dict[str, Any]

    def change(self, **settings: Any) -> None:
        """Run `serve deploy` with further settings; it returns before they take effect."""
        self.config["applications"][0]["args"] |= settings
        port = int(self.url.rpartition(":")[2])
        self.nodes.run("serve", "deploy", str(write_config(self.nodes.folder, self.config, port, self.nodes.host)))

    def workers(self) -> set[str]:
        """The ids of the live workers."""
        pools = self.status()["pools"].values()
        return {worker["id"] for pool in pools for worker in pool["workers"] if worker["state"] == "live"}

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/status", timeout=60, trust_env=False).json()
        return found

    def decode_worker(self) -> tuple[str, int] | None:
        """The id and process id of the live decode worker."""
        workers = self.status()["pools"]["decode"]["workers"]
        live = [(worker["id"], worker["pid"]) for worker in workers if worker["state"] == "live"]
        return live[0] if live else None

    def live_decode_worker(self) -> tuple[str, int]:
        """Wait for `decode_worker`: a router drops a worker that a busy machine kept silent, until it speaks again."""
        found: list[tuple[str, int] | None] = [None]
        self.nodes.until(lambda: found.append(self.decode_worker()) or found[-1] is not None, 60)
        assert found[-1] is not None
        return found[-1]

    def serve_is_running(self) -> bool:
        """The output of `serve status`, which asks Serve's controller through the GCS and fails while there is none."""
        return "RUNNING" in self.nodes.call("serve", "status").stdout


def deploy(nodes: RayNodes, **settings: Any) -> Deployed:
    """Deploy what the chart renders for a cluster without GPUs, with further settings, and wait until it is ready."""
    port = free_port()
    content = copy.deepcopy(example("cpu-mini").serve)
    found = Deployed(nodes, f"http://{nodes.host}:{port}", content)
    found.change(**settings)
    nodes.until(found.ready, READY_S)
    return found


class Load:
    """Three clients, each with one stream after another."""

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
        """Run until the block ends; `problems` then has the streams that failed."""
        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(self._ask) for _ in range(3)]
            try:
                yield
            finally:
                self._over.set()
        for client in clients:
            client.result()


@dataclass
class Heard:
    """A stream's tokens, and the longest time without a token in seconds."""

    token_ids: list[int]
    pause: float


class Transcripts:
    """Clients that each repeat their own request and compare each answer with the first one."""

    def __init__(self, url: str, clients: int = 6, tokens: int = 120) -> None:
        self.problems: list[str] = []
        self.heard: list[Heard] = []
        self._url, self._tokens = url, tokens
        self._over = threading.Event()
        with ThreadPoolExecutor(clients) as pool:
            self._expected = [heard.token_ids for heard in pool.map(self._ask, range(clients))]

    def _ask(self, client: int) -> Heard:
        """Run one stream; RuntimeError if it fails."""
        body = {
            "model": "auto", "prompt": f"{client}. {_ASKED['prompt']} " * 8, "max_tokens": self._tokens,
            "temperature": 0, "ignore_eos": True, "stream": True, "return_token_ids": True,
        }  # fmt: skip
        ids, pause, latest, done = list[int](), 0.0, time.monotonic(), False
        with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=120, trust_env=False) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {answer.read().decode()}")
            for line in answer.iter_lines():
                now = time.monotonic()
                pause, latest = max(pause, now - latest), now
                done = done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise RuntimeError(line)
                    ids += [i for choice in event["choices"] for i in choice["token_ids"]]
        if not done:
            raise RuntimeError("a stream ended without [DONE]")
        return Heard(ids, pause)

    def _again(self, client: int) -> None:
        while not self._over.is_set():
            try:
                heard = self._ask(client)
            except (RuntimeError, httpx.HTTPError) as error:
                self.problems.append(repr(error))
                continue
            if heard.token_ids != self._expected[client]:
                self.problems.append(f"{heard.token_ids} and not {self._expected[client]}")
            self.heard.append(heard)

    @property
    def answered(self) -> int:
        """The number of whole streams since the block began."""
        return len(self.heard)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run until the block ends; `problems` then lists what went wrong."""
        self._over.clear()
        self.heard.clear()
        with ThreadPoolExecutor(len(self._expected)) as pool:
            clients = [pool.submit(self._again, n) for n in range(len(self._expected))]
            try:
                yield
            finally:
                self._over.set()
        for client in clients:
            client.result()
        print(f"{self.answered} streams, longest pause {max((h.pause for h in self.heard), default=0.0):.2f} s")
