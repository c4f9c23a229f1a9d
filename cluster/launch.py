"""`ling serve` up to the import of Ray, which reads its environment when it is imported."""

import errno
import functools
import os
import secrets
import signal
import socket
import tempfile
from pathlib import Path

from rich.console import Console

from cluster.checkpoint import check_files
from cluster.config import ClusterConfig, ConfigError
from cluster.ending import abandon
from cluster.fetch.terminal import fetch_shown
from cluster.resolve import find, resolve
from cluster.signals import ENDING, EndingSignals
from wire.tls import TlsError, tls
from workers.local import FORK_SERVER, ForkServer


def serve_here(config: ClusterConfig, metrics_port: int | None = None) -> None:
    """Serve on this machine until the user ends it. metrics_port: of loopback, for Prometheus; None for any free one.

    Raises ConfigError for settings that can't be served, FetchError for a checkpoint that can't be fetched, StartError
    if the cluster did not start.
    """
    if config.port is None:
        raise ConfigError("port: `ling serve` listens by itself and needs a port")
    found = find(config)
    resolve(config, gpus=0, found=found)  # refuse before weights are fetched
    _check_port(config.host, config.port, "port")
    if metrics_port is not None:
        _check_port("127.0.0.1", metrics_port, "--metrics-port")
    if found.origin is not None and config.load != "synthetic":
        fetch_shown(found.origin.weights, Console(stderr=True))
    check_files(config, found.folder)
    _check_folders(config)
    try:
        tls()
    except TlsError as error:
        raise ConfigError(str(error)) from error
    folder, signals = _folder_that_goes()
    try:
        # The fork server imports torch while Ray starts.
        forks = ForkServer(folder, folder / "ranks.log")
        _set_environment(forks.address)
        from cluster.running import run  # noqa: PLC0415 - Ray must not be imported before

        run(config, found, folder, metrics_port, signals)
    finally:
        signals.restore()


def _folder_that_goes() -> tuple[Path, EndingSignals]:
    """A temporary folder for the cluster's files. From now on an ending signal ends what was started and removes it."""
    # No signal may come between these two lines.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        folder = Path(tempfile.mkdtemp(prefix="ling-"))
        return folder, EndingSignals(functools.partial(abandon, folder))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_folders(config: ClusterConfig) -> None:
    """ConfigError if nothing can be written where a folder lies, or will be made."""
    for setting, given in (("router.data_dir", config.router.data_dir), ("cache.disk_dir", config.cache.disk_dir)):
        if given is None:
            continue
        folder = Path(given).expanduser().absolute()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            raise ConfigError(
                f"{setting}: nothing can be written to {nearest} ({error.strerror}); choose another folder"
            ) from error


def _check_port(host: str, port: int, setting: str) -> None:
    """ConfigError if the port is taken. Routers share their port, so binding beside another cluster's would succeed,
    and split the requests.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                setting = "host"
            raise ConfigError(f"{setting}: can't listen on {host}:{port} ({error.strerror}); choose another") from error


def _set_environment(fork_server: str) -> None:
    """Configure Ray: loopback only, a secret for this run, and no needless background work."""
    os.environ.update(
        {FORK_SERVER: fork_server},
        # This switch makes Ray bind to loopback instead of the machine's address.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0",
        # Ray runs its workers at nice 15, but serving is no background job.
        RAY_worker_niceness="0",
        RAY_SERVE_LOG_TO_STDERR="0",
        # By default Serve's controller checks its replicas ten times a second, which takes 3 % of a core.
        RAY_SERVE_CONTROL_LOOP_INTERVAL_S="0.4",
        # By default Serve's replicas report their own figures ten times a second; nobody reads them that often.
        RAY_SERVE_METRICS_EXPORT_INTERVAL_MS="5000",
        # Ray warns that it will one day leave CUDA_VISIBLE_DEVICES alone; the setting is the coming behaviour.
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )
    os.environ.pop("RAY_ADDRESS", None)
