"""How pools are sized: by plain figures, without Serve."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import AutoscalingSection, ConfigError, parse
from cluster.scaling import DEMAND, autoscaling, demand, policy, wanted
from wire.protocol import Load, Role, WorkerInfo

TARGET = AutoscalingSection(busy=0.8, wait_s=2.0)
STEP_TOKENS = 1000


def asks(role: Role, **load: Any) -> float:
    info: Any = SimpleNamespace(role=role, slots=100, pages=1000)
    assert {"role", "slots", "pages"} <= set(WorkerInfo.__dataclass_fields__)
    idle = {"queued": 0, "queued_tokens": 0, "running": 0, "free_pages": 1000, "free_slots": 100, "transferring": 0}
    return demand(info, Load(**{**idle, "step_s": 0.1, **load}), STEP_TOKENS, TARGET)


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
    workers = wanted(demands)
    assert workers >= sum(demands) - 1e-3
    assert workers == 1 or workers - 1 < sum(demands)


def test_workers_that_have_just_enough_are_enough() -> None:
    assert wanted([0.1] * 10 + [0.2] * 5) == 2


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
