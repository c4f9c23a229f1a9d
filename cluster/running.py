"""Runs a cluster on this machine, from its first process to its last."""

import functools
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import httpx
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, DeploymentStatusTrigger
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from cluster.app import application, gpus
from cluster.config import ClusterConfig, ConfigError
from cluster.ending import ABANDONED, abandon
from cluster.entries import Failure, Listing
from cluster.hints import hints
from cluster.last_resort import LastResort
from cluster.local import LocalRay
from cluster.ray_thread import RayThread
from cluster.resolve import Found, Resolved, resolve
from cluster.signals import ENDING, EndingSignals
from cluster.status import render
from cluster.terminal import own_console
from wire.logs import describe

_APP = "ling"
_POLL_S = 0.2
_SIGNAL_POLL_S = 0.5
_CALL_S = 5.0
# Seconds to end streams, ranks and connections, after draining.
_CLOSING_S = 5.0
# Seconds after a signal; a process that takes longer is ended from outside.
_HEEDED_S = 5.0


class _Watch:
    """The directory's listings, as they change."""

    def __init__(self, every_s: float) -> None:
        """every_s: how often the caller wants to check other things meanwhile."""
        self._every_s = every_s
        self._listing = Listing("", (), ())
        self._call: Any = None

    def __iter__(self) -> Iterator[Listing]:
        """The latest listing: as soon as it changes, and every so many seconds."""
        while True:
            try:
                if self._call is None:
                    directory = serve.get_deployment_handle("Directory", app_name=_APP)
                    self._call = directory.watch.remote(self._listing.version)
                self._listing = self._call.result(timeout_s=self._every_s)
                self._call = None
            except TimeoutError:
                pass  # nothing has changed: the call goes on
            except (KeyError, ray.exceptions.RayError, serve.exceptions.RayServeException):
                self._call = None  # it is still starting, or being replaced
                time.sleep(self._every_s)
            yield self._listing


class StartError(RuntimeError):
    """The cluster did not start; the message is the first error."""


def run(
    config: ClusterConfig, found: Found, folder: Path, metrics_port: int | None, signals: EndingSignals
) -> NoReturn:
    """Start the cluster, serve until an ending signal, drain, and end this process. A second signal ends it without
    draining.

    folder: for the cluster's files; it is removed at the end. ConfigError and StartError if the cluster did not come
    up.
    """
    began = time.monotonic()
    local = LocalRay(folder, metrics_port)
    last_resort = LastResort(ENDING, folder, _HEEDED_S, config.drain_s + _CLOSING_S + _HEEDED_S)
    signals.abandon_by(functools.partial(abandon, folder, last_resort.pid))
    in_ray = RayThread()
    failed, status = True, ABANDONED
    with own_console(local.folder / "driver.log") as console:

        def look_after_ray() -> None:
            if done := local.daemons.check():
                console.print(f"[red]{done}[/]", highlight=False)
            if signals.asked:
                raise InterruptedError

        try:
            with suppress(InterruptedError):
                with console.status("starting Ray…") as progress:
                    in_ray.do(local.start, look_after_ray)
                    signals.take()
                    # From here on routers may have requests, so ending includes draining.
                    signals.defer()
                    last_resort.serves()
                    resolved = in_ray.do(lambda: _start(config, found, progress, signals), look_after_ray)
                _announce(resolved, time.monotonic() - began, console)
                status = 0
                in_ray.do(lambda: _follow(signals, console), look_after_ray)
            console.print("ending…")
            _drain(config.drain_s, signals, in_ray)
            failed = False
        finally:
            signals.ignore()
            local.end(keep_logs=failed, disconnect=in_ray.idle, spared=last_resort.pid)
            if in_ray.idle:
                last_resort.end()
            if failed:
                console.print(f"Ray's logs: {local.folder}", highlight=False, soft_wrap=True)
    # The interpreter's exit would take two seconds for what Ray and Serve left in this process.
    os._exit(status)


