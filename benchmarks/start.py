"""Measures `ling serve` without requests: time and CPU until it is ready, processes, memory, and CPU at rest.

    python -m benchmarks.start [--rest SECONDS] [-- arguments of ling serve]

RSS counts memory that several processes share once for each of them; PSS counts it once in total.
"""

import argparse
import re
import socket
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass

import httpx
import psutil

_START_S = 180.0
_POLL_S = 0.05
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Usage:
    """One process at one moment. cpu: its CPU seconds so far. rss: bytes resident. pss: bytes, shared ones in parts."""

    name: str
    cpu: float
    rss: int
    pss: int


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _name(process: psutil.Process) -> str:
    """A process's name: Ray's title if it has one, else its program and script."""
    line = process.cmdline()
    if line and line[0].startswith("ray::"):
        return re.sub(r"#[^#:]*$", "", line[0].split()[0])
    script = next((word for word in line[1:] if not word.startswith("-")), "")
    return f"{process.name()} {script.rpartition('/')[2]}".strip()


def usage(parent: psutil.Process) -> dict[int, Usage]:
    """The usage of a process and all its descendants, by process id."""
    found = {}
    for process in (parent, *parent.children(recursive=True)):
        try:
            times, memory = process.cpu_times(), process.memory_full_info()
            found[process.pid] = Usage(_name(process), times.user + times.system, memory.rss, memory.pss)
        except psutil.NoSuchProcess:
            continue
    return found


def _wait_ready(serving: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if serving.poll() is not None:
            raise RuntimeError("ling serve ended before it was ready")
        try:
            if httpx.get(f"{url}/ready", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(_POLL_S)
    raise TimeoutError(f"not ready within {_START_S:.0f} s")


def measure(arguments: list[str], rest_s: float) -> None:
    """Start `ling serve`, wait until it is ready, let it rest for `rest_s` seconds, and print the figures."""
    port = _free_port()
    began = time.monotonic()
    serving = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "serve", "--port", str(port), *arguments], stdout=subprocess.DEVNULL
    )
    try:
        _wait_ready(serving, f"http://127.0.0.1:{port}")
        ready = time.monotonic() - began
        first = usage(psutil.Process(serving.pid))
        print(f"ready after {ready:.1f} s, {sum(u.cpu for u in first.values()):.1f} CPU s")
        time.sleep(rest_s)
        last = usage(psutil.Process(serving.pid))
    finally:
        serving.terminate()
        serving.wait()
    _print(first, last, rest_s)


def _print(first: dict[int, Usage], last: dict[int, Usage], rest_s: float) -> None:
    kinds: dict[str, list[int]] = defaultdict(list)
    for pid, process in last.items():
        kinds[process.name].append(pid)
    print(f"{'':40}  count  CPU s to ready   RSS MB   PSS MB  % of a core at rest")
    for name, pids in sorted(kinds.items(), key=lambda kind: -sum(last[pid].pss for pid in kind[1])):
        _line(name, pids, first, last, rest_s)
    _line("all", list(last), first, last, rest_s)


def _line(name: str, pids: list[int], first: dict[int, Usage], last: dict[int, Usage], rest_s: float) -> None:
    started = sum(first[pid].cpu for pid in pids if pid in first)
    rest = 100 * (sum(last[pid].cpu for pid in pids) - started) / rest_s
    rss, pss = (sum(share) / _MB for share in zip(*((last[pid].rss, last[pid].pss) for pid in pids), strict=True))
    print(f"{name:40}  {len(pids):5}  {started:14.1f} {rss:8.0f} {pss:8.0f}  {rest:19.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--rest", type=float, default=20.0, help="Seconds for which it is measured at rest.")
    parser.add_argument("arguments", nargs="*", help="Passed on to ling serve.")
    asked = parser.parse_args()
    measure(asked.arguments, asked.rest)
