"""What one worker needs to know to start; made by `cluster.config` or by a test."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wire.logs import LogSettings

Dtype = Literal["auto", "float32", "bfloat16"]
StateDtype = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class Lender:
    """A live worker whose ranks hold the weights that a starting worker's ranks need.

    weights_id: of its weights. addresses: host and port at which each rank takes links, by rank.
    """

    worker_id: str
    weights_id: str
    addresses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker's settings.

    model: checkpoint folder. tp: ranks. dtype: compute dtype, "auto" is the checkpoint's on a GPU and float32 on
    a CPU. device: "cpu" or
    "cuda". page_size: tokens a latent page. pages: latent pages, None sizes them from the device's memory.
    slots: linear-state slots, so the most sequences at once. max_model_len: None is the checkpoint's.
    max_step_tokens: token budget of a step. handoff_window: snapshots a decode worker pulls at once.
    handoff_timeout_s: how long a finished prompt waits to be pulled. resume_s: how long requests whose clients may come
    back outlive their router, and their tokens their end. cache_states: linear states kept on the device
    beside those of running sequences; 0 turns the prefix cache off. cache_host_bytes: host memory for kept snapshots,
    over all ranks; cache_state_dtype: how states lie there. cache_disk_dir: local folder in which the worker
    takes one of its own for kept snapshots, of cache_disk_bytes at most. collectives, channel: "auto" picks by
    device and host. model_overrides: keys laid over config.json (e.g. YaRN's rope_scaling).
    host: the address the leader and its ranks listen on. version: of a checkpoint that was fetched, the commit or state
    that stands for its content. load: "auto" takes weights from a live worker that holds them, else reads the folder's;
    "storage" only reads; "synthetic" makes some up, of the shapes and format its config.json gives. lender: the live
    worker, where there is one. verify: the ranks read all files before they load, a share
    each, and refuse what is damaged. cuda_graphs: "auto" captures decode steps on a GPU, "off"
    launches every kernel by itself. speculate: tokens drafted for a sequence in a step by the MTP layer: so many, or
    "auto" for up to 3 as far as they pay, where the checkpoint has that layer. secret: what every connection between
    processes of the cluster has to prove it knows (`wire.handshake`). logs: what its processes write to standard error.
    """

    model: str
    tp: int = 1
    dtype: Dtype = "auto"
    device: Literal["cpu", "cuda"] = "cpu"
    page_size: int = 64
    pages: int | None = None
    slots: int = 64
    max_model_len: int | None = None
    max_step_tokens: int = 1024
    handoff_window: int = 16
    handoff_timeout_s: float = 60.0
    resume_s: float = 60.0
    cache_states: int = 0
    cache_host_bytes: int = 0
    cache_state_dtype: StateDtype = "float32"
    cache_disk_dir: str | None = None
    cache_disk_bytes: int = 0
    collectives: Literal["auto", "shm", "gloo", "nccl", "symm"] = "auto"
    channel: Literal["auto", "shm", "gloo", "nccl"] = "auto"
    model_overrides: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    version: str | None = None
    load: Literal["auto", "storage", "synthetic"] = "auto"
    lender: Lender | None = None
    verify: bool = False
    cuda_graphs: Literal["auto", "off"] = "auto"
    speculate: Literal["auto", "off"] | int = "off"
    secret: str = field(default="", repr=False)
    logs: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a worker's ranks first meet: a folder of their host for shared memory, an address for the rest."""

    folder: Path
    host: str
    port: int