def _start(config: ClusterConfig, found: Found, progress: Status, signals: EndingSignals) -> Resolved:
    """Return once the cluster serves; InterruptedError at an ending signal."""
    resolved = _on_device(config, found)
    progress.update("starting Serve…")
    target = serve.RunTarget(application(resolved), name=_APP)
    try:
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except Exception as error:  # Ray raises plain exceptions
        raise StartError(f"Serve did not start: {describe(error)}") from error
    pools = (resolved.config.prefill, resolved.config.decode)
    with _router(resolved) as router:
        for listing in _Watch(_POLL_S):
            if signals.asked:
                raise InterruptedError
            if listing.failures:
                raise StartError(_told(listing.failures[0]))
            _check_deployed()
            up, wanted = len(listing.workers), sum(pool.replicas for pool in pools)
            ways = sorted({f"{worker.role}: {worker.progress}" for worker in listing.starting})
            progress.update("\n".join([f"{up} of {wanted} workers are up…", *map(escape, ways)]))
            if up >= wanted and _ready(router):
                break
    return resolved


def _follow(signals: EndingSignals, console: Console) -> None:
    """Print which workers end, until a signal."""
    told = 0
    for listing in _Watch(_SIGNAL_POLL_S):
        for failure in listing.failures[told:]:
            console.print(f"[red]{escape(_told(failure))}[/]; Ray starts it again", highlight=False)
        told = len(listing.failures)
        if signals.asked:
            return


def _on_device(config: ClusterConfig, found: Found) -> Resolved:
    """The config for the device that Ray found; ConfigError if Ray has too few GPUs."""
    there = gpus()
    resolved = resolve(config, there, found)
    need = sum(pool.replicas * pool.tp for pool in (config.prefill, config.decode))
    if resolved.config.device == "cuda" and there < need:
        raise ConfigError(
            f"device: {need} ranks need a GPU each and Ray found {there:g}; "
            "lower prefill.replicas, decode.replicas or tp, or set device to cpu"
        )
    return resolved


def _check_deployed() -> None:
    """StartError once Serve has given up on a deployment, with reasons that a worker could not report itself.

    A replica that was up and failed its health check is no reason: Serve replaces it, though it calls the deployment
    failed.
    """
    app = serve.status().applications.get(_APP)
    if app is None or app.status not in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
        return
    told = [d for d in app.deployments.values() if d.message]
    given_up = [d for d in told if d.status_trigger != DeploymentStatusTrigger.HEALTH_CHECK_FAILED]
    if given_up or not told:
        raise StartError("\n".join(d.message for d in given_up) or app.message)


def _ready(router: httpx.Client) -> bool:
    try:
        return router.get("/ready").is_success
    except httpx.HTTPError:
        return False


def _router(resolved: Resolved) -> httpx.Client:
    # No proxy stands between this machine and itself.
    return httpx.Client(base_url=_url(resolved), timeout=_CALL_S, trust_env=False)


def _url(resolved: Resolved) -> str:
    """The routers' address, as reached from this machine."""
    config = resolved.config
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


def _told(failure: Failure) -> str:
    return f"{failure.role} worker {failure.worker_id}: {failure.reason}"


def _announce(resolved: Resolved, seconds: float, console: Console) -> None:
    url = _url(resolved)
    with _router(resolved) as router:
        status = router.get("/status").json()
    console.print(f"[bold green]{escape(resolved.served_name)}[/] is served at [bold]{url}[/] after {seconds:.0f} s\n")
    console.print(render(status))
    told = hints(url, resolved.config.router.api_keys)
    console.print(f"\n{told}\nCtrl-C ends everything.", soft_wrap=True, markup=False, highlight=False)


def _drain(drain_s: float, signals: EndingSignals, in_ray: RayThread) -> None:
    """Shut the application down: routers stop accepting, and running requests get `drain_s` to end.

    It takes at most that and _CLOSING_S, in whatever state Ray is.
    """
    deadline = time.monotonic() + drain_s + _CLOSING_S

    def take_down() -> None:
        serve.delete(_APP, _blocking=False)
        while _APP in serve.status().applications and time.monotonic() < deadline and signals.asked < 2:
            time.sleep(_POLL_S)

    def look_at_the_clock() -> None:
        if signals.asked > 1 or time.monotonic() > deadline:
            raise TimeoutError

    try:
        in_ray.do(take_down, look_at_the_clock)
    except TimeoutError:
        return
    except (ray.exceptions.RayError, serve.exceptions.RayServeException) as error:
        raise RuntimeError(f"the cluster ended before it could drain: {error}") from error
