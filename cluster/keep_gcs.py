"""Starts the GCS of this machine's Ray head anew when it ends: `python -m cluster.keep_gcs [PORT]`, after `ray start`.

`ray start --head` leaves no process that does so. A GCS that keeps its tables on disk (RAY_gcs_storage=rocksdb) and is
started again at its port has the old one's state; raylets wait for it, and workers and routers continue to serve. This
process ends when the head's raylet ends, which `ray stop` ends first.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from cluster.restarts import Restarts

_PORT = 6379
_POLL_S = 0.2


def find(port: int) -> tuple[psutil.Process, psutil.Process]:
    """The GCS that listens on the port, and the raylet that belongs to it; SystemExit if there is none."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] != "gcs_server" or f"--gcs_server_port={port}" not in process.info["cmdline"]:
            continue
        session = _value(process.info["cmdline"], "--session-name=")
        for raylet in psutil.process_iter(["name", "cmdline"]):
            if raylet.info["name"] == "raylet" and _value(raylet.info["cmdline"], "--session-name=") == session:
                return process, raylet
    raise SystemExit(f"no Ray head with a GCS at port {port} runs here: start it with `ray start --head` first")


def _value(command: list[str], option: str) -> str | None:
    return next((word.removeprefix(option) for word in command if word.startswith(option)), None)


def keep(port: int) -> None:
    """Restart the GCS until the raylet ends; SystemExit if the GCS ends too often."""
    gcs, raylet = find(port)
    command, environment, folder = gcs.cmdline(), gcs.environ(), gcs.cwd()
    logs = [Path(f"/proc/{gcs.pid}/fd/{n}").resolve() for n in (1, 2)]
    restarts = Restarts()
    print(f"looks after the GCS at port {port}, process {gcs.pid}", flush=True)
    while raylet.is_running() and raylet.status() != psutil.STATUS_ZOMBIE:
        if not gcs.is_running() or gcs.status() == psutil.STATUS_ZOMBIE:
            if not restarts.allow(time.monotonic()):
                raise SystemExit(f"the GCS ends again and again; its log says why: {logs[1]}")
            with logs[0].open("ab") as out, logs[1].open("ab") as err:
                started = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=err)
            gcs = psutil.Process(started.pid)
            print(f"{time.strftime('%F %T')} the GCS ended and was started anew as process {gcs.pid}", flush=True)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    keep(int(sys.argv[1]) if len(sys.argv) > 1 else _PORT)
