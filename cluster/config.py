"""The one schema behind `ling serve`, its YAML file and the arguments of `cluster.app:build`."""

from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from wire.protocol import Role
from workers.config import Dtype


class ConfigError(ValueError):
    """Invalid settings; each line of the message starts with the setting's path."""


def _number(value: Any) -> Any:
    """Parse text as a number: `serve run` passes every value as text."""
    if isinstance(value, str):
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        return parsed if isinstance(parsed, int | float | None) else value
    return value


def _switch(value: Any) -> Any:
    """YAML reads a bare `on` or `off` as a truth value."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _drafts(value: Any) -> Any:
    value = _switch(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value in ("auto", "off") or (isinstance(value, int) and 1 <= value <= _MOST_DRAFTS):
        return value
    raise ValueError(f"must be auto, off, or a number of drafts from 1 to {_MOST_DRAFTS}")


_MOST_DRAFTS = 8
_READ = BeforeValidator(_number)
_ON_OFF = BeforeValidator(_switch)
_SPLIT = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
Count = Annotated[int, Field(ge=1), _READ]
CountOrNone = Annotated[Annotated[int, Field(ge=1)] | None, _READ]
Port = Annotated[Annotated[int, Field(ge=1, le=65535)] | None, _READ]
Seconds = Annotated[float, Field(gt=0), _READ]
Text = Annotated[str, Field(min_length=1)]
Resources = dict[Text, Annotated[float, Field(ge=0.001), _READ]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PoolConfig(_Section):
    """One pool.

    replicas: the number of workers. max_replicas: if set, the pool grows with the load from `replicas` to at most so
    many, and shrinks again. tp: tensor-parallel ranks of each worker. resources: Ray's custom resources that each
    worker asks for. Nodes are started with these resources, so that the pool runs only on its own nodes.
    """

    replicas: Count = 1
    max_replicas: CountOrNone = None
    tp: Count = 1
    resources: Resources = Field(default_factory=dict)


class PrefillConfig(PoolConfig):
    """The prefill pool. With 0 replicas the decode pool computes prompts too."""

    replicas: Annotated[int, Field(ge=0), _READ] = 1


class RouterSection(_Section):
    """The HTTP front.

    replicas: the number of routers, which share the port; "auto" is one for each 8 cores of the host that starts the
    cluster, at most 4. resources: of each router, as for a pool. max_queue: choices in flight at one router before 429.
    max_waiting: choices of one tenant at one priority that wait for their turn before 429. retry_after_s: how long 429
    and 503 tell clients to wait. body_timeout_s, first_token_timeout_s, request_timeout_s: seconds from arrival to the
    whole body, the first token, the whole answer. max_body_bytes: a longer body is a 413. tool_parser: the format in
    which the model writes tool calls. api_keys: file of hashed keys (made by `python -m router.access.keys TENANT`),
    which is read again when it changes; without it no key is needed. cors_origins: origins whose pages may call from
    browsers. data_dir: folder of files, batches and responses, which outlive the cluster; the routers of one host share
    it. `ling serve` uses the user's state directory; elsewhere files and batches are off without it. database_url:
    PostgreSQL instead of SQLite, for routers of several hosts, postgresql://USER@HOST/NAME with the password in the
    routers' PGPASSWORD; data_dir must then be on a volume that they share. max_file_bytes: of one upload.
    max_stored_bytes: of a tenant's files. max_batch_lines: requests in a batch. batch_concurrency: lines that a router
    runs at once. max_responses, max_responses_bytes: stored responses of a tenant; without data_dir they are in the
    cluster's temporary folder. session_ttl_s: seconds that a session is kept after its last use. max_sessions: of a
    tenant. operators: tenants that may drain workers and open snapshot files, if there are keys. otlp_endpoint: where
    traces are sent, e.g. http://collector:4318/v1/traces. trace_share: the share of requests without a trace of their
    own that are traced. segment_cache_bytes: memory of a router for conversations' texts and their token ids, so that
    only new texts of a turn are encoded. attachments: whether images and files in tools' results become a note to the
    model, or a 400. name_workers: whether answers name the workers and processes that computed them.
    inter_token_target_s: while other decode workers have room, routers give a worker no request that would make its
    steps longer than this.
    """

    replicas: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], _READ] = "auto"
    resources: Resources = Field(default_factory=dict)
    max_queue: Count = 1024
    max_waiting: Count = 512
    retry_after_s: Count = 1
    body_timeout_s: Seconds = 30.0
    first_token_timeout_s: Seconds = 600.0
    inter_token_target_s: Seconds = 0.05
    request_timeout_s: Seconds = 3600.0
    max_body_bytes: Annotated[int, Field(ge=1024), _READ] = 8 * 1024 * 1024
    tool_parser: Literal["qwen25", "hermes"] = "qwen25"
    api_keys: Text | None = None
    cors_origins: Annotated[tuple[Text, ...], Field(strict=False), _SPLIT] = ()
    data_dir: Text | None = None
    database_url: Annotated[str, Field(pattern="^postgres(ql)?://")] | None = None
    max_file_bytes: Annotated[int, Field(ge=1024), _READ] = 200 * 1024 * 1024
    max_stored_bytes: Annotated[int, Field(ge=1024), _READ] = 10 * 1024 * 1024 * 1024
    max_batch_lines: Count = 50_000
    batch_concurrency: Count = 256
    otlp_endpoint: Text | None = None
    trace_share: Annotated[float, Field(ge=0, le=1), _READ] = 1.0
    segment_cache_bytes: Annotated[int, Field(ge=1024 * 1024), _READ] = 256 * 1024 * 1024
    max_responses: Count = 4096
    attachments: Literal["note", "refuse"] = "note"
    name_workers: Annotated[bool, _READ] = False
    session_ttl_s: Count = 3600
    max_sessions: Count = 1000
    operators: Annotated[tuple[Text, ...], Field(strict=False), _SPLIT] = ()
    max_responses_bytes: Annotated[int, Field(ge=1024 * 1024), _READ] = 256 * 1024 * 1024


class LogsSection(_Section):
    """What each process writes to standard error.

    format: lines for people, or one JSON object per line. level: the lowest level that is written; "info" has a line
    for each request. prompts: whether the line of a generating request contains its body; otherwise no log contains
    prompts.
    """

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    prompts: Annotated[bool, _READ] = False


class HandoffSection(_Section):
    """How snapshots move between workers.

    channel: "auto" is shared memory (else gloo) on one host without GPUs; otherwise NIXL where both ends have it and
    RDMA, else NCCL between GPUs, else gloo. With RAY_USE_TLS it is never NIXL, and TLS between hosts. window: the
    number of snapshots that a decode worker pulls at once. timeout_s: how long a finished prompt waits to be
    pulled. network_gb_s: a card's bandwidth to other workers in GB/s, for the routing policy's predictions.
    """

    channel: Literal["auto", "shm", "gloo", "nccl", "nixl"] = "auto"
    window: Count = 16
    timeout_s: Seconds = 60.0
    network_gb_s: Seconds = 12.5


class CacheSection(_Section):
    """The prefix cache: what workers keep of prompts and answers, so that common prefixes are computed once.

    mode: "off" keeps nothing. device_states: linear states that a worker keeps on its device beside those of running
    sequences; unset, as many as `slots`. Latents are kept in the pages that running sequences leave free.
    answer_tokens: the state of a running answer is kept and copied to another worker each time it has so many more
    tokens, so that about this many at most are computed again if its worker dies; 0 turns this off. host_bytes: host
    memory for copies, over all ranks of a worker; 0 for none. state_dtype: the dtype of states there; bfloat16 and int8
    take half and a quarter of the memory and change answers a little. disk_dir: a local folder for sessions' ends, and
    for snapshots that host memory evicts. It outlives workers, needs host_bytes, and takes at most disk_bytes for each
    worker; what was not used for disk_ttl_s seconds is erased. share: whose prefixes a request may use, its tenant's or
    all. A hit makes the first token faster, so "all" lets tenants find out what others asked.
    """

    mode: Annotated[Literal["on", "off"], _ON_OFF] = "on"
    device_states: CountOrNone = None
    answer_tokens: Annotated[int, Field(ge=0), _READ] = 1024
    host_bytes: Annotated[int, Field(ge=0), _READ] = 0
    state_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    disk_dir: Text | None = None
    disk_bytes: Annotated[int, Field(ge=1), _READ] = 100_000_000_000
    disk_ttl_s: Seconds = 86_400.0
    share: Literal["tenant", "all"] = "tenant"

    def states(self, slots: int) -> int:
        """The number of states that a worker with so many slots keeps."""
        return 0 if self.mode == "off" else self.device_states or slots


class AutoscalingSection(_Section):
    """When pools with `max_replicas` change size.

    busy: the largest share of its slots or pages, and of its time for prompts, that a worker should have in use.
    first_token_s: the time within which a prompt that has reached the pool should be computed. attained: the share of
    prompts for which that must be predicted. Sequences should decode within router.inter_token_target_s. A pool grows
    when more workers have been needed for upscale_delay_s, and shrinks when fewer have sufficed for downscale_delay_s.
    """

    busy: Annotated[float, Field(gt=0, le=1), _READ] = 0.8
    first_token_s: Seconds = 1.0
    attained: Annotated[float, Field(gt=0, lt=1), _READ] = 0.99
    upscale_delay_s: Annotated[float, Field(ge=0), _READ] = 10.0
    downscale_delay_s: Annotated[float, Field(ge=0), _READ] = 300.0


class ClusterConfig(_Section):
    """A whole cluster.

    model: checkpoint folder; or a hub's repository, `org/name`, `org/name@revision` or `hf://org/name`; or a prefix of
    an object store or web server, `s3://`, `gs://`, `https://`; unset, the embedded ling-nano. A checkpoint that is no
    folder is fetched once per host into model_cache; unset, that is the hub library's own cache, or the user's cache
    for stores. served_name: by which clients call the model; unset, the folder's or repository's name. dtype: compute
    dtype; "auto" is the checkpoint's on a GPU and float32 on a CPU. device: "auto" is cuda if the Ray cluster has GPUs.
    collectives: how a worker's ranks communicate; "auto" depends on the device. page_size: tokens of a latent page.
    pages: latent pages of a worker; unset, they fill its memory. slots: sequences of a worker at once. max_model_len:
    longest sequence in tokens; unset, the checkpoint's context. max_step_tokens: token budget of a step; unset, 8192
    for prefill workers on GPUs and 1024 otherwise. model_overrides: keys that replace those of config.json. load:
    "auto" takes a worker's weights from another worker that serves them, rank by rank, or else from storage; "storage"
    never asks others; "synthetic" makes up weights of the shapes and format in config.json, for benchmarks. verify:
    each worker first reads all files, and refuses bytes that differ from their checksums and impossible values, as
    `ling verify` does. cuda_graphs: "auto" captures decode steps on GPUs; "off" launches every kernel separately.
    speculate: tokens that the MTP layer drafts for a sequence in a step, which the model verifies together. Answers
    stay the same and come faster. "auto" drafts up to 3, and fewer or none if that is faster; a number always drafts so
    many. card: the name of the GPUs in `ling plan`, for the metric that compares their speed with its limit. host,
    port: where each router listens; without a port Ray Serve's own front serves the routers. rank_cpus: the CPUs that a
    rank without a GPU counts in Ray's placement. drain_s: seconds for running streams to end when the cluster shuts
    down. resume_s: how long workers continue a request with an Idempotency-Key after its router has died, and how long
    they keep its tokens after its end, for a client that comes back. load_stall_s: seconds without progress after which
    a worker's start counts as hung and is begun again. surge: how many more workers a pool may have while `serve
    deploy` replaces them, in percent of its size: successors serve before the old workers end. Unset, it is 100 without
    GPUs and 0 with them. A pool that may have more but finds no GPUs for them waits for ever, so set it only if there
    are spare GPUs. With 0, workers are replaced in their places, a fifth of the pool at a time.
    """

    model: Text | None = None
    model_cache: Text | None = None
    served_name: Text | None = None
    dtype: Dtype = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    prefill: PrefillConfig = PrefillConfig()
    decode: PoolConfig = PoolConfig()
    router: RouterSection = RouterSection()
    handoff: HandoffSection = HandoffSection()
    cache: CacheSection = CacheSection()
    logs: LogsSection = LogsSection()
    autoscaling: AutoscalingSection = AutoscalingSection()
    collectives: Literal["auto", "shm", "gloo", "nccl", "symm"] = "auto"
    page_size: Annotated[int, Field(ge=1, le=4096), _READ] = 64
    pages: CountOrNone = None
    slots: Count = 64
    max_model_len: CountOrNone = None
    max_step_tokens: CountOrNone = None
    model_overrides: dict[str, Any] = Field(default_factory=dict)
    load: Literal["auto", "storage", "synthetic"] = "auto"
    load_stall_s: Seconds = 600.0
    verify: Annotated[bool, _READ] = False
    cuda_graphs: Annotated[Literal["auto", "off"], _ON_OFF] = "auto"
    speculate: Annotated[
        Literal["auto", "off"] | Annotated[int, Field(ge=1, le=_MOST_DRAFTS)], BeforeValidator(_drafts)
    ] = "auto"
    card: Text | None = None
    host: Text = "127.0.0.1"
    port: Port = None
    rank_cpus: Annotated[float, Field(ge=0.001), _READ] = 0.01
    drain_s: Annotated[float, Field(ge=0), _READ] = 5.0
    resume_s: Seconds = 60.0
    surge: Annotated[int | None, Field(ge=0, le=100), _READ] = None

    @property
    def pools(self) -> dict[Role, PoolConfig]:
        """The pools that have workers, the decode pool first."""
        pools: dict[Role, PoolConfig] = {"decode": self.decode}
        return pools | {"prefill": self.prefill} if self.prefill.replicas else pools

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(self._contradictions())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> list[str]:
        found = []
        for role, pool in (("prefill", self.prefill), ("decode", self.decode)):
            if pool.max_replicas is not None and not 0 < pool.replicas <= pool.max_replicas:
                found.append(
                    f"{role}.max_replicas: {pool.max_replicas} with {pool.replicas} replicas; a pool that grows begins "
                    "with at least 1 worker and at most max_replicas"
                )
        if self.device == "cpu":
            if self.collectives in ("nccl", "symm"):
                found.append(f"collectives: {self.collectives} needs GPUs; with device cpu use auto, shm or gloo")
            if self.handoff.channel == "nccl":
                found.append("handoff.channel: nccl needs GPUs; with device cpu use auto, shm or gloo")
        if self.device == "cuda" and self.collectives in ("shm", "gloo"):
            found.append(f"collectives: {self.collectives} joins ranks without GPUs; on cuda use auto, nccl or symm")
        if self.verify and self.load == "synthetic":
            found.append("verify: synthetic weights have no files to verify; set verify: false, or load: auto")
        if self.cache.disk_dir is not None and not (self.cache.host_bytes and self.cache.mode == "on"):
            found.append("cache.disk_dir: files are written from host memory; set cache.host_bytes, with cache.mode on")
        if self.cache.disk_dir is not None and self.cache.disk_ttl_s < self.router.session_ttl_s:
            found.append(
                f"cache.disk_ttl_s: {self.cache.disk_ttl_s:g} seconds would erase files of sessions, which are kept "
                f"for router.session_ttl_s, {self.router.session_ttl_s}; raise it or lower that"
            )
        if self.pages is not None and self.max_model_len is not None:
            found += pages_too_few(self.pages, self.page_size, self.max_model_len)
        return found

    def pool(self, role: Role) -> PoolConfig:
        """The section of one pool."""
        return self.prefill if role == "prefill" else self.decode


def pages_too_few(pages: int, page_size: int, max_model_len: int) -> list[str]:
    """Return an error if the pages can't hold one sequence of max_model_len; else an empty list."""
    need = -(-max_model_len // page_size)
    if pages >= need:
        return []
    return [
        f"pages: {pages} of {page_size} tokens hold {pages * page_size}, but one sequence may be {max_model_len} "
        f"long; give at least {need} pages or lower max_model_len"
    ]
