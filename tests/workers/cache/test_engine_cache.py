"""Tests, with the engine, that continuing from a kept snapshot gives the uninterrupted request's tokens."""

import dataclasses
import random
from pathlib import Path

import pytest

from wire.protocol import SamplingParams
from workers.config import StateDtype, WorkerConfig
from workers.rank.engine import Engine

pytestmark = pytest.mark.process
GOLDEN = Path(__file__).parents[2] / "golden"
BASE = WorkerConfig(str(GOLDEN / "base"), page_size=8, pages=256, slots=8, max_step_tokens=64, max_model_len=512)


def engine(states: int = 12, host_bytes: int = 0, **more: object) -> Engine:
    return Engine(dataclasses.replace(BASE, cache_states=states, cache_host_bytes=host_bytes, **more))  # type: ignore[arg-type]


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, seed=0, temperature=0.0, logprobs=0)


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(200) for _ in range(length)]


@pytest.fixture(scope="module")
def fresh() -> Engine:
    return engine(states=0)


def run(on: Engine, prompts: list[list[int]], count: int = 12) -> list[tuple[int, ...]]:
    return [c.token_ids for c in on.generate(prompts, [greedy(count)] * len(prompts))]


def origins(on: Engine) -> dict[str, int]:
    return dict(on.scheduler.cache.totals.hits)


@pytest.fixture
def turns(fresh: Engine) -> list[list[int]]:
    """The prompts of five turns of one session, each with the earlier answers."""
    out = [prompt(1, 37)]
    for n in range(4):
        out.append([*out[-1], *run(fresh, [out[-1]])[0], *prompt(10 + n, 9)])
    return out


def test_every_turn_of_a_session_hits_and_answers_alike(fresh: Engine, turns: list[list[int]]) -> None:
    cached = engine()
    for n, ids in enumerate(turns):
        assert run(cached, [ids]) == run(fresh, [ids])
        assert origins(cached)["device"] == n
    # Each turn computed its nine new tokens and the last of the answer, which had only been sampled.
    assert cached.scheduler.cache.totals.missed_tokens["new"] == 37 + 4 * 10


def test_forks_share_their_prompt_and_answer_alike(fresh: Engine) -> None:
    cached = engine()
    ids = prompt(3, 50)
    assert run(cached, [ids] * 6) == run(fresh, [ids]) * 6
    assert cached.scheduler.cache.totals.missed_tokens["new"] == 50 + 5


def test_branches_continue_from_where_they_part(fresh: Engine) -> None:
    cached = engine()
    stem = prompt(4, 45)
    for n in range(4):
        ids = [*stem, *prompt(40 + n, 6)]
        assert run(cached, [ids]) == run(fresh, [ids])
    assert origins(cached)["device"] == 2  # the second one showed where, so the third begins there


def test_restored_from_the_host(fresh: Engine, turns: list[list[int]]) -> None:
    cached = engine(states=2, host_bytes=1 << 30)
    for n, ids in enumerate(turns):
        assert run(cached, [ids]) == run(fresh, [ids])
        run(cached, [prompt(200 + n, 30), prompt(300 + n, 30)])  # take the device's places
        assert origins(cached)["host"] == n


def test_preempted_sequences_continue_from_their_kept_snapshots(fresh: Engine) -> None:
    small = engine(states=6, pages=64, max_model_len=64, slots=8)
    prompts = [prompt(60 + i, 40) for i in range(8)]
    assert run(small, prompts, 24) == run(fresh, prompts, 24)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.2)])
def test_drift_of_states_kept_in_fewer_bits(
    dtype: StateDtype, bound: float, fresh: Engine, turns: list[list[int]]
) -> None:
    cached = engine(states=1, host_bytes=1 << 30, cache_state_dtype=dtype)
    run(cached, [turns[0]])
    run(cached, [prompt(5, 30), prompt(6, 30)])
    ids = turns[1]
    got, want = (e.generate([ids], [greedy(1)])[0].logprobs[0].logprob for e in (cached, fresh))
    assert origins(cached)["host"] == 1
    assert abs(got - want) < bound


def test_a_flipped_byte_on_the_host_is_never_used(fresh: Engine, turns: list[list[int]]) -> None:
    cached = engine(states=1, host_bytes=1 << 30)
    run(cached, [turns[0]])
    run(cached, [prompt(5, 30)])
    for entry in cached.host._entries.values():
        entry.result().state.tensors[0].view(-1).numpy()[5] += 1.0
    assert run(cached, [turns[1]]) == run(fresh, [turns[1]])
    assert origins(cached)["host"] == 0
