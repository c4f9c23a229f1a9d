"""Tests what routers and workers record, and how it is exported."""

import asyncio
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.config import ConfigError
from cluster.metrics import Bridge
from cluster.metrics_limit import limit_of
from cluster.parse import parse
from cluster.resolve import resolve
from router.metrics import Metrics, State, class_of
from router.priority import BATCH, LATEST, SOONEST
from router.relay.fleet import WorkerState
from wire.metrics import table
from wire.metrics.recorder import Reading, Recorder
from wire.protocol import Load, SeqOutput, Timings, WorkerInfo
from workers.leader.figures import StepTotals, UnderWay, WorkerFigures
from workers.schedule.builder import InFlight, Size
from workers.schedule.step import Moved, RankStats, Row, StepPlan

NANO = Path(__file__).parent.parent.parent / "checkpoints" / "ling-nano"
IDLE = Load(0, 0, 0, 8, 4, 0, 0.0)
INFO = WorkerInfo("d0", "decode", "h", 1, "n", 1, "w", "l", 9, 4, 8, 4, 32, ())


def samples(figures: Recorder | WorkerFigures | Metrics) -> Iterator[tuple[str, float]]:
    """Every sample as `name{label=value,…}`, without the worker's own labels."""
    readings = figures.read(INFO, IDLE) if isinstance(figures, WorkerFigures) else figures.read()
    for reading in readings:
        for name, labels, value in reading.samples:
            told = ",".join(f"{k}={v}" for k, v in labels.items() if k not in ("worker", "role"))
            yield f"{name}{{{told}}}" if told else name, value


