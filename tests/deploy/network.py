"""Machines' own networks on this one: a namespace a node, all on one bridge, whose links can be cut.

What is cut loses its packets without a word, as by a pulled cable: nobody gets a reset, and nothing is refused.
"""

import os
import secrets
import shutil
import subprocess

_NOWHERE = "02:00:00:00:00:01"


def allowed() -> bool:
    """Whether this process may create network namespaces and links."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"ling-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    bridged = made and subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=False).returncode == 0
    if bridged:
        _ip("link", "del", name)
    if made:
        _ip("netns", "del", name)
    return bridged


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Network:
    """A network of nodes, numbered from 1. The test's own process is on it too."""

    def __init__(self) -> None:
        self._name = f"ling-{secrets.token_hex(3)}"
        self._net = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
        self._nodes: list[int] = []
        _ip("link", "add", self._name, "type", "bridge")
        _ip("addr", "add", f"{self._net}.254/24", "dev", self._name)
        _ip("link", "set", self._name, "up")

    def add(self, node: int) -> str:
        """Add a node; returns its address."""
        space, link, address = self.space(node), f"{self._name}{node}", self.address(node)
        _ip("netns", "add", space)
        self._nodes.append(node)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", self._name, "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")
        return address

    def space(self, node: int) -> str:
        """The name of a node's namespace."""
        return f"{self._name}-{node}"

    def address(self, node: int) -> str:
        return f"{self._net}.{node}"

    def cut(self, a: int, b: int) -> None:
        """Drop all packets between two nodes from now on."""
        for here, there in ((a, b), (b, a)):
            where = (self.address(there), "lladdr", _NOWHERE, "dev", "eth0", "nud", "permanent")
            _ip("-n", self.space(here), "neigh", "replace", *where)

    def mend(self, a: int, b: int) -> None:
        for here, there in ((a, b), (b, a)):
            _ip("-n", self.space(here), "neigh", "del", self.address(there), "dev", "eth0")

    def pull_out(self, node: int) -> None:
        """Drop all packets from and to a node from now on."""
        _ip("link", "set", f"{self._name}{node}", "down")

    def processes(self, node: int) -> list[int]:
        """The ids of a node's processes."""
        done = subprocess.run(["ip", "netns", "pids", self.space(node)], capture_output=True, text=True, check=True)
        return [int(pid) for pid in done.stdout.split()]

    def close(self) -> None:
        for node in self._nodes:
            subprocess.run(["ip", "link", "del", f"{self._name}{node}"], check=False)
            subprocess.run(["ip", "netns", "del", self.space(node)], check=False)
        subprocess.run(["ip", "link", "del", self._name], check=False)
