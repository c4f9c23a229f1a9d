"""Runs `ling serve` as a user does, in its own process, and checks that it leaves no process behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import psutil

START_S = 180.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> list[int]:
    """`count` different free ports."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Serving:
    """A running `ling serve`."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=120)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "serve", "--port", str(self.port), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.family: list[psutil.Process] = []

    def wait_ready(self) -> None:
        """Wait until /ready succeeds; fails with the process's output if it ends first."""

        def ready() -> bool:
            if self.process.poll() is not None:
                assert self.process.stdout is not None
                raise AssertionError(f"ling serve ended:\n{self.process.stdout.read()}")
            try:
                return self.client.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        self.until(ready, START_S)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Poll a condition of the outside world, up to a deadline."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; status: {self.client.get('/status').text}"
            time.sleep(0.1)

    def status(self) -> dict[str, Any]:
        try:
            answer = self.client.get("/status")
        except httpx.TransportError as error:
            raise AssertionError(f"no status: {error!r}; {self._printed()}") from error
        assert answer.status_code == 200
        value: dict[str, Any] = answer.json()
        return value

    def _printed(self) -> str:
        """The output of `ling serve`, if it has ended or ends soon."""
        try:
            printed, _ = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            return "ling serve goes on"
        return f"ling serve ended with {self.process.returncode}:\n{printed}"

    def workers(self, role: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status()["pools"][role]["workers"]
        return found

    def live(self, role: str) -> list[dict[str, Any]]:
        """The live workers. A killed worker stays listed for a while in another state."""
        return [worker for worker in self.workers(role) if worker["state"] == "live"]

    def one_live(self, role: str) -> dict[str, Any]:
        """A worker that takes requests, once there is one: a router leaves out whom a busy machine kept silent."""
        found: list[dict[str, Any]] = []
        self.until(lambda: bool(found.extend(self.live(role)) or found), 60)
        return found[0]

    def all_free(self) -> bool:
        """Whether every live worker has all its pages and slots back."""
        return all(
            w["free_pages"] == w["pages"] and w["free_slots"] == w["slots"] and not w["transferring"]
            for role in ("prefill", "decode")
            for w in self.live(role)
        )

    def end(self) -> None:
        """Send Ctrl-C, and check that none of its processes is left."""
        self.client.close()
        self.family += psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        _, left = psutil.wait_procs(self.family, timeout=5)
        for process in left:
            process.kill()
        assert not left, f"processes left behind: {left}"


@contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    started = Serving(*arguments)
    try:
        started.wait_ready()
        yield started
    finally:
        if started.process.poll() is None:
            started.end()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
