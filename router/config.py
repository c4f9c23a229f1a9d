"""The settings of one router replica; `cluster.resolve` or a test makes them."""

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

    served_model_name: the `model` that clients ask for ("auto" always works). tokenizer: the checkpoint folder with
    tokenizer.json. tool_parser: the format in which the model writes calls, a name of `router.text.tools`. name: by
    which workers know the replica. max_queue: choices (a request has `n` for each prompt) in flight before 429.
    max_waiting: choices of one tenant at one priority that wait for their turn before 429. retry_after_s: how long 429
    and 503 tell clients to wait. body_timeout_s: for the whole body to arrive. first_token_timeout_s,
    request_timeout_s: from arrival. max_body_bytes: a longer body is a 413. api_keys: the file of keys
    (`router.access.keys`); without it no key is needed. replicas: the number of routers, which share each key's limits.
    cors_origins: the origins whose pages may call; "*" allows all. secret: proves the router to workers
    (`wire.handshake`). data_dir: the folder of files, batches and responses, which outlive the router; all replicas of
    a host share it. Without it files and batches are off. database_url: PostgreSQL for the records and responses of
    routers of several hosts, which also share data_dir. max_file_bytes: of one upload. max_stored_bytes: of a tenant's
    files. max_batch_lines: requests in a batch. batch_concurrency: lines that this replica runs at once. run_dir: the
    folder of responses if there is no data_dir; replicas of a host with the same run_dir share it, and the last one to
    end removes it. segment_cache_bytes: memory for conversations' texts and their token ids, so that only new texts of
    a turn are encoded. max_responses, max_responses_bytes: stored responses of a tenant. session_ttl_s: how long a
    session is kept after its last use. max_sessions: of a tenant. operators: tenants that may drain workers and open
    snapshot files, if there are keys. attachments: whether images and files in tools' results become a note to the
    model or a 400. name_workers: whether answers name the workers and processes that computed them. max_model_len: the
    context length to report before a worker is live; None if unknown. costs: the routing policy's coefficients.
    cache_share_all: whether tenants share cached prefixes.
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
