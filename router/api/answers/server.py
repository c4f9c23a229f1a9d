"""Answers about the server and its tokenizer."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from wire.protocol import Role


class Root(TypedDict):
    """The paths of the server."""

    name: str
    model: str
    paths: tuple[str, ...]


class Model(TypedDict):
    """The served model. max_model_len: in tokens, null while no worker is live."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class ModelList(TypedDict):
    """A list that holds the served model alone."""

    object: Literal["list"]
    data: list[Model]


class Health(TypedDict):
    """The process is alive."""

    status: Literal["ok"]


class Ready(TypedDict):
    """The server is ready to take a request."""

    ready: Literal[True]


class Unready(TypedDict):
    """The server can take no request. reason: why it can't."""

    ready: Literal[False]
    reason: str


class RankStatus(TypedDict):
    """A process of a worker."""

    rank: int
    pid: int
    node: str
    device: str


class WorkerPlace(TypedDict):
    """A worker's id and address."""

    id: str
    state: Literal["live", "draining", "connecting"]
    host: str
    port: int


class UnreachedWorker(WorkerPlace):
    """A worker without a connection. problem: why the last attempt to connect failed."""

    problem: str | None


class WorkerStatus(WorkerPlace):
    """A worker and its load as of its last step.

    unreachable: workers from which it can pull no snapshots now, as it can't connect to them. step_s: the step's length
    in seconds. kept: snapshots in its prefix cache; kept_by_tier: on the device, in host memory and on disk, one maybe
    on several. hit_tokens, missed_tokens: prompt tokens since its start that the cache held, and that it had to
    compute; saved_s: seconds that computing the former would have taken. hits: prompts that began from a kept snapshot.
    misses: prompts of which tokens were computed, by the reason why no longer snapshot was there. in_flight: requests
    of this router at the worker.
    """

    node: str
    pid: int
    weights_id: str
    layout: str
    max_model_len: int
    page_size: int
    pages: int
    slots: int
    queued: int
    queued_tokens: int
    running: int
    free_pages: int
    free_slots: int
    transferring: int
    unreachable: list[str]
    step_s: float
    kept: int
    hit_tokens: int
    missed_tokens: int
    hits: int
    misses: dict[str, int]
    kept_by_tier: dict[str, int]
    saved_s: float
    in_flight: int
    ranks: list[RankStatus]


class StartingWorker(TypedDict):
    """A worker that does not serve yet.

    still_s: seconds since its progress last moved. left_s: seconds left at the present rate; null while unknown.
    """

    id: str
    node: str
    stage: str
    done_bytes: int
    total_bytes: int
    done_files: int
    total_files: int
    bytes_per_s: float
    left_s: float | None
    still_s: float


class DrainedWorker(TypedDict):
    """The worker takes no more requests and ends once its answers continue at other workers."""

    id: str
    object: Literal["worker"]
    state: Literal["draining"]


class PoolStatus(TypedDict):
    """The workers of one role. configured: how many there should be."""

    configured: int
    live: int
    starting: list[StartingWorker]
    workers: list[WorkerStatus | UnreachedWorker]


class RouterStatus(TypedDict):
    """The router that answered."""

    name: str
    pid: int
    in_flight: int
    max_queue: int


class ClusterStatus(TypedDict):
    """Pools, workers, ranks and their figures. reason: why no request can be served now; null if one can."""

    model: str
    ready: bool
    reason: str | None
    router: RouterStatus
    pools: dict[Role, PoolStatus]


class Tokenized(TypedDict):
    """The token ids of a text.

    token_strs: null unless asked for. max_model_len: null while no worker is live.
    """

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: NotRequired[list[str]]


class Detokenized(TypedDict):
    """The text of token ids."""

    prompt: str
