"""All metrics: name, kind, unit, labels, buckets, help. `docs/METRICS.md` and both exporters follow this table.

Names and units keep to Prometheus' conventions. Each label has a bounded set of values: what an operator configured
(workers, tenants, layers, ranks) or what the code lists (classes, reasons, phases); none comes from a request's text.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["seconds", "bytes", "tokens", "sequences", "requests", "pages", "slots", "workers", "ratio", "count"]
Source = Literal["router", "worker", "both", "pool"]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric, hashed as the object it is, since each request looks some up.

    source: who records it; "both": a worker records it, and routers repeat what it last told them.
    "pool": the autoscaling policy, in Serve's controller.
    """

    name: str
    kind: Kind
    unit: Unit
    source: Source
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_WORKER = ("worker", "role")
# Three buckets per decade. No answer takes longer than the last bucket.
_WAITS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0),
)
# Prompts of a sentence up to the longest context.
_LENGTHS = tuple(float(2**power) for power in range(4, 19))
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

TABLE: list[Metric] = []


def _router(name: str, kind: Kind, unit: Unit, text: str, *labels: str, buckets: tuple[float, ...] = _WAITS) -> Metric:
    return _add(Metric(name, kind, unit, "router", text, labels, buckets if kind == "histogram" else ()))


def _worker(name: str, kind: Kind, unit: Unit, text: str, *labels: str) -> Metric:
    return _add(Metric(name, kind, unit, "worker", text, (*_WORKER, *labels), _STEPS if kind == "histogram" else ()))


def _load(name: str, unit: Unit, text: str) -> Metric:
    return _add(Metric(name, "gauge", unit, "both", text, _WORKER))


def _add(metric: Metric) -> Metric:
    TABLE.append(metric)
    return metric


# A request's way through a router

REQUESTS = _router(
    "ling_requests_total", "counter", "requests",
    'Requests answered, by API and HTTP status, "disconnected", or "error" within a stream', "api", "status",
)  # fmt: skip
ERRORS = _router("ling_errors_total", "counter", "requests", "Requests without a complete answer, by class", "class")
REFUSED = _router(
    "ling_requests_refused_total",
    "counter",
    "requests",
    "Requests refused with 429, because of the queue or a key's limits",
)
TENANT_REQUESTS = _router(
    "ling_tenant_requests_total", "counter", "requests", "Requests that came with a tenant's API key", "tenant"
)
TENANT_TOKENS = _router(
    "ling_tenant_tokens_total", "counter", "tokens",
    "Tokens of requests that came with a tenant's API key, by kind: prompt, generated", "tenant", "kind",
)  # fmt: skip
TTFT = _router(
    "ling_ttft_seconds", "histogram", "seconds", "From a sequence's submission to its first token, by class", "class"
)
ITL = _router("ling_itl_seconds", "histogram", "seconds", "Between a sequence's tokens, by class", "class")
E2E = _router(
    "ling_request_seconds", "histogram", "seconds",
    "From arrival to the answer's end, of requests answered with 200, by API and class", "api", "class",
)  # fmt: skip
PROMPT_LENGTH = _router(
    "ling_prompt_length_tokens", "histogram", "tokens", "Tokens of an accepted prompt", buckets=_LENGTHS
)
ANSWER_LENGTH = _router(
    "ling_answer_length_tokens", "histogram", "tokens", "Tokens generated for a choice, recorded at its end",
    buckets=_LENGTHS,
)  # fmt: skip
PROMPT_TOKENS = _router("ling_prompt_tokens_total", "counter", "tokens", "Prompt tokens accepted")
GENERATED_TOKENS = _router("ling_generated_tokens_total", "counter", "tokens", "Tokens received from workers")
IN_FLIGHT = _router("ling_in_flight", "gauge", "sequences", "Choices in flight in this router")
WAITING = _router("ling_waiting", "gauge", "sequences", "Choices in flight that wait in this router for their turn")
LATE = _router(
    "ling_deadline_refused_total", "counter", "requests",
    "Requests refused at once with 503, because their first token could not come within their deadline",
)  # fmt: skip
IN_FLIGHT_LIMIT = _router(
    "ling_in_flight_limit", "gauge", "sequences", "Limit of choices in flight, beyond which requests get 429"
)
LOOP_HOLD = _router(
    "ling_loop_hold_seconds", "gauge", "seconds",
    "The longest that the router's event loop was held up within the last minute: its streams stood still so long",
)  # fmt: skip
ROUTING = _router(
    "ling_routing_decisions_total", "counter", "sequences",
    "Sequences given to workers that have room, made to wait for their turn, or given to none, by reason", "reason",
)  # fmt: skip
RESUMED = _router(
    "ling_resumed_total", "counter", "sequences",
    "Sequences that went on at other workers, by cause: a worker's death or silence, a failed transfer, or moved well",
    "cause",
)  # fmt: skip
BATCH_LINES = _router(
    "ling_batch_lines_total", "counter", "requests", "Lines of batches answered, by HTTP status", "status"
)
WORKERS_LIVE = _router("ling_workers_live", "gauge", "workers", "Workers this router reaches, by pool", "role")
WORKERS_CONFIGURED = _router(
    "ling_workers_configured", "gauge", "workers", "Smallest configured number of workers, by pool", "role"
)
WORKERS_WANTED = _add(
    Metric(
        "ling_workers_wanted", "gauge", "workers", "pool",
        "Workers that a pool with `max_replicas` needs for its targets, before Serve's bounds and delays", ("role",),
    )
)  # fmt: skip

