"""Completes a config for this machine and its checkpoint: fills in unset values, and refuses what does not fit."""

import os
import tempfile
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cluster.checkpoint import find_checkpoint
from cluster.config import ClusterConfig, ConfigError, pages_too_few
from cluster.costs import costs_of
from cluster.fetch.fetch import Origin
from cluster.fetch.location import remote
from cluster.metrics_limit import limit_of
from cluster.parse import parse
from router.config import Pools, RouterConfig
from wire.logs import LogSettings
from wire.protocol import Role
from workers.config import WorkerConfig
from workers.model.config import LingConfig
from workers.sizes import default_step_tokens

# The default model: a small trained checkpoint that comes with the code.
EMBEDDED = Path(__file__).parent.parent / "checkpoints" / "ling-nano"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config with an existing and fitting checkpoint; `config.model`, `served_name` and `device` are set.

    model: the checkpoint's folder on the host that resolved it; if `origin` is set, other hosts fetch it into folders
    of their own (`moved`). run: a unique name of this run of the cluster.
    """

    config: ClusterConfig
    model: str
    served_name: str
    origin: Origin | None = None
    max_model_len: int | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def moved(self, folder: Path) -> "Resolved":
        """The same config for a host with the checkpoint in another folder."""
        return replace(self, model=str(folder))


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint whose description is in a folder of this host, and the name that clients know it by.

    origin: where every host gets the weights from; None where they are in the folder, at the same path on every host.
    """

    folder: Path
    name: str
    origin: Origin | None = None


def find(config: ClusterConfig) -> Found:
    """The checkpoint that `model` names; of a remote one only the description is fetched. ConfigError, FetchError."""
    if config.model is None:
        return Found(EMBEDDED, EMBEDDED.name)
    place = remote(config.model)
    if place is None:
        folder = find_checkpoint(config.model)
        return Found(folder, folder.name)
    cache = None if config.model_cache is None else Path(config.model_cache).expanduser().resolve()
    fetched = Origin(place, cache).description()
    return Found(fetched.folder, place.name, fetched.origin)


def resolve(config: ClusterConfig, gpus: float, found: Found | None = None) -> Resolved:
    """Set the checkpoint and the device; ConfigError if that fails.

    gpus: the number that the Ray cluster has. found: the checkpoint, if it was found already.
    """
    found = found or find(config)
    folder = found.folder
    device = config.device if config.device != "auto" else "cuda" if gpus else "cpu"
    settled = {"model": str(folder), "device": device, **_routers(config), **_keys_file(config), **_folders(config)}
    resolved = parse(config.model_dump(), settled)
    longest = _check_checkpoint(resolved, folder)
    try:
        limit_of(str(folder), resolved.card, resolved.decode.tp)
    except ValueError as error:
        raise ConfigError(f"card: {error}") from None
    return Resolved(resolved, str(folder), config.served_name or found.name, found.origin, longest)


