"""Tests steps that are launched before the host has read the previous step's tokens: answers do not change."""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
import torch
from msgspec import structs

from tests.workers.model_rig import ThreadCollectives, ThreadGroup
from tests.workers.test_drafts import CONFIG, NANO, NEW, VARIED, draft, prompts, same
from tests.workers.test_graphs import Again
from wire.protocol import Grammar, SamplingParams, SeqOutput
from workers.config import WorkerConfig
from workers.rank import build
from workers.rank.drafter import Drafter
from workers.rank.engine import Completion, Engine
from workers.rank.graphs import DecodeGraphs
from workers.rank.latest import Fed, Latest
from workers.rank.runner import Runner, Tell
from workers.rank.sampler import Sampler
from workers.schedule.step import Row, StepPlan

pytestmark = pytest.mark.process

Make = Callable[[WorkerConfig], Engine]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each step that the device fed."""
    seen: list[int] = []
    feed = Latest.feed

    def counted(self: Latest, rows: tuple[Row, ...]) -> Fed:
        seen.append(len(rows))
        return feed(self, rows)

    monkeypatch.setattr(Latest, "feed", counted)
    return seen


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make an engine that runs ahead of a device, as with a GPU."""

    def make(config: WorkerConfig) -> Engine:
        with monkeypatch.context() as patch:
            patch.setattr(build, "_capture", lambda config, device: Again())
            return Engine(config)

    return make


def plain(config: WorkerConfig = CONFIG) -> Engine:
    return Engine(dataclasses.replace(config, speculate="off"))


OFF = dataclasses.replace(CONFIG, speculate="off")
# None whose drafts are sampled one by one.
TOGETHER = [s for s in VARIED if s.repetition_penalty == 1.0 and s.max_tokens > 3]


def test_every_setting_gives_the_same_tokens(ahead: Make, fed: list[int]) -> None:
    engine = ahead(OFF)
    same(engine.generate(prompts(len(VARIED)), VARIED), plain().generate(prompts(len(VARIED)), VARIED))
    assert len(fed) > NEW // 2


