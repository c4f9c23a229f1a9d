"""Tests how pools are sized, by plain figures and by Serve's policy."""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ConfigError
from cluster.parse import parse
from cluster.scaling import autoscaling, reported
from cluster.sizing import Asked, Goals, PromptRate, asked, attainment, wanted
from router.relay.costs import Costs
from tests.router.test_policy import worker

GOALS = Goals(busy=0.8, first_token_s=1.0, attained=0.95)
COSTS = Costs(token_s=1e-3, step_s=0.01, sequence_s=1e-3, context_s=1e-6, itl_s=0.05)


def asks(rate: tuple[float, float] = (0.0, 0.0), **load: float) -> Asked:
    state = worker("w", "decode", slots=100, pages=1000, **load)
    return asked(state.info, state.load, COSTS, rate)


def test_an_idle_worker_asks_for_nothing() -> None:
    assert asks() == Asked()
    assert wanted([asks()], 1, GOALS) == 1


def test_a_worker_holds_the_fuller_of_slots_and_pages() -> None:
    assert asks(free_slots=20).held == pytest.approx(0.8)
    assert asks(free_slots=20, free_pages=100).held == pytest.approx(0.9)
    assert asks(free_slots=0, queued=60).held == pytest.approx(1.6)


def test_sequences_need_the_workers_among_which_their_steps_are_within_the_target() -> None:
    """With 10 ms a step, 1 ms a sequence and 1 us a token, 80 sequences take 90 ms; the target is 40 ms."""
    load = {"running": 80, "decode_s": 0.09, "free_pages": 1000}
    assert asks(**load).decoding == pytest.approx(0.08 / 0.04)
    # A worker that measures itself twice as slow has 30 ms left beside the step's own 20 ms.
    assert asks(**load | {"decode_s": 0.18}).decoding == pytest.approx(0.16 / 0.03)
    # Where one sequence alone is late, no number of workers helps: the demand stays bounded.
    assert asks(**load | {"decode_s": 0.9}).decoding == pytest.approx(0.8 / 0.01)


def test_prompts_count_in_seconds() -> None:
    assert asks((500.0, 100.0), queued_tokens=2000) == Asked(
        prompts=pytest.approx(0.5), prompt_s=pytest.approx(0.1), waiting_s=pytest.approx(2.0)
    )
    assert asks((500.0, 100.0), token_s=2e-3).prompts == pytest.approx(1.0)


def test_the_rate_of_prompts_is_that_of_the_last_seconds() -> None:
    rate = PromptRate()
    assert rate.of(3, 300, 100.0) == (0.0, 0.0)
    assert rate.of(4, 400, 101.0) == (0.0, 0.0)
    assert rate.of(8, 1300, 110.0) == (pytest.approx(100.0), pytest.approx(200.0))
    assert rate.of(9, 1300, 112.0) == (pytest.approx(100.0), pytest.approx(200.0))
    assert rate.of(8, 1300, 120.0) == (0.0, 0.0)


def test_attainment_is_that_of_a_queue_with_so_many_servers() -> None:
    """One server at half its load: a prompt waits in half of all cases, exponentially long (M/M/1)."""
    assert attainment(1, 0.5, 0.1, 0.4) == pytest.approx(1 - 0.5 * math.exp(-0.5 * 0.3 / 0.1))
    # Erlang's C of 2 servers with a load of 1 is 1/3.
    assert attainment(2, 1.0, 0.1, 0.4) == pytest.approx(1 - math.exp(-1.0 * 0.3 / 0.1) / 3)
    assert (attainment(3, 3.0, 0.1, 1.0), attainment(1, 0.0, 0.0, 1.0)) == (0.0, 1.0)


def test_a_pool_has_the_fewest_workers_that_attain_the_target() -> None:
    pool = [Asked(prompts=0.6, prompt_s=0.5)] * 4
    size = wanted(pool, 1, GOALS)
    assert attainment(size, 2.4, 0.5, 1.0) >= 0.95 > attainment(size - 1, 2.4, 0.5, 1.0)
    # A longer target needs no more than keeps workers as busy as they are to be.
    assert wanted(pool, 1, Goals(0.8, 60.0, 0.95)) == 3 < size


def test_waiting_prompts_are_computed_within_the_target() -> None:
    assert wanted([Asked(waiting_s=2.5)], 1, GOALS) == 3


LOADS = st.builds(
    Asked,
    held=st.floats(0, 3),
    decoding=st.floats(0, 5),
    prompts=st.floats(0, 1),
    prompt_s=st.floats(0.001, 5),
    waiting_s=st.floats(0, 5),
)


@given(st.lists(LOADS, min_size=1, max_size=8), st.integers(1, 60))
def test_a_load_that_makes_a_pool_grow_does_not_make_it_shrink(pool: list[Asked], now: int) -> None:
    then = wanted(pool, now, GOALS)
    assert then >= max(1, sum(a.held for a in pool) / 0.8 - 1e-3, sum(a.decoding for a in pool) - 1e-3)
    assert wanted(pool, then, GOALS) == then
    assert then <= max(now, wanted(pool, 1, GOALS))


