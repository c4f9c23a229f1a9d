"""Tests the simulation of routing policies: it loses no request, and the default policy leads."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.policies.__main__ import costs, figures
from benchmarks.policies.baselines import POLICIES
from benchmarks.policies.overload import arrivals, goodput, overload
from benchmarks.policies.simulate import Setup, Simulation, Targets
from benchmarks.policies.workload import Ask, Session, agents, answers, trace
from router.relay.costs import Costs
from router.relay.fair import FairQueue

TARGETS = Targets(1.0, 0.03)


@pytest.mark.parametrize("name", POLICIES)
def test_every_answer_ends_and_frees_its_slot_and_pages(name: str) -> None:
    setup = Setup(costs(0.03), prefills=2, decodes=2, slots=8, pages=4_000)
    sessions = list(agents(1.0, 20.0, seed=3))
    simulation = Simulation(setup, POLICIES[name], 3)
    flights = simulation.run(sessions)
    assert len(flights) == sum(len(session.asks) for session in sessions)
    assert all(f.arrived <= f.first <= f.over for f in flights)
    for worker in simulation.workers.values():
        state = worker.state()
        assert (state.load.free_slots, state.load.free_pages, state.load.running) == (8, 4_000, 0)
        assert (state.load.queued, state.unseen_work) == (0, 0)


def test_one_request_alone_takes_the_time_of_the_cost_model() -> None:
    """A prompt of 10,000 tokens on an idle fleet, its hand-off, and 100 decode steps of one sequence."""
    fleet = Setup(Costs(knee_tokens=1e12), prefills=1, decodes=1)
    (flight,) = Simulation(fleet, POLICIES["round robin"], 0).run([Session(1.0, [Ask(10_000, 101, ())])])
    assert flight.first - flight.arrived == pytest.approx(10_000 * 2e-5)
    step = 5e-3 + 5e-5 + 1e-9 * 10_000
    assert flight.over - flight.first == pytest.approx(1.5e-3 + 100 * step)


def test_the_default_policy_beats_every_baseline_with_agents() -> None:
    came = {}
    for name, policy in POLICIES.items():
        came[name] = figures(Simulation(Setup(costs(0.03)), policy, 0).run(agents(2.0, 25.0, seed=0)), TARGETS)
    ours = came.pop("default")
    assert all(ours.goodput > theirs.goodput and ours.p99_s < theirs.p99_s for theirs in came.values())


def test_prefill_workers_answer_for_a_full_decode_pool_without_flapping() -> None:
    """50 long answers per second are 1.5 times what four decode workers give in time; four prefill workers are idle."""
    sessions = list(answers(50.0, 30.0, seed=0))
    alone = figures(Simulation(Setup(costs(0.03)), POLICIES["least requests"], 0).run(sessions), TARGETS)
    flights = Simulation(Setup(costs(0.03)), POLICIES["default"], 0).run(sessions)
    assert figures(flights, TARGETS).goodput >= 1.3 * alone.goodput
    roles = 0
    for name in ("prefill0", "prefill1", "prefill2", "prefill3"):
        until = -1.0
        for flight in sorted((f for f in flights if f.answered_by == name), key=lambda f: f.first):
            roles += flight.first > until
            until = max(until, flight.over)
    assert 1 <= roles <= 6
    # Nobody changes where the decode workers suffice.
    few = Simulation(Setup(costs(0.03)), POLICIES["default"], 0).run(list(answers(20.0, 30.0, seed=0)))
    assert all(f.answered_by.startswith("decode") for f in few)


def test_turns_of_a_trace_end_where_prompts_diverge(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1600, "output_length": 5, "hash_ids": [1, 2, 3, 4]},
        {"timestamp": 2000, "input_length": 2100, "output_length": 7, "hash_ids": [1, 2, 5, 6, 7]},
        {"timestamp": 3000, "input_length": 2100, "output_length": 1, "hash_ids": [1, 2, 5, 8, 9]},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = trace(file, 2.0, 0, 10)
    assert first.asks[0].prefixes == ((1536, "3"),)
    assert (second.begins, second.asks[0].prefixes) == (1.0, ((1024, "2"), (2048, "6")))
    assert third.asks[0].prefixes == ((1024, "2"), (1536, "5"), (2048, "8"))
    assert [s.asks[0].output for s in trace(file, 1.0, 1, 1)] == [7]


def _tenant(name: str, rate: float, seed: int) -> Iterator[Session]:
    """A tenant's requests with short prompts, at random times within six seconds."""
    rng = random.Random(seed)
    at = 0.0
    while (at := at + rng.expovariate(rate)) < 10.0:
        prompt = max(16, int(rng.lognormvariate(8.3, 0.8)))
        yield Session(at, [Ask(prompt, 2 + int(rng.expovariate(1 / 200)), (), tenant=name)])


@pytest.mark.parametrize(("workers", "seed"), [(4, 1), (4, 5), (8, 5)])
def test_a_flooding_tenant_does_not_raise_another_tenant_s_ttft(workers: int, seed: int) -> None:
    def p99_s(sessions: list[Session]) -> float:
        setup = Setup(costs(0.03), prefills=workers, decodes=workers)
        flights = Simulation(setup, POLICIES["default"], 0, FairQueue(1_000_000)).run(sessions)
        waits = sorted(f.first - f.arrived for f in flights if f.ask.tenant == "calm")
        return waits[int(0.99 * len(waits))]

    calm = list(_tenant("calm", 2.5 * workers, seed))
    alone = p99_s(calm)
    assert p99_s(calm + list(_tenant("flood", 37.5 * workers, seed + 1))) <= 1.2 * alone


def test_an_overload_does_not_lower_goodput_and_the_fleet_recovers() -> None:
    setup = Setup(costs(0.03), prefills=2, decodes=2)
    best = goodput(list(arrivals(40.0, 0.0, 8.0, seed=9)), 0.0, 8.0, setup)[1]
    amid, after, simulation = overload(25.0, 10.0, 8.0, setup)
    assert amid >= 0.9 * best
    assert after >= 0.95
    assert simulation.most_waiting < 500