# A worker's room and load, as it reports them with every step

QUEUED = _load("ling_worker_queued", "sequences", "Sequences waiting in the worker")
QUEUED_TOKENS = _load("ling_worker_queued_tokens", "tokens", "Prompt tokens waiting in the worker")
RUNNING = _load("ling_worker_running", "sequences", "Sequences in the worker's steps")
ANSWERING = _load(
    "ling_worker_answering",
    "sequences",
    "Running sequences that the worker answers itself, be it of the decode pool or not",
)
FREE_PAGES = _load("ling_worker_free_pages", "pages", "Free latent pages")
PAGES = _load("ling_worker_pages", "pages", "All latent pages")
FREE_SLOTS = _load("ling_worker_free_slots", "slots", "Free state slots")
SLOTS = _load("ling_worker_slots", "slots", "All state slots")
TRANSFERRING = _load("ling_worker_transferring", "sequences", "Snapshots in transfer")
STEP_TIME = _load("ling_worker_step_seconds", "seconds", "Duration of the latest step")

# A worker's steps

STEP_SECONDS = _worker(
    "ling_step_duration_seconds", "histogram", "seconds", "A step, from the plan's leaving to the result"
)
STEP_SEQUENCES = _worker("ling_step_sequences_total", "counter", "sequences", "Sum over all steps of their sequences")
STEP_TOKENS = _worker("ling_step_tokens_total", "counter", "tokens", "Tokens computed in steps")
STEP_PAST = _worker(
    "ling_step_past_tokens_total", "counter", "tokens", "Sum over all steps of the context before the computed tokens"
)
STEP_SAMPLED = _worker("ling_step_sampled_tokens_total", "counter", "tokens", "Tokens sampled in steps")
STEP_PHASES = _worker(
    "ling_step_phase_seconds_total", "counter", "seconds",
    "Where a step's time goes: schedule (planning it, beside the step before where that is possible), compute (on the "
    "ranks), emit (taking its results), idle (the ranks had nothing to do between the step before and this one)",
    "phase",
)  # fmt: skip
RANK_PHASES = _worker(
    "ling_rank_phase_seconds_total", "counter", "seconds",
    "Where rank 0's time goes in one step a second: transfer, draft, forward, sample on its device; launch is the "
    "host's time until a GPU has all of the forward pass",
    "phase",
)  # fmt: skip
QUEUE_SECONDS = _worker(
    "ling_queue_seconds", "histogram", "seconds",
    "How long a sequence waited in the worker for its slot and pages, recorded when it has been computed",
)  # fmt: skip
PREEMPTIONS = _worker(
    "ling_preemptions_total", "counter", "sequences",
    "Sequences that were preempted: they lost slot and pages to others",
)  # fmt: skip
FINISHED = _worker(
    "ling_finished_total", "counter", "sequences",
    "Sequences that ended here, by reason: stop, length, handoff, abort, error, moved", "finish",
)  # fmt: skip
LOAD_SECONDS = _worker(
    "ling_start_seconds",
    "gauge",
    "seconds",
    "From the worker's creation until it took requests: ranks, weights, graphs",
)
LIMIT_RATIO = _worker(
    "ling_limit_ratio", "gauge", "ratio",
    "Share of the speed the planner gives the configured card; absent while nothing runs or no card is configured",
)  # fmt: skip

