"""Records the metrics of a worker's leader: its steps, its snapshots, and its ranks' reports."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from wire.metrics import table
from wire.metrics.load import record_load
from wire.metrics.recorder import Reading, Recorder
from wire.protocol import Load, Role, SeqOutput, WorkerInfo
from workers.cache.cache import PrefixCache
from workers.cache.totals import MISSES, ORIGINS, TIERS
from workers.schedule.builder import InFlight
from workers.schedule.speculation import Drafted
from workers.schedule.step import RankStats
from workers.transfer.messages import Kind

# Why a transfer failed. link: a rank's connection broke. peer: the other worker is gone or refused the connection.
# refused: the prefill worker has no such snapshot. mismatch: the snapshot is of another prompt, model or layout.
# timeout: nobody pulled it.
TransferFailure = Literal["link", "peer", "refused", "mismatch", "timeout"]
PHASES = ("schedule", "compute", "emit", "idle")
_FAILURES: tuple[TransferFailure, ...] = ("link", "peer", "refused", "mismatch", "timeout")


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Totals of all steps with sequences. seconds: spent waiting for the ranks.

    past: context tokens of the computed ones.
    """

    steps: int
    seconds: float
    sequences: int
    tokens: int
    past: int
    sampled: int


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A step that the ranks have. plan_s: the seconds that planning took.

    begun: when the ranks could begin the step: when it was sent, or when the previous step's result was back. idle_s:
    how long the ranks had nothing to do between the previous step and this one.
    """

    step: InFlight
    plan_s: float
    begun: float
    idle_s: float = 0.0


class WorkerFigures:
    """A leader's recorder. It records at most once a step, never once a token."""

    def __init__(self, worker_id: str, role: Role) -> None:
        self._who = (worker_id, role)
        self._recorder = Recorder()
        recorder, who = self._recorder, self._who
        self._step = recorder.histogram(table.STEP_SECONDS, *who)
        self._phases = [recorder.value(table.STEP_PHASES, *who, phase) for phase in PHASES]
        counters = (table.STEP_SEQUENCES, table.STEP_TOKENS, table.STEP_PAST, table.STEP_SAMPLED)
        self._counts = [recorder.value(metric, *who) for metric in counters]
        self._queue = recorder.histogram(table.QUEUE_SECONDS, *who)
        self._transfer = recorder.histogram(table.TRANSFER_SECONDS, *who)
        self._failures = {why: recorder.value(table.TRANSFER_FAILURES, *who, why) for why in _FAILURES}
        self._totals = [0, 0.0, 0, 0, 0, 0]

    def stepped(self, under_way: UnderWay, sampled: int, back: float, over: float) -> None:
        """Record a step by the times at which its result was back and was applied."""
        ran = back - under_way.begun
        phases = (under_way.plan_s, ran, over - back, under_way.idle_s)
        for value, seconds in zip(self._phases, phases, strict=True):
            value.add(seconds)
        size = under_way.step.size
        if size.rows:
            self._step.observe(ran)
            counted = (size.rows, size.tokens, size.context, sampled)
            for value, count in zip(self._counts, counted, strict=True):
                value.add(count)
            for index, amount in enumerate((1, ran, *counted)):
                self._totals[index] += amount

    def ended(self, outputs: Iterable[SeqOutput]) -> None:
        """Record sequences that ended with these outputs."""
        for output in outputs:
            if output.finish is not None:
                self._recorder.value(table.FINISHED, *self._who, output.finish).add()
                if output.timings is not None and output.finish not in ("abort", "error"):
                    self._queue.observe(output.timings.queue_s)

    def preempted(self, count: int) -> None:
        """Record the number of preemptions so far."""
        self._recorder.value(table.PREEMPTIONS, *self._who).put(count)

    def transferred(self, seconds: float) -> None:
        """Record a snapshot that arrived, so many seconds after its prompt was computed."""
        self._transfer.observe(seconds)

    def transfer_failed(self, why: TransferFailure) -> None:
        """Record a snapshot that did not arrive."""
        self._failures[why].add()

    def told(self, stats: RankStats) -> None:
        """Record a rank's totals."""
        put, rank = self._recorder.value, str(stats.rank)
        for direction, moved in (("out", stats.sent), ("in", stats.received)):
            put(table.TRANSFER_BYTES, *self._who, rank, direction).put(moved.bytes)
            put(table.TRANSFER_BUSY, *self._who, rank, direction).put(moved.seconds)
        for channel in get_args(Kind):
            put(table.TRANSFER_LINKS, *self._who, rank, channel).put(stats.links.get(channel, 0))
        if stats.rank == 0:
            for phase, seconds in stats.phases:
                put(table.RANK_PHASES, *self._who, phase).put(seconds)
            for holder, tokens in enumerate(stats.expert_tokens):
                put(table.EXPERT_TOKENS, *self._who, str(holder)).put(tokens)
            for layer, ratio in stats.expert_peaks:
                put(table.EXPERT_PEAK, *self._who, str(layer)).put(ratio)

    def cached(self, cache: PrefixCache) -> None:
        """Record the prefix cache's totals."""
        put, totals = self._recorder.value, cache.totals
        for origin in ORIGINS:
            put(table.CACHE_HITS, *self._who, origin).put(totals.hits[origin])
            put(table.CACHE_HIT_TOKENS, *self._who, origin).put(totals.hit_tokens[origin])
        for reason in MISSES:
            put(table.CACHE_MISSES, *self._who, reason).put(totals.misses[reason])
            put(table.CACHE_MISSED_TOKENS, *self._who, reason).put(totals.missed_tokens[reason])
        held = cache.held
        for tier in TIERS:
            put(table.CACHE_EVICTED, *self._who, tier).put(totals.evicted[tier])
            put(table.CACHE_SNAPSHOTS, *self._who, tier).put(held[tier])
        put(table.CACHE_CAPACITY, *self._who).put(cache.slots.size)
        put(table.CACHE_PAGES, *self._who).put(cache.pages.reclaimable)
        put(table.CACHE_HOST_BYTES, *self._who).put(cache.host.bytes)
        put(table.CACHE_DISK_BYTES, *self._who).put(cache.disk.bytes)
        put(table.CACHE_SAVED_SECONDS, *self._who).put(totals.saved_s)

    def disk(self, foreign: int, damaged: int) -> None:
        """Record the files that the disk tier found at the worker's start and does not use."""
        for why, count in (("foreign", foreign), ("damaged", damaged)):
            self._recorder.value(table.CACHE_DISK_IGNORED, *self._who, why).put(count)

    def drafted(self, drafted: Drafted) -> None:
        """Record the totals of drafts."""
        for place, (offered, accepted) in enumerate(zip(drafted.offered, drafted.accepted, strict=True), 1):
            for verdict, count in (("accepted", accepted), ("rejected", offered - accepted)):
                self._recorder.value(table.DRAFTS, *self._who, str(place), verdict).put(count)

    def limit(self, ratio: float | None) -> None:
        """Record the share of the planner's limit that is reached; None if unknown."""
        self._recorder.clear([table.LIMIT_RATIO])
        if ratio is not None:
            self._recorder.value(table.LIMIT_RATIO, *self._who).put(ratio)

    def started(self, start_s: float) -> None:
        """Record how long the worker took to start."""
        self._recorder.value(table.LOAD_SECONDS, *self._who).put(start_s)

    @property
    def totals(self) -> StepTotals:
        """The totals of steps."""
        steps, seconds, *counts = self._totals
        return StepTotals(int(steps), seconds, *map(int, counts))

    def read(self, info: WorkerInfo, load: Load) -> Iterator[Reading]:
        """Read all metrics."""
        record_load(self._recorder, info, load)
        return self._recorder.read()
