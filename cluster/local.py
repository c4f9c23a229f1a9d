"""A Ray cluster on this machine that always ends completely."""

import atexit
import ctypes
import logging
import os
import sys
from pathlib import Path

import ray
from ray._private.node import Node

from cluster.daemons import Daemons, RayLost, be_patient, wait_for_the_node
from cluster.ending import end_descendants, remove
from wire.logs import describe

_PR_SET_CHILD_SUBREAPER = 36
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
_PATIENCE_S = 1.0


class LocalRay:
    """Starts on `start`; `end` leaves no process and no file behind."""

    def __init__(self, folder: Path, metrics_port: int | None) -> None:
        """folder: for all its files. metrics_port: where its metrics agent listens; None for any free port."""
        self._metrics_port = metrics_port
        self.folder = folder
        self.daemons = Daemons(folder)

    def start(self) -> None:
        """Start the cluster and connect to it; RayLost if it does not come up."""
        _adopt_orphans()
        _leave_out("start_monitor", "start_log_monitor", "start_api_server")
        be_patient(self.folder)
        wait_for_the_node()
        # Files that the cluster's processes leave in their temporary folder are removed with this folder.
        os.environ["TMPDIR"] = str(self.folder)
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _metrics_export_port=self._metrics_port,
                _temp_dir=str(self.folder),
            )
        except Exception as error:  # Ray raises plain exceptions, e.g. when its node is late on a busy machine
            raise RayLost(
                f"Ray did not start on this machine: {describe(error)}; if it is short of memory or CPU, end what else "
                "runs, and try again"
            ) from error
        logging.getLogger("ray.serve").setLevel(logging.ERROR)

    def end(self, keep_logs: bool, disconnect: bool, spared: int | None = None) -> None:
        """End every descendant of this process but `spared`, by its id.

        disconnect: whether nothing calls Ray any more; a call after a disconnection would start Ray again.
        """
        if disconnect:
            ray.shutdown()
        else:
            # At the interpreter's exit Ray would wait for processes that are gone.
            atexit.register(os._exit, 1)
        end_descendants(patience_s=_PATIENCE_S, spared=spared)
        if not keep_logs:
            remove(self.folder)


def _leave_out(*starts: str) -> None:
    """Start Ray without what one machine does not need: the autoscaler, the log monitor that brings workers' output to
    the driver, and the dashboard's server, which runs even where there is no dashboard.

    `ray.init` has no setting for them. The names are private to Ray; its release is pinned.
    """
    for name in starts:
        if not hasattr(Node, name):
            raise AttributeError(f"ray.{ray.__version__} has no Node.{name}")
        setattr(Node, name, lambda self, *args, **kwargs: None)


def _adopt_orphans() -> None:
    """Make processes whose parent dies children of this process (Linux), so that all can be found at the end."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
