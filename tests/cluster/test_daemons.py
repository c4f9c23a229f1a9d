"""Tests what `ling serve` does when Ray's own processes are slow or die."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cluster import daemons, keep_gcs
from cluster.daemons import Daemons, RayLost, patient
from cluster.ray_thread import RayThread
from cluster.restarts import Restarts
from tests.cluster.serving import Serving, kill

BODY = {"model": "auto", "max_tokens": 40, "messages": [{"role": "user", "content": "Hello"}]}


def test_ling_serve_waits_for_a_slow_node_and_gives_up_a_missing_one() -> None:
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), "there"])

    def ask(name: str) -> str:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return f"{name} {answer}"

    assert patient(ask, seconds=60, sleep=lambda _: None)("node") == "node there"
    with pytest.raises(RuntimeError, match="never"):
        patient(lambda: (_ for _ in ()).throw(RuntimeError("never")), seconds=0)()


def test_a_daemon_that_keeps_ending_is_restarted_three_times_a_minute() -> None:
    restarts = Restarts()
    assert [restarts.allow(now) for now in (0.0, 1.0, 2.0, 3.0, 59.0, 60.0, 60.5, 61.0)] == [
        True, True, True, False, False, True, False, True,
    ]  # fmt: skip


def test_a_head_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match="no Ray head with a GCS at port 1 runs here"):
        keep_gcs.keep(1)


def test_a_kept_gcs_is_started_alike_until_the_raylet_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs that only wait replace GCS and raylet; the first one writes a line at its start."""
    begins = [sys.executable, "-c", "import os, time; print(os.environ['WHO'], flush=True); time.sleep(300)"]
    with (tmp_path / "log").open("w") as log:
        gcs = subprocess.Popen(begins, stdout=log, stderr=log, env={"WHO": "the GCS"})
    raylet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    monkeypatch.setattr(keep_gcs, "find", lambda port: (psutil.Process(gcs.pid), psutil.Process(raylet.pid)))
    looks = threading.Event()

    def begun() -> Restarts:
        looks.set()
        return Restarts()

    monkeypatch.setattr(keep_gcs, "Restarts", begun)
    keeping = threading.Thread(target=keep_gcs.keep, args=(1,))
    own = psutil.Process()
    try:
        keeping.start()

        def lines(count: int) -> None:
            deadline = time.monotonic() + 60
            while (tmp_path / "log").read_text().splitlines() != ["the GCS"] * count:
                assert time.monotonic() < deadline
                time.sleep(0.02)

        lines(1)
        assert looks.wait(60)
        gcs.kill()
        gcs.wait()
        lines(2)
        raylet.kill()
        keeping.join(60)
        assert not keeping.is_alive()
    finally:
        raylet.kill()
        for process in [p for p in own.children() if p.cmdline()[1:] == begins[1:]]:
            process.kill()


def test_an_error_of_a_check_ends_the_wait_but_not_the_work() -> None:
    thread, go, done = RayThread(), threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        done.set()

    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        thread.do(work, check)
    go.set()
    assert thread.do(done.is_set, lambda: None)
    with pytest.raises(ZeroDivisionError):
        thread.do(lambda: 1 // 0, lambda: None)


def test_the_error_of_a_raylet_that_dies_at_the_start_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead:
        def name(self) -> str:
            return "raylet"

        def status(self) -> str:
            return self.state

        state = psutil.STATUS_RUNNING

    process = Dead()
    monkeypatch.setattr(daemons.psutil, "Process", type("Own", (), {"children": lambda _: [process]}))
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("it begins\nno space left on device\n\n")
    watched = Daemons(tmp_path)
    assert watched.check() is None
    process.state = psutil.STATUS_ZOMBIE
    with pytest.raises(RayLost, match=r"raylet ended.*raylet\.out, says why: no space left on device"):
        watched.check()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Serving]:
    started = Serving("--tp", "1", "--set", "drain_s=1")
    try:
        started.wait_ready()
        yield started
    finally:
        if started.process.poll() is None:
            started.end()


def running(process: psutil.Process, name: str) -> bool:
    """Whether a process has this name and runs; False if it ends meanwhile."""
    try:
        return process.name() == name and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def daemons_named(cluster: Serving, name: str) -> list[psutil.Process]:
    """Ray's running daemons of this name; none while `ling serve` restarts one."""
    return [p for p in psutil.Process(cluster.process.pid).children() if running(p, name)]


@pytest.mark.cluster
def test_ling_serve_survives_the_death_of_its_gcs(cluster: Serving) -> None:
    """Under load no request fails, and afterwards Ray can still restart a worker."""
    going = threading.Event()

    def ask() -> list[int]:
        codes = []
        while not going.is_set() or len(codes) < 3:
            codes.append(cluster.client.post("/v1/chat/completions", json=BODY).status_code)
        return codes

    (first,) = daemons_named(cluster, "gcs_server")
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        try:
            first.kill()
            cluster.until(lambda: [p.pid for p in daemons_named(cluster, "gcs_server")] not in ([], [first.pid]), 60)
        finally:
            going.set()
        codes = [code for future in asked for code in future.result()]
    assert set(codes) == {200}
    (worker,) = cluster.workers("decode")
    kill(worker["pid"])
    cluster.until(
        lambda: [w["id"] for w in cluster.workers("decode") if w["state"] == "live"] not in ([], [worker["id"]]), 120
    )
    assert cluster.client.post("/v1/chat/completions", json=BODY).status_code == 200


@pytest.mark.cluster
def test_ling_serve_ends_with_an_error_when_its_raylet_dies(cluster: Serving) -> None:
    family = psutil.Process(cluster.process.pid).children(recursive=True)
    (raylet,) = daemons_named(cluster, "raylet")
    raylet.kill()
    printed, _ = cluster.process.communicate(timeout=60)
    assert cluster.process.returncode == 1
    assert "Ray's raylet ended" in printed
    assert "Traceback" not in printed
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left


@pytest.mark.cluster
def test_a_signal_ends_ling_serve_even_if_ray_does_not_answer() -> None:
    """A SIGTERM ends it even while Ray starts and holds Python's lock because its GCS is stopped."""
    started = Serving("--tp", "1")
    parent = psutil.Process(started.process.pid)
    deadline = time.monotonic() + 60
    while not (found := [p for p in parent.children() if running(p, "gcs_server")]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found[0].suspend()
    family = parent.children(recursive=True)
    started.process.send_signal(signal.SIGTERM)
    started.process.communicate(timeout=60)
    assert started.process.returncode in (130, -signal.SIGKILL)
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left
