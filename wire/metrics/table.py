"""All metrics: name, kind, unit, labels, buckets, help. `docs/METRICS.md` and both exporters are made from this table.

Names and units keep to Prometheus' conventions. Each label has a bounded set of values: what an operator configured
(workers, tenants, layers, ranks) or what the code lists (classes, reasons, phases). No value comes from a request's
text.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["seconds", "bytes", "tokens", "sequences", "requests", "pages", "slots", "workers", "ratio", "count"]
Source = Literal["router", "worker", "both", "pool"]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. It is hashed by its identity, which is fast, because each request looks some metrics up.

    source: who records it. "both": a worker records it, and routers repeat the last value that the worker reported.
    "pool": the autoscaling policy records it in Serve's controller. text: its help text. buckets: a histogram's upper
    bounds, in its unit.
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
    "Requests refused with 429, because a queue is full or a key is beyond its limits",
)
TENANT_REQUESTS = _router(
    "ling_tenant_requests_total", "counter", "requests", "Requests that came with a tenant's API key", "tenant"
)
TENANT_TOKENS = _router(
    "ling_tenant_tokens_total", "counter", "tokens",
    "Tokens of requests that came with a tenant's API key, by kind: prompt, generated", "tenant", "kind",
)  # fmt: skip
TTFT = _router(
    "ling_ttft_seconds", "histogram", "seconds", "Time from a sequence's submission to its first token, by class",
    "class",
)  # fmt: skip
ITL = _router("ling_itl_seconds", "histogram", "seconds", "Time between a sequence's tokens, by class", "class")
E2E = _router(
    "ling_request_seconds", "histogram", "seconds",
    "Time from a request's arrival to its answer's end, of requests answered with 200, by API and class",
    "api", "class",
)  # fmt: skip
PROMPT_LENGTH = _router(
    "ling_prompt_length_tokens", "histogram", "tokens", "Length of accepted prompts", buckets=_LENGTHS
)
ANSWER_LENGTH = _router(
    "ling_answer_length_tokens", "histogram", "tokens", "Tokens generated for a choice, recorded when it ends",
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
    "Longest time within the last minute that the router's event loop was held up; its streams stood still so long",
)  # fmt: skip
ROUTING = _router(
    "ling_routing_decisions_total", "counter", "sequences",
    "Sequences by routing decision: given to workers with room, made to wait for their turn, or the reason why no "
    "workers could take them",
    "reason",
)  # fmt: skip
RESUMED = _router(
    "ling_resumed_total", "counter", "sequences",
    "Sequences that went on at other workers, by cause: a worker's death, its death right after another "
    "one's of its node, its silence, a failed transfer, or a worker that moved them away",
    "cause",
)  # fmt: skip
BATCH_LINES = _router(
    "ling_batch_lines_total", "counter", "requests", "Lines of batches answered, by HTTP status", "status"
)
WORKERS_LIVE = _router(
    "ling_workers_live", "gauge", "workers", "Workers that this router is connected to, by pool", "role"
)
WORKERS_CONFIGURED = _router(
    "ling_workers_configured", "gauge", "workers", "Smallest number of workers that is configured, by pool", "role"
)
WORKERS_WANTED = _add(
    Metric(
        "ling_workers_wanted", "gauge", "workers", "pool",
        "Workers that a pool with `max_replicas` needs for its targets, before Serve applies its bounds and delays",
        ("role",),
    )
)  # fmt: skip

# A worker's room and load, as it reports them with every step

QUEUED = _load("ling_worker_queued", "sequences", "Sequences waiting in the worker")
QUEUED_TOKENS = _load("ling_worker_queued_tokens", "tokens", "Prompt tokens waiting in the worker")
RUNNING = _load("ling_worker_running", "sequences", "Sequences in the worker's steps")
ANSWERING = _load(
    "ling_worker_answering",
    "sequences",
    "Running sequences whose tokens this worker generates, whichever pool it belongs to",
)
FREE_PAGES = _load("ling_worker_free_pages", "pages", "Free latent pages")
PAGES = _load("ling_worker_pages", "pages", "All latent pages")
FREE_SLOTS = _load("ling_worker_free_slots", "slots", "Free state slots")
SLOTS = _load("ling_worker_slots", "slots", "All state slots")
TRANSFERRING = _load("ling_worker_transferring", "sequences", "Snapshots that the worker is receiving or sending")
STEP_TIME = _load("ling_worker_step_seconds", "seconds", "Duration of the latest step")

# A worker's steps

STEP_SECONDS = _worker(
    "ling_step_duration_seconds", "histogram", "seconds", "Time from sending a step's plan to the ranks to its result"
)
STEP_SEQUENCES = _worker("ling_step_sequences_total", "counter", "sequences", "Sum of the sequences of all steps")
STEP_TOKENS = _worker("ling_step_tokens_total", "counter", "tokens", "Tokens computed in steps")
STEP_PAST = _worker(
    "ling_step_past_tokens_total",
    "counter",
    "tokens",
    "Sum over all steps and their sequences of the tokens that precede the computed ones",
)
STEP_SAMPLED = _worker("ling_step_sampled_tokens_total", "counter", "tokens", "Tokens sampled in steps")
STEP_PHASES = _worker(
    "ling_step_phase_seconds_total", "counter", "seconds",
    "Time of steps by phase: schedule (the leader plans the step, if it can during the previous one), compute (the "
    "ranks compute), emit (the leader takes the results), idle (the ranks had nothing to do since the previous step)",
    "phase",
)  # fmt: skip
RANK_PHASES = _worker(
    "ling_rank_phase_seconds_total", "counter", "seconds",
    "Rank 0's time in one step a second, by phase: transfer, draft, forward and sample on its device; launch is the "
    "host's time until it has launched the whole forward pass on the GPU",
    "phase",
)  # fmt: skip
QUEUE_SECONDS = _worker(
    "ling_queue_seconds", "histogram", "seconds",
    "Time that a sequence waited in the worker for its slot and pages, recorded when the sequence ends",
)  # fmt: skip
PREEMPTIONS = _worker(
    "ling_preemptions_total", "counter", "sequences",
    "Sequences that were preempted, which means that they lost their slot and pages to others",
)  # fmt: skip
FINISHED = _worker(
    "ling_finished_total", "counter", "sequences",
    "Sequences that ended at this worker, by reason: stop, length, handoff, abort, error, moved", "finish",
)  # fmt: skip
LOAD_SECONDS = _worker(
    "ling_start_seconds",
    "gauge",
    "seconds",
    "Time from the worker's creation until it took requests: starting ranks, loading weights, capturing graphs",
)
LIMIT_RATIO = _worker(
    "ling_limit_ratio", "gauge", "ratio",
    "The planner's shortest time of the recent steps over their measured time, 0 to 1; absent while nothing runs or no "
    "`card` is configured",
)  # fmt: skip

# Snapshots between workers

TRANSFER_SECONDS = _worker(
    "ling_transfer_seconds", "histogram", "seconds",
    "Time from a prompt's last computed token, as the prefill worker reports it, until the decode worker had the whole "
    "snapshot",
)  # fmt: skip
TRANSFER_BYTES = _worker(
    "ling_transfer_bytes_total",
    "counter",
    "bytes",
    "Snapshot bytes that a rank sent (out) or received (in)",
    "rank",
    "direction",
)
TRANSFER_BUSY = _worker(
    "ling_transfer_busy_seconds_total", "counter", "seconds",
    "Time that a rank's links spent moving snapshot bytes, summed over the links", "rank", "direction",
)  # fmt: skip
TRANSFER_LINKS = _worker(
    "ling_transfer_links", "gauge", "count",
    "Links over which a rank receives snapshots, by channel: shm, gloo, nccl, nixl, tls", "rank", "channel",
)  # fmt: skip
TRANSFER_FAILURES = _worker(
    "ling_transfer_failures_total", "counter", "sequences", "Sequences that ended because a snapshot did not arrive",
    "reason",
)  # fmt: skip

# The prefix cache

CACHE_HITS = _worker(
    "ling_cache_hits_total", "counter", "requests",
    "Prompts that began from a kept snapshot, by where the snapshot was: device, host, disk, peer", "origin",
)  # fmt: skip
CACHE_HIT_TOKENS = _worker(
    "ling_cache_hit_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that a kept snapshot saved from being computed, by where the snapshot was",
    "origin",
)
CACHE_MISSES = _worker(
    "ling_cache_misses_total", "counter", "requests",
    "Prompts of which tokens were computed, by the reason why no longer prefix was kept: new, no_state, evicted, "
    "weights, template, peer",
    "reason",
)  # fmt: skip
CACHE_MISSED_TOKENS = _worker(
    "ling_cache_missed_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that were computed, by the reason why they were not kept",
    "reason",
)
CACHE_EVICTED = _worker("ling_cache_evicted_total", "counter", "count", "Kept snapshots evicted from a tier", "tier")
CACHE_SNAPSHOTS = _worker("ling_cache_snapshots", "gauge", "count", "Kept snapshots, by tier", "tier")
CACHE_CAPACITY = _worker("ling_cache_capacity_snapshots", "gauge", "count", "Largest number of snapshots on the device")
CACHE_PAGES = _worker("ling_cache_pages", "gauge", "pages", "Latent pages that only kept snapshots hold")
CACHE_HOST_BYTES = _worker("ling_cache_host_bytes", "gauge", "bytes", "Host memory that kept snapshots use")
CACHE_DISK_BYTES = _worker("ling_cache_disk_bytes", "gauge", "bytes", "Size of the disk tier's files")
CACHE_DISK_IGNORED = _worker(
    "ling_cache_disk_ignored",
    "gauge",
    "count",
    "Snapshots on disk that the worker found at its start and does not use. foreign: of other weights or layouts, it "
    "left them there; damaged: it erased them",
    "reason",
)
CACHE_SAVED_SECONDS = _worker(
    "ling_cache_saved_seconds_total", "counter", "seconds",
    "Time that computing the tokens of hits would have taken, at the speed at which prompts were computed",
)  # fmt: skip

# Speculation

DRAFTS = _worker(
    "ling_drafts_total", "counter", "tokens",
    "Drafted tokens that were verified, by their place in the run (1 is the first) and their verdict: accepted, "
    "rejected. Drafts after a rejected one are not counted", "place", "verdict",
)  # fmt: skip

# Experts

EXPERT_TOKENS = _worker(
    "ling_expert_tokens_total", "counter", "tokens",
    "Tokens times chosen experts, by the rank that holds the expert, in the sampled steps", "rank",
)  # fmt: skip
EXPERT_PEAK = _worker(
    "ling_expert_peak_ratio", "gauge", "ratio",
    "Tokens of a layer's busiest expert over the mean of its experts, in the sampled steps; older steps weigh less",
    "layer",
)  # fmt: skip
