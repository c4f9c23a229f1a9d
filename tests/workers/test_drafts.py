"""Tests that speculation never changes tokens, whatever is drafted and accepted."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from msgspec import structs
from tokenizers import Tokenizer
from torch import Tensor

from tests.workers.model_rig import GOLDEN
from wire.protocol import Grammar, SamplingParams
from workers.config import WorkerConfig
from workers.rank.drafter import Drafter
from workers.rank.engine import Completion, Engine
from workers.schedule.step import Row

pytestmark = pytest.mark.process

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
CONFIG = WorkerConfig(str(GOLDEN / "base"), page_size=8, pages=256, slots=8, max_step_tokens=64, max_model_len=512)
NEW = 25
VARIED = [
    SamplingParams(max_tokens=NEW, seed=1, temperature=0.0, logprobs=2),
    SamplingParams(max_tokens=NEW, seed=2, temperature=0.9),
    SamplingParams(max_tokens=NEW, seed=3, temperature=1.3, top_k=20, top_p=0.9, min_p=0.01, logprobs=0),
    SamplingParams(
        max_tokens=NEW, seed=4, temperature=0.7, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.4
    ),
    SamplingParams(max_tokens=NEW, seed=5, temperature=0.0, logit_bias=((7, 4.0), (9, -3.0)), repetition_penalty=1.2),
    SamplingParams(max_tokens=3, seed=6, temperature=1.0),
    SamplingParams(max_tokens=1, seed=6, temperature=1.0),
]


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(200) for _ in range(rng.randrange(1, 40))] for _ in range(count)]


class Oracle:
    """Makes drafts in place of the MTP layer: the right next tokens, wrong from a random place on."""

    def __init__(self, engine: Engine, expected: dict[str, Sequence[int]], seed: int) -> None:
        self._engine = engine
        self._expected = expected
        self._rng = random.Random(seed)

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        most = max(row.drafts for row in rows)
        out = torch.zeros(len(rows), most, dtype=torch.int64)
        sequences = {s.slot: s for s in self._engine.scheduler.sequences.values() if s.slot >= 0}
        for at, row in enumerate(rows):
            seq = sequences[row.slot]
            known = self._expected[seq.request_id][row.start + 1 - seq.prompt_tokens :]
            right = self._rng.choice((0, 1, row.drafts, row.drafts))
            for n, token in enumerate(known[: row.drafts]):
                out[at, n] = token if n < right else (token + 1) % 200
        return out


def draft(engine: Engine, expected: list[Completion], patch: pytest.MonkeyPatch, first: int = 0) -> None:
    known = {str(first + n): completion.token_ids for n, completion in enumerate(expected)}
    oracle = Oracle(engine, known, seed=len(known))
    patch.setattr(Drafter, "draft", oracle)


def same(got: list[Completion], expected: list[Completion]) -> None:
    assert [(c.token_ids, c.finish) for c in got] == [(c.token_ids, c.finish) for c in expected]
    for one, other in zip(got, expected, strict=True):
        assert [p.top_ids for p in one.logprobs] == [p.top_ids for p in other.logprobs]
        for a, b in zip(one.logprobs, other.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)


@pytest.fixture(scope="module")
def expected() -> list[Completion]:
    return Engine(CONFIG).generate(prompts(len(VARIED)), VARIED)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_every_setting_gives_the_same_tokens_however_many_drafts_are_accepted(
    most: int, expected: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(dataclasses.replace(CONFIG, speculate=most))
    draft(engine, expected, monkeypatch)
    same(engine.generate(prompts(len(VARIED)), VARIED), expected)
    drafted = engine.scheduler.drafting.speculation.totals
    assert all(drafted.accepted)
    assert engine.scheduler.steps < NEW + len(VARIED)


def test_the_mtp_layer_s_own_drafts_give_the_same_tokens(expected: list[Completion]) -> None:
    engine = Engine(dataclasses.replace(CONFIG, speculate=3))
    same(engine.generate(prompts(len(VARIED)), VARIED), expected)
    assert engine.scheduler.drafting.speculation.totals.offered[0]


def test_a_stop_token_within_a_run_ends_it_and_the_state_there_is_kept(
    expected: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = [
        structs.replace(s, stop_token_ids=(c.token_ids[len(c.token_ids) // 2],), min_tokens=2)
        for s, c in zip(VARIED, expected, strict=True)
    ]
    reference = Engine(dataclasses.replace(CONFIG, cache_states=16))
    plain = reference.generate(prompts(len(VARIED)), stops)
    engine = Engine(dataclasses.replace(CONFIG, speculate=3, cache_states=16))
    draft(engine, expected, monkeypatch)
    same(engine.generate(prompts(len(VARIED)), stops), plain)
    # The next turns begin from where the answers ended.
    turns = [[*p, *c.token_ids, 5, 6, 7] for p, c in zip(prompts(len(VARIED)), plain, strict=True)]
    then = reference.generate(turns, VARIED)
    draft(engine, then, monkeypatch, first=len(VARIED))
    same(engine.generate(turns, VARIED), then)
    hits = engine.scheduler.cache.totals.hit_tokens
    assert hits == reference.scheduler.cache.totals.hit_tokens
    assert hits["device"] > 0


def test_a_grammar_holds_within_a_run_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WorkerConfig(str(NANO), page_size=16, pages=64, slots=4, max_model_len=512)
    end = (1269,)
    grammar = Grammar("start: /[a-z]{5} [0-9]{11}/")
    sampling = [
        SamplingParams(max_tokens=40, seed=n, temperature=1.0 * (n > 0), grammar=grammar, stop_token_ids=end)
        for n in range(3)
    ]
    asked = [[11 + n, 40, 7] for n in range(3)]
    plain = Engine(config).generate(asked, sampling)
    engine = Engine(dataclasses.replace(config, speculate=3))
    draft(engine, plain, monkeypatch)
    same(engine.generate(asked, sampling), plain)
    assert {c.finish for c in plain} == {"stop"}
    assert engine.scheduler.drafting.speculation.totals.accepted[2]


def test_a_checkpoint_without_the_layer_is_served_without_drafts_or_refused(capfd: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(CONFIG, model=str(GOLDEN / "int4"), pages=64)
    engine = Engine(dataclasses.replace(config, speculate="auto"))
    assert not engine.model_config.drafts
    assert "serving without speculation" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="set speculate to auto or off"):
        Engine(dataclasses.replace(config, speculate=2))


def test_most_drafts_of_ling_nano_are_accepted() -> None:
    text = "<role>HUMAN</role>What is the capital of France?<|role_end|><role>ASSISTANT</role>"
    ids = Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    engine = Engine(WorkerConfig(str(NANO), pages=64, slots=4, max_model_len=512, speculate=1))
    sampling = SamplingParams(max_tokens=40, seed=0, temperature=0.0, stop_token_ids=(1269,))
    engine.generate([ids], [sampling])
    drafted = engine.scheduler.drafting.speculation.totals
    assert drafted.accepted[0] >= 0.6 * drafted.offered[0] > 0
