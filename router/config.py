"""What one router replica needs to know; made by `cluster.config` or by a test."""

import os
from dataclasses import dataclass, field
from typing import Literal

from router.relay.costs import Costs


@dataclass(frozen=True, slots=True)
class Pools:
    """How many workers each pool is configured to have. With `prefill` 0 the decode pool computes prompts too."""

    prefill: int = 1
    decode: int = 1

    def __post_init__(self) -> None:
        if self.decode < 1 or self.prefill < 0:
            raise ValueError(f"pools need decode >= 1 and prefill >= 0, not {self.decode} and {self.prefill}")


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """One router replica's settings.

    served_model_name: the `model` clients ask for ("auto" always works). tokenizer: checkpoint folder with
    tokenizer.json. tool_parser: how the model writes calls, a name of `router.text.tools`. name: how the replica calls
    itself to workers. max_queue: choices (a request has `n` for each prompt) in flight before 429.
    max_waiting: choices of one tenant at one priority that wait for their turn before 429. retry_after_s:
    what 429 and 503 tell clients to wait. body_timeout_s: for the whole body to arrive. first_token_timeout_s,
    request_timeout_s: from arrival. max_body_bytes: beyond it, 413. api_keys: file of `router.access.keys`; without one
    nobody is asked for a key. replicas: how many routers there are, which share each key's limits. cors_origins:
    whose pages in browsers may call; "*" is anybody's. secret: what it proves to workers (`wire.handshake`).
    data_dir: folder of what outlives the router, which all replicas of a host share: files, batches, responses;
    without one there are no files and batches. database_url: PostgreSQL that holds their records, and responses, for
    routers of several hosts; data_dir is then a folder that these share. max_file_bytes: of one upload.
    max_stored_bytes: of a tenant's files. max_batch_lines: requests in a batch. batch_concurrency: of them at once in
    this replica. run_dir: folder of responses where there is no data_dir; replicas of a host that are given the same
    one share it, and the last to end removes it. segment_cache_bytes: kept of conversations' texts and their token ids,
    so that a next turn costs its new
    texts alone. max_responses, max_responses_bytes: kept responses of a tenant.
    session_ttl_s: a session ends so long after its last use. max_sessions: of a tenant. operators: tenants that may
    open snapshot files and drain workers, where keys are asked for.
    attachments: whether images and files in tools' results become a note to the model or a 400. name_workers: whether
    answers tell which workers and processes computed them. max_model_len: what is told of the context before a worker
    is live; None where that is unknown. costs: by which the routing policy predicts.
    cache_share_all: prefixes that workers keep are shared between tenants.
    """

    served_model_name: str
    tokenizer: str
    name: str = field(default_factory=lambda: f"router-{os.getpid()}")
    max_queue: int = 1024
    max_waiting: int = 512
    retry_after_s: int = 1
    tool_parser: str = "qwen25"
    body_timeout_s: float = 30.0
    first_token_timeout_s: float = 600.0
    request_timeout_s: float = 3600.0
    max_body_bytes: int = 8 * 1024 * 1024
    api_keys: str | None = None
    replicas: int = 1
    cors_origins: tuple[str, ...] = ()
    secret: str = field(default="", repr=False)
    otlp_endpoint: str | None = None
    trace_share: float = 1.0
    log_prompts: bool = False
    data_dir: str | None = None
    database_url: str | None = field(default=None, repr=False)
    max_file_bytes: int = 200 * 1024 * 1024
    max_stored_bytes: int = 10 * 1024 * 1024 * 1024
    max_batch_lines: int = 50_000
    batch_concurrency: int = 256
    run_dir: str | None = None
    segment_cache_bytes: int = 256 * 1024 * 1024
    attachments: Literal["note", "refuse"] = "note"
    name_workers: bool = False
    max_model_len: int | None = None
    max_responses: int = 4096
    max_responses_bytes: int = 256 * 1024 * 1024
    cache_share_all: bool = False
    costs: Costs = field(default_factory=Costs)
    session_ttl_s: int = 3600
    max_sessions: int = 1000
    operators: tuple[str, ...] = ()
