"""How pools are sized: by plain figures, without Serve."""

import itertools
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import AutoscalingSection, ConfigError
from cluster.parse import parse
from cluster.scaling import DEMAND, BusyShare, autoscaling, demand, policy, wanted
from wire.protocol import Load, Role, WorkerInfo

TARGET = AutoscalingSection(busy=0.8, wait_s=2.0)
STEP_TOKENS = 1000


def asks(role: Role, busy: float = 0.0, **load: Any) -> float:
    info: Any = SimpleNamespace(role=role, slots=100, pages=1000)
    assert {"role", "slots", "pages"} <= set(WorkerInfo.__dataclass_fields__)
    idle = {"queued": 0, "queued_tokens": 0, "running": 0, "free_pages": 1000, "free_slots": 100, "transferring": 0}
    return demand(info, Load(**{**idle, "step_s": 0.1, **load}), STEP_TOKENS, TARGET, busy)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_idle_worker_asks_for_nothing(role: Role) -> None:
    assert asks(role) == 0


def test_a_decode_worker_asks_by_the_fuller_of_slots_and_pages() -> None:
    assert asks("decode", free_slots=20) == pytest.approx(1)
    assert asks("decode", free_slots=20, free_pages=100) == pytest.approx(0.9 / 0.8)
    assert asks("decode", free_slots=0, queued=60) == pytest.approx(2)


def test_a_prefill_worker_asks_by_the_time_its_prompts_wait_and_not_by_what_it_holds() -> None:
    assert asks("prefill", queued_tokens=20_000) == pytest.approx(1)
    assert asks("prefill", free_slots=0, free_pages=0) == 0


def test_a_decode_worker_without_a_prefill_pool_asks_by_its_prompts_too() -> None:
    assert asks("decode", queued_tokens=40_000, free_slots=99) == pytest.approx(2)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20))
def test_a_pool_has_room_for_all_demands_and_no_worker_to_spare(demands: list[float]) -> None:
    workers = wanted(demands, 0)
    assert workers >= sum(demands) - 1e-3
    assert workers == 1 or workers - 1 < sum(demands)


def test_workers_that_have_just_enough_are_enough() -> None:
    assert wanted([0.1] * 10 + [0.2] * 5, 1) == 2


def test_a_prefill_worker_asks_by_the_share_of_its_time_that_it_computes() -> None:
    """Routers let prompts wait with them, so few wait at a worker however many there are."""
    assert asks("prefill", busy=0.4) == pytest.approx(0.5)
    assert asks("prefill", busy=1.0) == pytest.approx(1.25)
    assert asks("decode", busy=1.0) == 0
    share = BusyShare()
    assert [share.of(s, now) for s, now in ((3.0, 100.0), (3.5, 101.0), (7.0, 105.0), (8.0, 107.0))] == [0, 0, 0.8, 0.8]


@given(st.floats(0, 50), st.integers(1, 60))
def test_what_makes_a_pool_grow_does_not_make_it_shrink(total: float, now: int) -> None:
    then = wanted([total], now)
    assert wanted([total], then) == then
    if then < now:
        assert total <= then * 0.85 + 1e-3 or then == 1


def sizes(loads: list[float], step: Callable[[list[float], int], int], now: int = 1) -> list[int]:
    """A pool's sizes under loads in workers' worth, one decision after another."""
    out = []
    for load in loads:
        now = step([load], now)
        out.append(now)
    return out


def changes(seen: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(seen))


def test_a_load_at_the_edge_moves_nothing() -> None:
    """An hour, a decision a second, noise about a whole number of workers: by the sum alone the pool would flap."""
    rng = random.Random(5)
    loads = [4.0 + rng.gauss(0, 0.1) for _ in range(3600)]
    assert changes(sizes(loads, lambda demands, now: wanted(demands, 0))) > 1000
    assert changes(sizes(loads, wanted)) <= 3


def test_a_pool_follows_a_day() -> None:
    """Up and down between 1 and 9 workers' worth: never too small, and each size once on either way."""
    loads = [5.0 - 4.0 * math.cos(2 * math.pi * n / 1000) for n in range(1000)]
    seen = sizes(loads, wanted)
    assert all(size >= load - 1e-5 for size, load in zip(seen, loads, strict=True))
    assert changes(seen) <= 2 * 9
    assert max(seen) == 9
    assert seen[-1] <= 2


def context(metrics: dict[str, dict[str, float]] | None) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3)


def test_serve_s_figures_are_summed_and_without_any_the_pool_stays() -> None:
    assert policy(context({DEMAND: {"a": 1.5, "b": 2.0}})) == (4, {})
    assert policy(context({DEMAND: {}})) == (3, {})
    assert policy(context(None)) == (3, {})


def test_serve_takes_the_settings_and_finds_the_policy() -> None:
    config = parse({"decode.replicas": 2, "decode.max_replicas": "5", "autoscaling.downscale_delay_s": "60"})
    made = autoscaling(config.decode, config.autoscaling)
    assert (made.min_replicas, made.max_replicas, made.downscale_delay_s) == (2, 5, 60)
    assert made.policy.get_policy()(context({DEMAND: {}})) == policy(context({DEMAND: {}}))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"decode.replicas": 3, "decode.max_replicas": 2}, "decode.max_replicas: 2 with 3 replicas"),
        ({"prefill.replicas": 0, "prefill.max_replicas": 2}, "prefill.max_replicas: 2 with 0 replicas"),
        ({"autoscaling.busy": 1.5}, "autoscaling.busy"),
        ({"decode.resources": {"decode": 0}}, "decode.resources.decode"),
    ],
)
def test_what_can_not_be_scaled_is_refused_by_name(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(settings)