def test_a_load_at_the_threshold_does_not_change_the_pool() -> None:
    """An hour of decisions every second, with noise about a whole number of workers, which alone would flap."""
    rng = random.Random(5)
    pools = [[Asked(held=3.2 + rng.gauss(0, 0.08))] for _ in range(3600)]
    assert changes([wanted(pool, 1, GOALS) for pool in pools]) > 1000
    sizes = [1]
    for pool in pools:
        sizes.append(wanted(pool, sizes[-1], GOALS))
    assert changes(sizes) <= 3


def changes(sizes: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(sizes))


class Delays:
    """Serve's delays: a change happens only if it is wanted for so many seconds without a break."""

    def __init__(self, up: int, down: int) -> None:
        self._up, self._down, self._since = up, down, 0

    def apply(self, size: int, decision: int) -> int:
        way = (decision > size) - (decision < size)
        self._since = self._since + way if self._since * way >= 0 and way else way
        if self._since > self._up or -self._since > self._down:
            self._since = 0
            return decision
        return size


def hours(load: Callable[[int], float], seconds: int, seed: int) -> Iterator[tuple[int, float]]:
    """A pool of prompts, sized each second: its size, and the share of the second's prompts that were in time.

    load: seconds of prompts that come in a second, at random times and of random lengths, 0.2 s in the mean. Workers
    take them in order of arrival. Figures are averages over 10 s, as Serve hands them to a policy.
    """
    rng, delays, size = random.Random(seed), Delays(10, 300), 1
    free, backlog = [0.0], 0.0  # when each worker has computed what it has; seconds of prompts that have come
    figures: deque[tuple[float, int, float]] = deque(maxlen=10)
    for second in range(seconds):
        at, came, work, met = float(second), 0, 0.0, 0
        while (at := at + rng.expovariate(load(second) / 0.2)) < second + 1:
            length = rng.expovariate(1 / 0.2)
            over = max(at, heapq.heappop(free)) + length
            heapq.heappush(free, over)
            came, work, met = came + 1, work + length, met + (over - at <= GOALS.first_token_s)
        # What waits beyond the worker's own next prompts waits in routers, unseen.
        computed = min(backlog + work, size)
        backlog += work - computed
        figures.append((computed, came, sum(min(0.02, max(0.0, f - second)) for f in free)))
        prompts, count = sum(f[0] for f in figures), sum(f[1] for f in figures)
        mean = Asked(
            prompts=prompts / len(figures) / size,
            prompt_s=prompts / count if count else 0.0,
            waiting_s=sum(f[2] for f in figures) / len(figures) / size,
        )
        after = delays.apply(size, wanted([mean] * size, size, GOALS))
        while size < after:
            heapq.heappush(free, float(second + 1))
            size += 1
        while size > after:  # the one that ends soonest; it drains
            heapq.heappop(free)
            size -= 1
        yield size, met / came if came else 1.0


def test_in_simulation_a_pool_attains_its_target_and_does_not_flap() -> None:
    steady = list(hours(lambda _: 3.0, 7200, seed=1))
    assert changes([size for size, _ in steady[600:]]) <= 4
    assert sum(met for _, met in steady[600:]) / len(steady[600:]) >= 0.95
    # A day in four hours, between half a worker's worth and eight: up once and down once.
    day = list(hours(lambda second: 4.25 - 3.75 * math.cos(2 * math.pi * second / 14400), 14400, seed=2))
    sizes = [size for size, _ in day]
    assert sum(met for _, met in day) / len(day) >= 0.95
    assert changes(sizes) <= 2 * (max(sizes) - 1) + 4
    assert (max(sizes) <= 13, sizes[-1] <= 3) == (True, True)


def test_a_burst_makes_a_pool_grow_although_prompts_wait_in_routers() -> None:
    sizes = [size for size, _ in hours(lambda second: 1.0 if second < 300 else 8.0, 600, seed=3)]
    assert sizes[299] <= 3
    assert sizes[-1] >= 9


def context(metrics: dict[str, dict[str, float]] | None) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3)


def test_serve_takes_the_settings_and_finds_the_policy() -> None:
    config = parse({"decode.replicas": 2, "decode.max_replicas": "5", "autoscaling.downscale_delay_s": "60"})
    with pytest.warns(DeprecationWarning, match="metrics_interval_s"):  # what is to replace it has no effect yet
        made = autoscaling("decode", config.decode, config.autoscaling)
    assert (made.min_replicas, made.max_replicas, made.downscale_delay_s) == (2, 5, 60)
    policy = made.policy.get_policy()(**made.policy.policy_kwargs)
    assert policy(context(None)) == policy(context({})) == (3, {})
    figures = {name: {"a": value, "b": value} for name, value in asdict(Asked(held=1.9, prompt_s=0.1)).items()}
    assert reported(figures) == [Asked(held=1.9, prompt_s=0.1)] * 2
    assert policy(context(figures)) == (5, {})


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"decode.replicas": 3, "decode.max_replicas": 2}, "decode.max_replicas: 2 with 3 replicas"),
        ({"prefill.replicas": 0, "prefill.max_replicas": 2}, "prefill.max_replicas: 2 with 0 replicas"),
        ({"autoscaling.busy": 1.5}, "autoscaling.busy"),
        ({"autoscaling.attained": 1}, "autoscaling.attained"),
        ({"decode.resources": {"decode": 0}}, "decode.resources.decode"),
    ],
)
def test_settings_that_can_not_scale_are_refused_by_name(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(settings)
