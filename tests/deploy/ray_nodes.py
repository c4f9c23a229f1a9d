"""The machines of the on-premise recipe, played by loopback addresses of this one, or by network namespaces.

Each has a home folder as `ray up` leaves it, and runs the recipe's own start command; what is appended to it keeps
several nodes of one machine, and several clusters, apart. All are ended by the ids of their processes.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.cluster.serving import free_port, free_ports
from tests.deploy.network import Network

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"
# Ray takes 127.0.0.1 for whatever address the machine has outside.
HEAD = "127.0.0.11"
_BIN = Path(sys.executable).parent
_RECIPE = yaml.safe_load((ROOT / "cluster/ray/onprem.yaml").read_text())
_NODE_S = 90
_OBJECT_STORE = 80_000_000
_PORTS = (
    "object-manager-port",
    "node-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)


class RayNodes:
    """A head and further nodes with token authentication, which listen on 127.0.0.x, or within `network`."""

    def __init__(
        self,
        head: dict[str, str] | None = None,
        every: dict[str, str] | None = None,
        network: Network | None = None,
        skewed: dict[int, float] | None = None,
    ) -> None:
        """head: variables of the head's processes; every: of all nodes'. network: the head is its node 1. skewed: by
        how many seconds the clocks of some of its nodes are ahead.
        """
        self._head, self._every = head or {}, every or {}
        self._network, self._skewed = network, skewed or {}
        self._numbers: dict[str, int] = {}  # of the network's nodes, by address
        self.head = HEAD if network is None else self.add(1)
        self.host = LOOPBACK if network is None else self.head  # of the dashboard and the routers
        # Ray's sockets lie below it, and their paths must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="ling-", dir="/tmp"))
        self.gcs = free_port()
        self.dashboard = f"http://{self.host}:{free_port()}"
        self.agents: dict[str, str] = {}
        self._token = secrets.token_hex(32)
        self._processes: list[subprocess.Popen[bytes]] = []

    def add(self, node: int) -> str:
        """Add a node to the network, without processes; returns its address."""
        assert self._network is not None
        address = self._network.add(node)
        self._numbers[address] = node
        return address

    def start_head(self, marks: dict[str, int], own: str = "--block") -> None:
        """Start the head, also anew, and wait until its dashboard and agent answer. own: further options."""
        port = self.dashboard.rsplit(":", 1)[1]
        own += f" --dashboard-host={self.host}"
        self._start("head", self.head, marks, f"--port={self.gcs} --dashboard-port={port} --autoscaling-config= {own}")
        self.until(lambda: self.ask("/api/version") == 200, _NODE_S)
        self.until(lambda: self.healthy(self.head), _NODE_S)

    def keep_gcs(self) -> None:
        """Run the recipe's command that restarts the head's GCS; it follows the head's start."""
        (command,) = [c for c in _RECIPE["head_start_ray_commands"] if "keep_gcs" in c]
        command = command.replace("cluster.keep_gcs", f"cluster.keep_gcs {self.gcs}")
        subprocess.run(
            ["bash", "-c", command], env=self._environment(self.head), cwd=self.folder, check=True, timeout=60
        )
        log = self.folder / self.head / "keep_gcs.log"
        self.until(lambda: log.exists() and "looks after" in log.read_text(), _NODE_S)

    def kill_gcs(self) -> None:
        """Kill the GCS with SIGKILL and wait until it has ended."""
        (gcs,) = self.named("gcs_server")
        gcs.kill()
        psutil.wait_procs([gcs], timeout=10)

    def start_worker(self, address: str, marks: dict[str, int]) -> None:
        """Start a node and wait until it answers, because nodes that start together on few cores delay each other."""
        self._start("worker", address, marks, f"--address={self.head}:{self.gcs} --block")
        self.until(lambda: self.healthy(address), _NODE_S)

    def lose(self, address: str) -> None:
        """Cut a node off and kill its processes, as if it lost its power."""
        assert self._network is not None
        node = self._numbers[address]
        self._network.pull_out(node)
        for pid in self._network.processes(node):
            os.kill(pid, signal.SIGKILL)
        psutil.wait_procs(self._processes, timeout=5)
        self._processes = [started for started in self._processes if started.poll() is None]

    def wait_for_the_head_s_end(self) -> None:
        """Wait until the head's start command, which blocks, has ended with its processes."""
        self._processes.pop(0).wait(timeout=_NODE_S)
        # On a machine of its own there is no other raylet that names the same GCS.
        (self.folder / "ray/ray_current_cluster").unlink(missing_ok=True)

    def healthy(self, address: str) -> bool:
        """Ask a node's agent for its health, without a token, as a container's probe does."""
        try:
            return httpx.get(self.agents[address] + "/api/healthz", timeout=10, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path: str, token: str | None = None) -> int:
        """The dashboard's status for a request; 0 if there is no dashboard. `token`: instead of the right one."""
        headers = {"authorization": f"Bearer {self._token if token is None else token}"}
        try:
            return httpx.get(self.dashboard + path, headers=headers, timeout=10, trust_env=False).status_code
        except httpx.TransportError:
            return 0

    def run(self, *command: str, timeout: float = 120, at: str | None = None) -> str:
        """Run a command of the venv as a node's user; returns its output. The default is the head."""
        done = self.call(*command, timeout=timeout, at=at)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def call(self, *command: str, timeout: float = 120, at: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command that may fail."""
        at = at or self.head
        environment = self._environment(at) | {"RAY_DASHBOARD_ADDRESS": self.dashboard}
        line = f". ~/ling/cluster/ray/env.sh; exec {' '.join(command)}"
        return subprocess.run(
            [*self._inside(at), "bash", "-c", line],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """Every process of every node: the start commands, whatever names the cluster's folder or its GCS, and who
        descends."""
        names = (str(self.folder), f"--address={self.head}:{self.gcs}")
        named = [
            p.pid
            for p in psutil.process_iter(["cmdline"])
            if any(name in " ".join(p.info["cmdline"] or []) for name in names)
        ]
        roots = [*named, *(started.pid for started in self._processes)]
        return list({p.pid: p for root in roots for p in _family(root)}.values())

    def named(self, begin: str) -> list[psutil.Process]:
        """Return the nodes' running processes whose names begin so."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith(begin) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Poll a condition of the outside world, up to a deadline."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert not any(p.poll() for p in self._processes), self.logs()
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The last lines of the nodes' logs."""
        return "\n".join(f"{path}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """End every process by its id."""
        left = self.processes()
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                try:
                    stop(process)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(left, timeout=5)
            left = self.named("")
            if not left:
                break
        for started in self._processes:
            started.wait(timeout=5)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left, f"processes left behind: {left}"

    def _start(self, kind: str, address: str, marks: dict[str, int], own: str) -> None:
        (command,) = [c for c in _RECIPE[f"{kind}_start_ray_commands"] if "ray start" in c]
        self._home(address, marks)
        inside = self._inside(address)
        # Given ports: a raylet waits only so long for an agent to say what it has found itself.
        ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self.agents[address] = f"http://{address}:{ports['dashboard-agent-listen-port']}"
        apart = f"--node-ip-address={address} --num-cpus=1 --object-store-memory={_OBJECT_STORE}"
        apart += "".join(f" --{name}={port}" for name, port in ports.items())
        if kind == "head":
            apart += f" --temp-dir={self.folder}/ray"
        with (self.folder / f"{address}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [*inside, "bash", "-c", f"{command} {own} {apart}"],
                    env=self._environment(address),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                )
            )

    def _inside(self, address: str) -> list[str]:
        """The prefix of a command that runs inside a node's network."""
        if self._network is None:
            return []
        inside = ["ip", "netns", "exec", self._network.space(self._numbers[address])]
        # No two machines began to count at the same time.
        return [*inside, "unshare", "--time", "--fork", "--monotonic", "864000"] if self._skew(address) else inside

    def _skew(self, address: str) -> float:
        return self._skewed.get(self._numbers.get(address, 0), 0.0)

    def _home(self, address: str, marks: dict[str, int]) -> None:
        home = self.folder / address
        if home.exists():
            return
        (home / ".ray").mkdir(parents=True)
        (home / ".ray/auth_token").write_text(self._token)
        (home / "ling").symlink_to(ROOT)
        (home / "ling-venv").symlink_to(_BIN.parent)
        (home / "ling-node.json").write_text(json.dumps(marks))
        if skew := self._skew(address):
            # Python reads it at its start: the wall clock of all that is not Ray's own C++.
            (home / "sitecustomize.py").write_text(
                f"import time\n_now = time.time\ntime.time = lambda: _now() + {skew}\n"
            )

    def _environment(self, address: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return (
            kept
            | self._every
            | (self._head if address == self.head else {})
            | {
                "HOME": str(self.folder / address),
                "RAY_HEAD_IP": self.head,
                "PYTHONPATH": f"{ROOT}:{self.folder / address}",
                # Tests share their cores: a node that is late is not lost.
                "RAY_health_check_failure_threshold": "60",
                "RAY_raylet_start_wait_time_s": str(_NODE_S),
            }
        )


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def listening(processes: list[psutil.Process], url: str) -> set[str]:
    """The addresses at which any of the processes listens on a URL's port."""
    found = set()
    for process in processes:
        try:
            sockets = process.net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        open_ = [s.laddr for s in sockets if s.status == psutil.CONN_LISTEN]
        found |= {address.ip for address in open_ if url.endswith(f":{address.port}")}
    return found


def write_config(folder: Path, content: dict[str, Any], port: int, host: str = LOOPBACK) -> Path:
    """Write a Serve config for this machine, with routers on a free port of an address."""
    (application,) = content["applications"]
    application["args"] |= {"host": host, "port": port}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def ray_nodes(
    head: dict[str, str] | None = None,
    every: dict[str, str] | None = None,
    network: Network | None = None,
    skewed: dict[int, float] | None = None,
) -> Iterator[RayNodes]:
    nodes = RayNodes(head, every, network, skewed)
    try:
        yield nodes
    finally:
        nodes.end()
