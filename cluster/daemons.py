"""Ray's own processes on this machine: waits long enough for them to start, and notices one that dies."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import services

from cluster.restarts import Restarts

# A busy laptop takes minutes for what an idle one does in seconds. A failure is seen earlier, by the process's end.
START_S = 300
_POLL_S = 0.1


class RayLost(RuntimeError):
    """Ray can't continue; the message says which of its processes ended, and where its log is."""


def be_patient(folder: Path) -> None:
    """Set Ray's timeouts for the processes of the cluster that this process starts next. folder: for the GCS's tables.

    With its tables on disk, a GCS that is started anew knows what the one before it knew.
    """
    os.environ.update(
        RAY_gcs_storage="rocksdb",
        RAY_gcs_storage_path=str(folder / "gcs"),
        RAY_gcs_server_port_wait_time_s=str(START_S),
        # A raylet ends itself when its agents take longer than this to start.
        RAY_agent_register_timeout_ms=str(START_S * 1000),
        RAY_worker_register_timeout_seconds=str(START_S),
        # The GCS counts the only node as lost after so many checks of 3 s.
        RAY_health_check_failure_threshold=str(START_S // 3),
    )


def patient(
    ask: Callable[..., Any], seconds: float = START_S, sleep: Callable[[float], None] = time.sleep
) -> Callable[..., Any]:
    """Wrap `ask` so that it is repeated for so long before its RuntimeError is raised."""

    def asked(*arguments: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() >= deadline:
                    raise
                sleep(_POLL_S)

    return asked


def wait_for_the_node() -> None:
    """Make `ray.init` wait START_S for this machine's raylet; its own 30 s are fixed in `Node.__init__`."""
    services.get_node = patient(services.get_node)


class Daemons:
    """The raylet and the GCS that descend from this process. The main thread calls `check` often."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder / "session_latest" / "logs"
        self._found: dict[str, psutil.Process] = {}
        self._restarts = Restarts()

    def check(self) -> str | None:
        """Restart a GCS that ended; returns a message, or None if none ended. RayLost if a process ended for good."""
        self._find()
        if self._ended("raylet"):
            raise RayLost(self._told("raylet"))
        if not self._ended("gcs_server"):
            return None
        node = ray._private.worker._global_node
        if node is None or not self._restarts.allow(time.monotonic()):
            raise RayLost(self._told("gcs_server"))
        node.kill_gcs_server(check_alive=False)
        node.start_gcs_server()
        del self._found["gcs_server"]
        return "Ray's GCS ended and was started again; requests go on"

    def _find(self) -> None:
        if len(self._found) < 2:
            for process in psutil.Process().children():
                try:
                    name = process.name()
                    if name in ("raylet", "gcs_server") and process.status() != psutil.STATUS_ZOMBIE:
                        self._found.setdefault(name, process)
                except psutil.NoSuchProcess:
                    continue

    def _ended(self, name: str) -> bool:
        process = self._found.get(name)
        try:
            return process is not None and process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _told(self, name: str) -> str:
        log = self._logs / f"{name}.out"
        return f"Ray's {name} ended, and nothing can go on without it; its log, {log}, says why: {_last_line(log)}"


def _last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "there is no such log"
    return lines[-1] if lines else "it is empty"
