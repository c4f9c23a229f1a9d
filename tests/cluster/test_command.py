"""Tests how `ling serve` and `serve run` start, fail and end as processes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.cluster import doors
from tests.cluster.serving import Serving, free_port, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

BASE = Path(__file__).parent.parent / "golden" / "base"
BODY = {
    "model": "auto", "stream": True, "max_tokens": 4000, "ignore_eos": True,
    "messages": [{"role": "user", "content": "Hello"}],
}  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because paths of Unix sockets in it must fit into 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def test_ling_serve_is_light_listens_on_loopback_and_ends_streams_with_an_error() -> None:
    with serving("--tp", "2", "--set", "drain_s=0.5") as cluster:
        family = [psutil.Process(cluster.process.pid), *cluster.family]
        assert sum(p.memory_info().rss for p in family) < 8 * 2**30
        knock_everywhere(family, cluster)
        with cluster.client.stream("POST", "/v1/chat/completions", json=BODY) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            cluster.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert '"error"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert cluster.process.wait(60) == 0
        _, left = psutil.wait_procs(family, timeout=10)
        assert not left


def knock_everywhere(family: list[psutil.Process], cluster: Serving) -> None:
    """Check that all sockets listen on loopback, and that only the router answers clients without key or token."""
    found = doors.listening(family)
    assert {ip for ip, _ in found} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    pools = cluster.status()["pools"]
    workers = [w for pool in pools.values() for w in pool["workers"]]
    guarded: set[str] = set()
    for port in {port for _, port in found} - {cluster.port}:
        answer = doors.http_get(port)
        # Ray gives its own figures, and no more, to whoever asks.
        assert answer is None or answer.status_code in (401, 403, 404) or answer.text.startswith("# HELP"), port
        codes = doors.grpc_codes(port)
        assert set(codes.values()) <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}, (port, codes)
        guarded |= {method for method, code in codes.items() if code == "UNAUTHENTICATED"}
    assert guarded == set(doors.METHODS)
    assert workers
    for worker in workers:
        assert doors.bytes_for_garbage(worker["port"]) <= 32


def test_a_worker_that_cant_start_ends_the_command_with_its_error(folder: Path) -> None:
    model = folder / "broken"
    shutil.copytree(BASE, model)
    shard = model / "model-00001-of-00001.safetensors"
    tensors = load_file(shard)
    tensors["model.norm.weight"][3] = float("nan")  # seen by who loads it, not before
    save_file(tensors, shard)
    process = start(folder, "serve", "--model", str(model), "--port", str(free_port()))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "worker" in output
    assert shard.name in output
    assert "Traceback" not in output


def test_ctrl_c_during_the_start_leaves_no_process(folder: Path) -> None:
    process = start(folder, "serve", "--port", str(free_port()))
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not (family := parent.children(recursive=True)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left
    assert list(folder.iterdir()) == []


def start(temporary: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )


def test_serve_run_starts_and_ends_the_application(folder: Path) -> None:
    port = free_port()
    config: dict[str, Any] = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "ling",
                "route_prefix": "/",
                "import_path": "cluster.app:build",
                "args": {"served_name": "mine", "prefill": {"tp": 1}, "router": {"max_queue": 5}},
            }
        ],
    }
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    said = folder / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "run", str(file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {
                "RAY_AUTH_MODE": "disabled",
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_TMPDIR": str(folder),
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )
    parent = psutil.Process(process.pid)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + 150
            while not answers(client):
                assert process.poll() is None, said.read_text()[-3000:]
                assert time.monotonic() < deadline, said.read_text()[-3000:]
                time.sleep(0.2)
            with client.stream("POST", "/v1/chat/completions", json=BODY | {"max_tokens": 5}) as response:
                lines = [line for line in response.iter_lines() if line]
            assert lines[-1] == "data: [DONE]"
            assert len(lines) > 2
            status = client.get("/status").json()
            assert (status["model"], status["router"]["max_queue"]) == ("mine", 5)
    finally:
        family = parent.children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _, left = psutil.wait_procs(family, timeout=20)
        for one in left:
            one.kill()
    assert not left


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").is_success
    except httpx.TransportError:
        return False