def routers_for(cores: int) -> int:
    """The number of routers on a host with so many cores, if it is not set. Each keeps at most one core busy."""
    return max(1, min(4, cores // 8))


def _routers(config: ClusterConfig) -> dict[str, int]:
    if config.router.replicas != "auto":
        return {}
    return {"router.replicas": routers_for(len(os.sched_getaffinity(0)))}


def _keys_file(config: ClusterConfig) -> dict[str, str]:
    """The absolute path of the keys' file: replicas start in folders of their own."""
    if config.router.api_keys is None:
        return {}
    file = Path(config.router.api_keys).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(
            f"router.api_keys: no file at {file}; make one with `python -m router.access.keys TENANT >> FILE`"
        )
    return {"router.api_keys": str(file)}


def _folders(config: ClusterConfig) -> dict[str, str]:
    """The config with absolute paths of folders, which are created with their first files."""
    found: dict[str, str] = {}
    for setting, given in (("router.data_dir", config.router.data_dir), ("cache.disk_dir", config.cache.disk_dir)):
        if given is not None:
            folder = Path(given).expanduser().resolve()
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"{setting}: {folder} is no folder")
            found[setting] = str(folder)
    return found


def _check_checkpoint(config: ClusterConfig, folder: Path) -> int:
    """Check the config against the checkpoint; returns the longest context, in tokens."""
    try:
        model = LingConfig.load(folder, config.model_overrides)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {error}") from error
    for role, pool in config.pools.items():
        try:
            model.check_tp(pool.tp)
        except ValueError as error:
            raise ConfigError(f"{role}.tp: {error}") from error
    if isinstance(config.speculate, int) and not model.mtp_layers:
        raise ConfigError(
            f"speculate: {config.speculate} drafts need an MTP layer, and {folder} has none; use auto or off"
        )
    longest = config.max_model_len or model.max_model_len
    if longest > model.max_model_len:
        raise ConfigError(
            f"max_model_len: {longest} exceeds the checkpoint's context of {model.max_model_len}; "
            "lower it, or widen the context with rope_scaling in model_overrides"
        )
    if config.pages is not None and (found := pages_too_few(config.pages, config.page_size, longest)):
        raise ConfigError(found[0])
    return longest


def worker_config(resolved: Resolved, role: Role, host: str, secret: str) -> WorkerConfig:
    """The settings of one worker of a pool; it listens on `host`, to processes that know the secret."""
    config = resolved.config
    device: Literal["cpu", "cuda"] = "cuda" if config.device == "cuda" else "cpu"
    return WorkerConfig(
        model=resolved.model,
        tp=config.pool(role).tp,
        dtype=config.dtype,
        device=device,
        page_size=config.page_size,
        pages=config.pages,
        slots=config.slots,
        max_model_len=config.max_model_len,
        max_step_tokens=config.max_step_tokens or default_step_tokens(role, device, config.slots),
        handoff_window=config.handoff.window,
        handoff_timeout_s=config.handoff.timeout_s,
        resume_s=config.resume_s,
        cache_states=config.cache.states(config.slots),
        cache_answer_tokens=config.cache.answer_tokens,
        cache_host_bytes=config.cache.host_bytes,
        cache_state_dtype=config.cache.state_dtype,
        cache_disk_dir=config.cache.disk_dir,
        cache_disk_bytes=config.cache.disk_bytes,
        cache_disk_ttl_s=config.cache.disk_ttl_s,
        collectives=config.collectives,
        channel=config.handoff.channel,
        model_overrides=config.model_overrides,
        version=None if resolved.origin is None else resolved.origin.version,
        load=config.load,
        verify=config.verify,
        cuda_graphs=config.cuda_graphs,
        speculate=config.speculate,
        host=host,
        secret=secret,
        logs=log_settings(resolved.config),
    )


def log_settings(config: ClusterConfig) -> LogSettings:
    """The log settings of every process of the cluster."""
    return LogSettings(config.logs.format, config.logs.level)


def router_config(resolved: Resolved, name: str, secret: str) -> RouterConfig:
    """The settings of one router. name: what workers call it. secret: what it proves to workers."""
    return RouterConfig(
        served_model_name=resolved.served_name,
        tokenizer=resolved.model,
        name=name,
        secret=secret,
        run_dir=str(Path(tempfile.gettempdir()) / f"ling-router-{resolved.run}"),
        log_prompts=resolved.config.logs.prompts,
        max_model_len=resolved.max_model_len,
        cache_share_all=resolved.config.cache.share == "all",
        costs=costs_of(resolved.config, resolved.model),
        **resolved.config.router.model_dump(exclude={"resources", "inter_token_target_s"}),
    )


def pools(resolved: Resolved) -> Pools:
    """The configured number of workers of each pool."""
    return Pools(resolved.config.prefill.replicas, resolved.config.decode.replicas)