def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_read(
    ahead: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for kind, name in ((DecodeGraphs, "__call__"), (Sampler, "read")):
        monkeypatch.setattr(kind, name, _noted(done, getattr(kind, name)))
    asked = SamplingParams(max_tokens=5, seed=1, temperature=0.0)
    ahead(OFF).generate([[3, 4, 5]], [asked])
    # The prompt's token is read first, and the last step has none behind it.
    assert done == ["read", "__call__", "__call__", "read", "__call__", "read", "__call__", "read", "read"]


def _noted(done: list[str], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def noted(*args: Any) -> Any:
        done.append(method.__name__)
        return method(*args)

    return noted


def _stopped(of: list[Completion], settings: list[SamplingParams]) -> list[SamplingParams]:
    """Stop tokens that occur at different steps, some of them before `min_tokens` allows an end."""
    return [
        structs.replace(s, stop_token_ids=(c.token_ids[at := len(c.token_ids) // 2], 251), min_tokens=at % 3 * 2)
        for s, c in zip(settings, of, strict=True)
    ]


def test_a_sequence_that_ended_leaves_its_state_as_it_was(ahead: Make, fed: list[int]) -> None:
    config = dataclasses.replace(OFF, cache_states=24)
    reference, engine = Engine(config), ahead(config)
    asked = prompts(len(VARIED))
    stops = _stopped(plain().generate(asked, VARIED), VARIED)
    first = reference.generate(asked, stops)
    same(engine.generate(asked, stops), first)
    assert {c.finish for c in first} == {"stop", "length"}
    # A row that had ended was in the next step too.
    turns = [[*p, *c.token_ids, 5, 6, 7] for p, c in zip(asked, first, strict=True)]
    same(engine.generate(turns, VARIED), reference.generate(turns, VARIED))
    hits = engine.scheduler.cache.totals.hit_tokens
    assert hits == reference.scheduler.cache.totals.hit_tokens
    assert hits["device"] > 0
    assert fed


def _arriving(engine: Engine, aborted: int) -> dict[str, list[SeqOutput]]:
    """Add prompts one after another while others run; abort one on the way."""
    told: dict[str, list[SeqOutput]] = {}
    waiting = list(zip(prompts(len(VARIED)), VARIED, strict=True))
    step = 0
    while waiting or engine.scheduler.sequences:
        if waiting and step % 4 == 0:
            told[engine.add(*waiting.pop(0))] = []
        if step == aborted:
            engine.scheduler.remove("1")
            told.pop("1")
        for output in engine.step():
            if output.request_id in told:
                told[output.request_id].append(output)
        step += 1
    return told


def test_arrivals_and_a_slot_that_another_sequence_takes_at_once(ahead: Make, fed: list[int]) -> None:
    config = dataclasses.replace(OFF, slots=2)
    expected, got = _arriving(plain(config), 9), _arriving(ahead(config), 9)
    assert got.keys() == expected.keys()
    for request, outputs in expected.items():
        tokens = [t for o in outputs for t in o.token_ids]
        assert [t for o in got[request] for t in o.token_ids] == tokens, request
        assert got[request][-1].finish == outputs[-1].finish
    assert fed


def test_a_grammar_s_masks_wait_for_the_token_before(ahead: Make, fed: list[int]) -> None:
    config = WorkerConfig(str(NANO), page_size=16, pages=64, slots=4, max_model_len=512, speculate="off")
    grammar = Grammar("start: /[a-z]{5} [0-9]{11}/")
    sampling = [
        SamplingParams(max_tokens=40, seed=n, temperature=1.0 * (n > 0), grammar=grammar, stop_token_ids=(1269,))
        for n in range(2)
    ]
    # One that may not end where its text is whole: it fails, and the other goes on.
    sampling.append(structs.replace(sampling[1], min_tokens=39))
    asked = [[11 + n, 40, 7] for n in range(3)]
    expected = Engine(config).generate(asked, sampling)
    same(ahead(config).generate(asked, sampling), expected)
    assert [c.finish for c in expected] == ["stop", "stop", "error"]
    assert len(fed) > 10


def test_a_sequence_takes_the_slot_of_one_whose_token_is_not_read_yet(ahead: Make, fed: list[int]) -> None:
    config = WorkerConfig(str(NANO), page_size=16, pages=64, slots=2, max_model_len=512, speculate="off")
    digits, letters = Grammar("start: /[0-9]{12}/"), Grammar("start: /[a-z]{12}/")
    sampling = [
        SamplingParams(max_tokens=20, seed=n, temperature=1.0, grammar=grammar, stop_token_ids=(1269,))
        for n, grammar in enumerate((digits, digits, letters))
    ]
    expected = Engine(config).generate([[11], [12], [13]], sampling)
    engine = ahead(config)
    for n in range(2):
        engine.add([11 + n], sampling[n])
    outputs = [output for _ in range(5) for output in engine.step()]
    engine.scheduler.remove("1")
    engine.add([13], sampling[2])
    steps = len(fed)
    while engine.scheduler.sequences:
        outputs += engine.step()
        steps += 1
    assert len(fed) > steps // 2
    for request, completion in zip(("0", "2"), (expected[0], expected[2]), strict=True):
        assert tuple(t for o in outputs if o.request_id == request for t in o.token_ids) == completion.token_ids


class Both:
    """Two ranks in threads. By chance the first one reads its tokens before or after the next plan arrives."""

    def __init__(self, config: WorkerConfig) -> None:
        group = ThreadGroup(2)
        self._pool = ThreadPoolExecutor(2)
        config = dataclasses.replace(config, tp=2)
        self._ranks: list[Runner] = list(
            self._pool.map(
                lambda rank: build.build_rank(config, ThreadCollectives(group, rank), None, print).runner, range(2)
            )
        )
        self._random = random.Random(5)

    @property
    def runs_ahead(self) -> bool:
        first, second = (rank.runs_ahead for rank in self._ranks)
        assert first == second
        return first

    def start(self, plan: StepPlan, tell: Tell) -> None:
        self._ranks[1].finish()  # it has nothing to tell, so it does not wait
        if self._random.random() < 0.3:
            self._ranks[0].finish()
        tells: list[Tell] = [tell, lambda result: None]
        list(self._pool.map(lambda rank, tell: rank.start(plan, tell), self._ranks, tells))

    def finish(self) -> None:
        self._ranks[0].finish()


@pytest.mark.parametrize("speculate", ["off", 2])
def test_ranks_feed_alike_whenever_the_first_has_read(
    speculate: Literal["off"] | int, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = VARIED if speculate == "off" else TOGETHER
    asked = prompts(len(settings))
    stops = _stopped(plain().generate(asked, settings), settings)
    expected = plain().generate(asked, stops)
    monkeypatch.setattr(build, "_capture", lambda config, device: Again())
    config = dataclasses.replace(CONFIG, speculate=speculate)
    engine = Engine(config)
    monkeypatch.setattr(engine, "_runner", Both(config))
    same(engine.generate(asked, stops), expected)
    assert len(fed) > 5


def _drafted(engine: Engine, expected: list[Completion], patch: pytest.MonkeyPatch, first: int = 0) -> None:
    """Drafts that stand for a while, of steps that are read first and of those that are fed."""
    draft(engine, expected, patch, first)
    oracle = Drafter.draft
    patch.setattr(
        Drafter,
        "feed",
        lambda _, before, fed: oracle(  # type: ignore[call-arg]
            [structs.replace(r, start=at) for r, at in zip(before, fed.places.starts.tolist(), strict=True)]  # type: ignore[arg-type]
        ),
    )


@pytest.mark.parametrize("own", [False, True])
def test_verified_steps_are_fed_however_many_drafts_stand(
    own: bool, ahead: Make, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, speculate=3, cache_states=24)
    asked = prompts(len(TOGETHER))
    free = plain().generate(asked, TOGETHER)
    reference = plain(dataclasses.replace(config, speculate="off"))
    stops = [
        structs.replace(s, stop_token_ids=(c.token_ids[11 + 3 * n], 251), min_tokens=n)
        for n, (s, c) in enumerate(zip(TOGETHER, free, strict=True))
    ]
    expected = reference.generate(asked, stops)
    engine = ahead(config)
    if not own:
        _drafted(engine, free, monkeypatch)
    same(engine.generate(asked, stops), expected)
    assert len(fed) > 2
    # The state at the end of an answer, which a step launched before it was read has passed over.
    turns = [[*p, *c.token_ids, 5, 6, 7] for p, c in zip(asked, expected, strict=True)]
    then = reference.generate(turns, TOGETHER)
    if not own:
        _drafted(engine, then, monkeypatch, first=len(TOGETHER))
    same(engine.generate(turns, TOGETHER), then)
    hits = engine.scheduler.cache.totals.hit_tokens
    assert hits == reference.scheduler.cache.totals.hit_tokens
    assert hits["device"] > 0


def test_as_many_drafts_stand_as_in_steps_that_are_read_first(ahead: Make, fed: list[int]) -> None:
    config = WorkerConfig(str(NANO), page_size=16, pages=64, slots=2, max_model_len=512, speculate=3)
    asked = [[11, 40, 7, 90], [300, 2, 5]]
    sampling = [SamplingParams(max_tokens=40, seed=n, temperature=0.0) for n in range(2)]
    reference, engine = Engine(config), ahead(config)
    same(engine.generate(asked, sampling), reference.generate(asked, sampling))
    expected, got = (sum(e.scheduler.drafting.speculation.totals.accepted) for e in (reference, engine))
    # Two drafts may be equally likely up to a rounding, which depends on how many tokens are computed together.
    assert abs(got - expected) <= 2
    assert expected > 10
    assert fed


def test_drafts_that_are_sampled_one_by_one_are_read_first(ahead: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ahead(dataclasses.replace(CONFIG, speculate=3))
    expected = plain().generate(prompts(len(VARIED)), VARIED)
    _drafted(engine, expected, monkeypatch)
    same(engine.generate(prompts(len(VARIED)), VARIED), expected)
    assert engine.scheduler.drafting.speculation.totals.offered[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(fed: list[int]) -> None:
    config = dataclasses.replace(OFF, device="cuda")
    expected = Engine(dataclasses.replace(config, cuda_graphs="off")).generate(prompts(len(VARIED)), VARIED)
    assert not fed
    same(Engine(config).generate(prompts(len(VARIED)), VARIED), expected)
    assert len(fed) > NEW // 2
