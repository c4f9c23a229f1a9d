"""The settings of one worker; `cluster.resolve` or a test makes them."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wire.logs import LogSettings

Dtype = Literal["auto", "float32", "bfloat16"]
StateDtype = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class Lender:
    """A live worker whose ranks hold the weights that a starting worker's ranks need.

    weights_id: of its weights. addresses: the host and port at which each rank accepts links, by rank.
    """

    worker_id: str
    weights_id: str
    addresses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker's settings.

    model: checkpoint folder. tp: ranks. dtype: compute dtype, "auto" is the checkpoint's on a GPU and float32 on a CPU.
    device: "cpu" or "cuda". page_size: tokens of a latent page. pages: the number of latent pages; None sizes them from
    the device's memory. slots: linear-state slots, which bound the sequences at once. max_model_len: None is the
    checkpoint's. max_step_tokens: token budget of a step. handoff_window: snapshots that a decode worker pulls at once.
    handoff_timeout_s: how long a finished prompt waits to be pulled. resume_s: how long a request with an
    Idempotency-Key runs on without its router, and how long its tokens are kept after its end. cache_states: linear
    states kept on the device beside those of running sequences; 0 turns the prefix cache off. cache_answer_tokens: an
    answer's state is kept each so many tokens while it runs; 0 for never. cache_host_bytes: host memory for kept
    snapshots of all ranks. cache_state_dtype: the dtype of states there. cache_disk_dir: a local folder in which the
    worker has its own folder for kept snapshots, of at most cache_disk_bytes, each kept for cache_disk_ttl_s after its
    last use. collectives, channel: "auto" picks by device and host. model_overrides: keys laid over config.json (e.g.
    YaRN's rope_scaling). host: the address the leader and its ranks listen on. version: of a fetched checkpoint, the
    commit or state that identifies its content. load: "auto" takes weights from a live worker that holds them, else
    reads the folder; "storage" only reads; "synthetic" makes up weights of the shapes and format in config.json.
    lender: the live worker; None if there is none. verify: the ranks read all files before they load, a share each, and
    refuse damaged ones. cuda_graphs: "auto" captures decode steps on a GPU, "off" launches every kernel by itself.
    speculate: the number of tokens that the MTP layer drafts for a sequence in a step, or "auto" for up to 3 as far as
    they pay, if the checkpoint has that layer. secret: every connection between the cluster's processes has to prove
    that it knows it (`wire.handshake`). logs: settings of what its processes write to standard error.
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
    cache_answer_tokens: int = 0
    cache_host_bytes: int = 0
    cache_state_dtype: StateDtype = "float32"
    cache_disk_dir: str | None = None
    cache_disk_bytes: int = 0
    cache_disk_ttl_s: float = math.inf
    collectives: Literal["auto", "shm", "gloo", "nccl", "symm"] = "auto"
    channel: Literal["auto", "shm", "gloo", "nccl", "nixl"] = "auto"
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
    """Where a worker's ranks meet at their start: a folder for shared memory, and an address otherwise."""

    folder: Path
    host: str
    port: int