def test_names_and_units_keep_to_the_conventions() -> None:
    assert len({metric.name for metric in table.TABLE}) == len(table.TABLE)
    for metric in table.TABLE:
        assert re.fullmatch(r"ling(_[a-z0-9]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert metric.text.isascii()  # Ray takes no other
        if metric.unit in ("seconds", "bytes", "ratio"):
            assert metric.unit in metric.name
        # Ray's own labels would be overwritten; le is a histogram's.
        assert not set(metric.labels) & {"le", "router", "WorkerId", "SessionName", "Component", "NodeAddress"}


def test_a_histogram_is_cumulative_and_its_sum_exact() -> None:
    recorder = Recorder()
    histogram = recorder.histogram(table.TTFT, "normal")
    histogram.observe(0.0015)
    histogram.observe(0.03, 4)
    histogram.observe(1e6)
    found = dict(samples(recorder))
    bucket = "ling_ttft_seconds_bucket{{class=normal,le={}}}".format
    assert [found[bucket(le)] for le in ("0.001", "0.002", "0.02", "0.05", "500.0", "+Inf")] == [0, 1, 1, 5, 5, 6]
    assert found["ling_ttft_seconds_sum{class=normal}"] == 0.0015 + 4 * 0.03 + 1e6
    assert found["ling_ttft_seconds_count{class=normal}"] == 6
    with pytest.raises(ValueError, match="has the labels"):
        recorder.histogram(table.TTFT)


def test_classes_are_few_whatever_priorities_clients_ask_for() -> None:
    assert [class_of(p) for p in (SOONEST, -1, 0, 1, LATEST)] == ["high", "high", "normal", "low", "low"]
    assert {class_of(BATCH + p) for p in (SOONEST, 0, LATEST)} == {"batch"}


def test_a_router_tells_of_answers_errors_and_the_workers_it_reaches() -> None:
    state = [WorkerState(INFO, IDLE)]
    metrics = Metrics(lambda: State(state, {"prefill": 1, "decode": 1}, 3, 2, 9, 0.002))
    metrics.answered("chat", "200", 0.5)
    for status in ("400", "429", "500", "503", "504", "error", "disconnected"):
        metrics.answered("chat", status, 0.5)
    metrics.refuse(401)
    times = metrics.times(0)
    times.first_token(0.1, 1)
    times.token_gap(0.2, 4)
    found = dict(samples(metrics))
    errors = {name[24:-1]: value for name, value in found.items() if name.startswith("ling_errors_total")}
    assert errors == dict.fromkeys(
        ("invalid", "throttled", "internal", "unavailable", "stream", "left", "unauthorized"), 1
    ) | {"timeout": 1}
    assert found["ling_requests_total{api=chat,status=200}"] == 1
    assert found["ling_request_seconds_count{api=chat,class=normal}"] == 1
    assert found["ling_generated_tokens_total"] == 5
    assert found["ling_itl_seconds_bucket{class=normal,le=0.05}"] == 4
    assert (found["ling_in_flight"], found["ling_in_flight_limit"]) == (3, 9)
    text = metrics.text().decode()
    assert 'ling_workers_live{role="prefill"} 0.0' in text
    assert 'ling_workers_live{role="decode"} 1.0' in text
    assert 'ling_worker_free_pages{role="decode",worker="d0"} 8.0' in text
    state.clear()  # a worker that is gone leaves no series behind
    assert "ling_worker_free_pages{" not in metrics.text().decode()
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert (kinds["ling_requests"], kinds["ling_ttft_seconds"], kinds["ling_in_flight"]) == (
        "counter", "histogram", "gauge",
    )  # fmt: skip


def test_a_worker_tells_of_its_steps_ranks_and_snapshots() -> None:
    figures = WorkerFigures("d0", "decode")
    rows = (Row(1, 0, (1, 2, 3), 0, (), False),)
    figures.stepped(UnderWay(InFlight(StepPlan(0, rows=rows), (), None, Size(1, 1, 10)), 0.25, 0.25), 1, 1.25, 1.75)
    figures.stepped(UnderWay(InFlight(StepPlan(1), ()), 0.5, 2.5, 0.75), 0, 3.0, 3.0)  # one that computes nothing
    waited = Timings(0.25, 1.0, 0.0, 1.0)
    figures.ended([SeqOutput("a", 0, finish="stop", timings=waited), SeqOutput("b", 0)])
    figures.ended([SeqOutput("c", 0, finish="abort", timings=Timings(0.0, 0.0, 0.0, 0.0))])
    figures.preempted(2)
    figures.transferred(0.25)
    figures.transfer_failed("link")
    none = Moved(0, 0.0)
    figures.told(RankStats(1, (("forward", 9.0),), Moved(10, 0.5), none, links={"nccl": 2}))
    figures.told(RankStats(0, (("forward", 2.0),), none.plus(20, 0.5).plus(1, 0.5), none, (6, 2), ((1, 1.5),)))
    assert figures.totals == StepTotals(1, 1.0, 2, 4, 10, 1)
    found = dict(samples(figures))
    assert found["ling_step_duration_seconds_count"] == 1
    assert found["ling_step_phase_seconds_total{phase=schedule}"] == 0.75
    assert found["ling_step_phase_seconds_total{phase=compute}"] == 1.5
    assert found["ling_step_phase_seconds_total{phase=emit}"] == 0.5
    assert found["ling_step_phase_seconds_total{phase=idle}"] == 0.75
    assert found["ling_rank_phase_seconds_total{phase=forward}"] == 2.0
    assert found["ling_finished_total{finish=stop}"] == 1
    assert (found["ling_queue_seconds_count"], found["ling_queue_seconds_sum"]) == (1, 0.25)
    assert found["ling_preemptions_total"] == 2
    assert found["ling_transfer_seconds_sum"] == 0.25
    assert found["ling_transfer_failures_total{reason=link}"] == 1
    assert found["ling_transfer_failures_total{reason=peer}"] == 0
    assert found["ling_transfer_bytes_total{rank=1,direction=out}"] == 10
    assert found["ling_transfer_bytes_total{rank=0,direction=out}"] == 21
    assert found["ling_transfer_busy_seconds_total{rank=0,direction=out}"] == 1.0
    links = [found[f"ling_transfer_links{{rank={rank},channel=nccl}}"] for rank in (0, 1)]
    assert (links, found["ling_transfer_links{rank=1,channel=shm}"]) == ([0, 2], 0)
    assert [found[f"ling_expert_tokens_total{{rank={r}}}"] for r in (0, 1)] == [6, 2]
    assert found["ling_expert_peak_ratio{layer=1}"] == 1.5
    assert found["ling_worker_free_slots"] == 4


def test_the_bridge_hands_values_to_ray_and_tries_again_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[tuple[str, ...], float] = {}

    class Gauge:
        def __init__(self, name: str, text: str, keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self.keys)
            told[self.name, *(tags[key] for key in self.keys)] = value

    monkeypatch.setattr("cluster.metrics.Gauge", Gauge)
    monkeypatch.setattr("cluster.metrics.EVERY_S", 0)
    recorder, reads = Recorder(), itertools.count()
    errors = recorder.value(table.ERRORS, "internal")
    recorder.histogram(table.TTFT, "low").observe(600.0)

    def read() -> Iterator[Reading]:
        if next(reads) < 2:
            raise RuntimeError("not yet")
        errors.add()
        return recorder.read()

    async def run() -> None:
        bridge = asyncio.create_task(Bridge(read, {"router": "r"}).run())
        async with asyncio.timeout(60):
            while told.get(("ling_errors_total", "internal", "r"), 0) < 3:
                await asyncio.sleep(0)
        bridge.cancel()

    asyncio.run(run())
    assert told["ling_ttft_seconds_bucket", "low", "500.0", "r"] == 0
    assert told["ling_ttft_seconds_bucket", "low", "+Inf", "r"] == 1
    assert told["ling_ttft_seconds_sum", "low", "r"] == 600.0


def test_the_limit_is_the_planner_s_for_the_mean_step() -> None:
    limit = limit_of(str(NANO), "h20-96gb", 1)
    assert limit is not None
    assert limit.reached(StepTotals(0, 0.0, 0, 0, 0, 0)) is None
    slow = limit.reached(StepTotals(10, 10.0, 40, 40, 4000, 40))
    assert limit.reached(StepTotals(10, 10.0, 40, 40, 4000, 40)) is None  # no step since
    fast = limit.reached(StepTotals(20, 15.0, 80, 80, 8000, 80))
    assert slow is not None
    assert fast == pytest.approx(2 * slow)
    assert 0 < slow < 1
    figures = WorkerFigures("d0", "decode")
    figures.limit(slow)
    assert dict(samples(figures))["ling_limit_ratio"] == slow
    figures.limit(None)
    assert "ling_limit_ratio" not in dict(samples(figures))


def test_a_card_is_one_the_planner_knows() -> None:
    assert limit_of(str(NANO), None, 1) is None
    with pytest.raises(ConfigError, match=r"^card: unknown card 'h20-96'; did you mean h20-96gb\?"):
        resolve(parse({"card": "h20-96"}), gpus=0)
