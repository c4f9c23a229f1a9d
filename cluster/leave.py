"""Takes a node out of the cluster: `python -m cluster.leave SECONDS`, before its container is stopped.

Ray is told that the node leaves. Serve then starts the node's replicas on other nodes first, where there is room, and
ends those here with the usual time for running requests; after SECONDS it ends them in any case.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

_POLL_S = 1.0
# The process titles that Ray sets.
_REPLICA = "ray::ServeReplica"


def replicas() -> int:
    """Serve replicas on this machine or in this container."""
    lines = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return sum(bool(line) and line[0].startswith(_REPLICA) for line in lines)


def drain(seconds: int) -> bool:
    """Tell Ray; False, after printing Ray's reason, if that failed: then nothing here ends by itself."""
    options = {
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "the node is stopped",
        "deadline-remaining-seconds": str(seconds),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return not subprocess.run(["ray", "drain-node", *words], check=False).returncode


def wait(deadline: float, left: Callable[[], int] = replicas, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Wait until no replica is left; False if `deadline`, by the monotonic clock, comes first."""
    while left():
        if time.monotonic() >= deadline:
            return False
        sleep(_POLL_S)
    return True


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.leave", description="Leave the cluster in good order.")
    parser.add_argument("seconds", type=int, help="Time until the node is gone.")
    seconds = parser.parse_args().seconds
    deadline = time.monotonic() + seconds
    return 0 if drain(seconds) and wait(deadline) else 1


if __name__ == "__main__":
    sys.exit(_main())