# Snapshots between workers

TRANSFER_SECONDS = _worker(
    "ling_transfer_seconds", "histogram", "seconds",
    "From a prompt's end, as told by its prefill worker, until its snapshot was whole at the decode worker",
)  # fmt: skip
TRANSFER_BYTES = _worker(
    "ling_transfer_bytes_total", "counter", "bytes", "Snapshot bytes a rank moved", "rank", "direction"
)
TRANSFER_BUSY = _worker(
    "ling_transfer_busy_seconds_total", "counter", "seconds",
    "Time that a rank's links spent moving them, summed over links", "rank", "direction",
)  # fmt: skip
TRANSFER_FAILURES = _worker(
    "ling_transfer_failures_total", "counter", "sequences", "Sequences that ended because a snapshot did not arrive",
    "reason",
)  # fmt: skip

# The prefix cache

CACHE_HITS = _worker(
    "ling_cache_hits_total", "counter", "requests",
    "Prompts that began from a kept snapshot, by where that was: device, host, disk, peer", "origin",
)  # fmt: skip
CACHE_HIT_TOKENS = _worker(
    "ling_cache_hit_tokens_total", "counter", "tokens", "Prompt tokens that were not computed, by origin", "origin"
)
CACHE_MISSES = _worker(
    "ling_cache_misses_total", "counter", "requests",
    "Prompts of which tokens were computed, by why no longer snapshot was there: new, no_state, evicted, weights, "
    "template, peer",
    "reason",
)  # fmt: skip
CACHE_MISSED_TOKENS = _worker(
    "ling_cache_missed_tokens_total", "counter", "tokens", "Prompt tokens that were computed, by reason", "reason"
)
CACHE_EVICTED = _worker("ling_cache_evicted_total", "counter", "count", "Kept snapshots evicted from a tier", "tier")
CACHE_SNAPSHOTS = _worker("ling_cache_snapshots", "gauge", "count", "Kept snapshots, by tier", "tier")
CACHE_CAPACITY = _worker("ling_cache_capacity_snapshots", "gauge", "count", "Snapshots the device may keep")
CACHE_PAGES = _worker("ling_cache_pages", "gauge", "pages", "Latent pages that only kept snapshots hold")
CACHE_HOST_BYTES = _worker("ling_cache_host_bytes", "gauge", "bytes", "Host memory that kept snapshots use")
CACHE_DISK_BYTES = _worker("ling_cache_disk_bytes", "gauge", "bytes", "Files of the disk tier")
CACHE_DISK_IGNORED = _worker(
    "ling_cache_disk_ignored",
    "gauge",
    "count",
    "Snapshots on disk that the worker found at its start and does not use. foreign: of other weights or layouts, "
    "which stay; damaged: erased",
    "reason",
)
CACHE_SAVED_SECONDS = _worker(
    "ling_cache_saved_seconds_total", "counter", "seconds",
    "Time that computing the hits' tokens would have taken, at the pace of the computed prompts",
)  # fmt: skip

# Speculation

DRAFTS = _worker(
    "ling_drafts_total", "counter", "tokens",
    "Drafted tokens that were verified, by their place in the run, 1 the first, and whether they stood: accepted, "
    "rejected. Drafts behind a rejected one are not counted", "place", "verdict",
)  # fmt: skip

# Experts

EXPERT_TOKENS = _worker(
    "ling_expert_tokens_total", "counter", "tokens",
    "Tokens times chosen experts, by the rank that holds the expert, in the counted steps", "rank",
)  # fmt: skip
EXPERT_PEAK = _worker(
    "ling_expert_peak_ratio", "gauge", "ratio",
    "Tokens of the busiest expert over the mean of its layer, in the counted steps, with less weight for older ones",
    "layer",
)  # fmt: skip
