"""Tests captured decode steps: they equal eager steps and touch no other sequence's state."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from msgspec import structs
from torch import Tensor
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction

from tests.workers.model_rig import CPU, GOLDEN, poisoned
from wire.protocol import SamplingParams
from workers.collectives import Solo
from workers.config import WorkerConfig
from workers.model.batch import Batch, Caches
from workers.model.config import LingConfig
from workers.model.ling import LingModel, make_caches
from workers.model.loader import Loader, Read
from workers.model.synthetic import Synthetic
from workers.model.weights import load_weights
from workers.rank.build import build_rank
from workers.rank.drafter import Drafter
from workers.rank.grammar import Grammars
from workers.rank.graphs import Capture, DecodeGraphs, Places, Work, batch_sizes, captures, size_for
from workers.rank.host_store import HostStore
from workers.rank.latest import Fed
from workers.rank.runner import Runner
from workers.rank.state_codec import StateCodec
from workers.schedule.step import Admit, Commit, Row, StepPlan, StepResult

pytestmark = pytest.mark.process

PAGE, PAGES, SLOTS = 4, 20, 5
RELEASED = Path(__file__).parents[2] / "planner/models/ling-2.6-flash"


class Nowhere(Synthetic):
    """Weights that take no time to make."""

    def fill(self, read: Read) -> int:
        return 0


def test_sizes() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(2) == (1, 2)
    assert batch_sizes(3) == (1, 2, 3)
    assert batch_sizes(20) == (1, 2, 4, 8, 16, 20)
    assert batch_sizes(32) == (1, 2, 4, 8, 16, 24, 32)


def test_every_batch_has_the_smallest_size_that_holds_it() -> None:
    for slots in range(1, 70):
        sizes = batch_sizes(slots)
        for rows in range(1, slots + 1):
            assert size_for(rows, sizes) == min(n for n in sizes if n >= rows)
        assert size_for(slots + 1, sizes) is None


class Again:
    """A fake graph: replaying computes the step again and writes the result to the first one's memory."""

    def __init__(self) -> None:
        self.replayed: list[int] = []

    def __call__(self, work: Work) -> tuple[Callable[[], object], Tensor]:
        hidden = work()

        def replay() -> None:
            self.replayed.append(len(hidden))
            hidden.copy_(work())

        return replay, hidden


class Side:
    """A runner on a golden checkpoint, with caches full of NaN."""

    def __init__(self, name: str, capture: Capture | None, device: torch.device = CPU, drafts: int = 0) -> None:
        folder = GOLDEN / name
        config = replace(LingConfig.load(folder, {}), drafts=drafts > 0)
        self.model = LingModel(config, Solo(), device, torch.float32)
        load_weights(self.model, folder)
        # Equal sizes on both sides, so that the last slot and page can be compared too.
        verified = SLOTS * (1 + drafts) if drafts else 0
        caches = make_caches(config, 1, PAGES + 1, PAGE, SLOTS + 1, device, torch.float32, verified)
        self.caches = poisoned(caches)
        host = HostStore(0, device, StateCodec(), print)
        grammars = Grammars(folder, config.vocab_size)
        self.runner = Runner(self.model, self.caches, Solo(), PAGES, None, grammars, SLOTS, host, capture, drafts)
        self.steps = 0
        if isinstance(capture, Again):
            sizes = [size * width for size in (5, 4, 2, 1) for width in ((1 + drafts, 1) if drafts else (1,))]
            assert capture.replayed == sizes
            capture.replayed.clear()

    def step(
        self, rows: list[Row], admits: tuple[Admit, ...] = (), commits: tuple[Commit, ...] = ()
    ) -> tuple[int, ...]:
        return tuple(token for tokens in self.runs(rows, admits, commits) for token in tokens)

    def runs(
        self, rows: list[Row], admits: tuple[Admit, ...] = (), commits: tuple[Commit, ...] = ()
    ) -> tuple[tuple[int, ...], ...]:
        self.steps += 1
        plan = StepPlan(step=self.steps, commits=commits, rows=tuple(rows), admits=admits)
        return self.run(plan).tokens

    def run(self, plan: StepPlan) -> StepResult:
        """Run one plan to its end."""
        told: list[StepResult] = []
        self.runner.start(plan, told.append)
        self.runner.finish()
        return told[-1]


def _admit(slot: int) -> Admit:
    # Drawn: the tokens hang on the logits' values, not only on which is largest.
    return Admit(slot, SamplingParams(max_tokens=99, seed=slot, temperature=1.0), (), 1)


def _prompt(slot: int, length: int, pages: tuple[int, ...]) -> Row:
    return Row(slot, 0, tuple((7 * slot + 3 * i) % 200 for i in range(length)), 0, pages, True)


def _run(side: Side, slots: list[int], decodes: list[list[int]]) -> list[tuple[int, ...]]:
    """Prompts for all slots in one step, then steps of some of them; the tokens of each step."""
    lengths = {slot: 2 + slot for slot in slots}
    pages = {slot: tuple(range(4 * i, 4 * i + 4)) for i, slot in enumerate(slots)}
    said = [side.step([_prompt(s, lengths[s], pages[s]) for s in slots], tuple(_admit(s) for s in slots))]
    last = dict(zip(slots, said[0], strict=True))
    for chosen in decodes:
        said.append(side.step([Row(s, lengths[s], (last[s],), 0, (), True) for s in chosen]))
        for slot, token in zip(chosen, said[-1], strict=True):
            last[slot] = token
            lengths[slot] += 1
    return said


def _bits(caches: Caches) -> tuple[Tensor, Tensor]:
    """The caches without the last page and slot, as integers, because NaN does not equal itself."""
    return caches.latent[:, :-1].view(torch.int32), caches.state[:, :-1].view(torch.int32)


@pytest.mark.parametrize("name", ["base", "fp8"])
def test_padded_steps_equal_eager_ones_and_leave_others_alone(name: str) -> None:
    again = Again()
    eager, padded = Side(name, None), Side(name, again)
    slots, decodes = [3, 0, 4, 1, 2], [[3, 0, 4], [1], [4, 3, 2, 0, 1], [2, 0], [0, 2, 4]]
    assert _run(padded, slots, decodes) == _run(eager, slots, decodes)
    # Five slots: sizes 1, 2, 4 and 5. The prompts' step was no decode step.
    assert again.replayed == [4, 1, 5, 2, 4]
    for got, expected in ((padded.caches.latent, eager.caches.latent), (padded.caches.state, eager.caches.state)):
        torch.testing.assert_close(got[:, :-1], expected[:, :-1], equal_nan=True)


def _verify(eager: Side, padded: Side) -> None:
    """Check that steps with drafts give the same tokens on both sides."""
    sides = (eager, padded)
    slots = [3, 0, 4]
    pages = {slot: tuple(range(4 * i, 4 * i + 4)) for i, slot in enumerate(slots)}
    prompts = [_prompt(s, 2 + s, pages[s]) for s in slots]
    last = {side: side.step(prompts, tuple(_admit(s) for s in slots)) for side in sides}
    assert last[sides[0]] == last[sides[1]]
    tokens, lengths = dict(zip(slots, last[sides[0]], strict=True)), {s: 2 + s for s in slots}
    commits: tuple[Commit, ...] = ()
    for chosen in ([3, 0, 4], [0], [4, 3], [0, 3, 4]):
        rows = [Row(s, lengths[s], (tokens[s],), 0, (), True, drafts=2) for s in chosen]
        expected, got = (side.runs(rows, commits=commits) for side in sides)
        assert got == expected
        commits = tuple(Commit(s, len(run)) for s, run in zip(chosen, got, strict=True))
        for slot, run in zip(chosen, got, strict=True):
            lengths[slot] += len(run)
            tokens[slot] = run[-1]


def test_padded_steps_that_verify_equal_eager_ones() -> None:
    again = Again()
    eager, padded = Side("base", None, drafts=2), Side("base", again, drafts=2)
    _verify(eager, padded)
    assert again.replayed == [12, 3, 6, 12]
    for got, expected in ((padded.caches.latent, eager.caches.latent), (padded.caches.state, eager.caches.state)):
        torch.testing.assert_close(got[:, :-1], expected[:, :-1], equal_nan=True)


def test_padding_touches_nothing_but_its_own_slot_and_page() -> None:
    side = Side("base", Again())
    _run(side, [0, 1, 2], [])
    before = [x.clone() for x in _bits(side.caches)]
    # Three rows in a step of four; sequence 1 sits out, slots 3 and 4 and most pages were never used.
    side.step(
        [Row(0, 2, (5,), 0, (), True), Row(2, 4, (6,), 0, (), True), Row(3, 0, (7,), 0, (18,), True)], (_admit(3),)
    )
    latent, state = _bits(side.caches)
    changed = (latent != before[0]).any(-1).any(0)
    places = {(int(page), int(at)) for page, at in changed.nonzero()}
    # Position 2 of the first sequence's pages, position 4 of the third's, position 0 of the new one's.
    assert places == {(0, 2), (9, 0), (18, 0)}
    touched = (state != before[1]).flatten(2).any(-1).any(0).nonzero().flatten().tolist()
    assert touched == [0, 2, 3]


def test_a_graph_serves_only_steps_of_single_tokens() -> None:
    side = Side("base", Again())
    graphs = side.runner._graphs
    assert graphs is not None
    one = Row(0, 3, (5,), 0, (), True)
    assert graphs.serves((one,))
    others = ({"token_ids": (5, 6)}, {"sample": False}, {"next_ids": (1,)})
    for other in (structs.replace(one, **changes) for changes in others):
        assert not graphs.serves((one, other))
    assert not graphs.serves(())
    with pytest.raises(ValueError, match="6 rows in a step of a worker with 5 slots"):
        graphs((one,) * 6, torch.full((6,), 5))


def test_experts_are_counted_in_a_step_that_is_not_captured() -> None:
    again = Again()
    side = Side("base", again)
    _run(side, [0], [[0]])
    counted = side.runner._experts.by_rank
    replayed = len(again.replayed)
    side.steps = 511
    side.step([Row(0, 3, (5,), 0, (), True)])
    assert len(again.replayed) == replayed
    assert side.runner._experts.by_rank > counted


def test_a_worker_without_a_gpu_captures_nothing() -> None:
    config = WorkerConfig(str(GOLDEN / "base"), slots=2, pages=4, max_model_len=16, page_size=4)
    built = build_rank(config, Solo(), None, lambda line: None)
    assert built.caches.state.shape[1] == 3  # one is left to captured steps
    assert built.caches.latent.shape[1] == 4


@pytest.mark.process
def test_kernels_read_nothing_the_host_knew_when_it_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a real graph, the replay repeats the kernels with the Python values of the capture."""
    slots, decodes = [1, 0], [[1, 0]]
    expected = _run(Side("base", None), slots, decodes)
    again = Again()
    side = Side("base", again)
    forward = LingModel.forward

    def frozen(self: LingModel, batch: Batch, caches: Caches) -> Tensor:
        if all(n == 1 for n in batch.counts):
            # Interpreted kernels are slow: only the step this is about.
            monkeypatch.setattr(import_module("kernels.dispatch"), "FORCED", "triton")
            batch = replace(batch, starts=(0,) * len(batch.counts))
        return forward(self, batch, caches)

    monkeypatch.setattr(LingModel, "forward", frozen)
    assert _run(side, slots, decodes) == expected
    assert again.replayed == [2]


def test_a_decode_step_of_the_released_model_asks_the_device_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on the meta device, where reading a value raises; kernels are launched but do nothing."""
    monkeypatch.setattr(import_module("kernels.dispatch"), "FORCED", "triton")
    launched: list[object] = []
    for kernel in (GridExecutor, JITFunction):
        method = "__call__" if kernel is GridExecutor else "run"
        monkeypatch.setattr(kernel, method, lambda self, *args, **kwargs: launched.append(self))
    # Two layers of linear attention and one of latent, one dense and two with experts.
    changes = {
        "num_hidden_layers": 3,
        "layer_group_size": 3,
        "num_experts": 16,
        "quantization_config": {"quant_method": "fp8"},
    }
    config = replace(LingConfig.load(RELEASED, changes), drafts=True)
    meta = torch.device("meta")
    model = LingModel(config, Solo(), meta, torch.bfloat16)
    loader = Loader(Nowhere(config.quantization))
    model.load(loader)
    loader.run()
    caches = make_caches(config, 1, 1000, 64, 25, meta, torch.bfloat16, 25 * 4)
    again, table = Again(), torch.zeros(25, 2049, dtype=torch.int32, device=meta)
    with torch.inference_mode():
        graphs = DecodeGraphs(model, caches, table, again, drafts=3)
        launched.clear()
        again.replayed.clear()
        for count in (1, 7, 24):
            hidden = graphs([Row(i, 9, (5,), 0, (), True) for i in range(count)], torch.empty(count, device=meta))
            assert hidden.shape == (count, config.hidden_size)
    assert again.replayed == [1, 8, 24]
    assert len(launched) > 3 * 20
    launched.clear()
    rows = tuple(Row(i, 9, (5,), 0, (), True, drafts=3) for i in range(7))
    came = torch.empty(7, 3, dtype=torch.int64, device=meta)
    fed = Fed(rows, came, came[:, 1], came[:, 0], Places(came[:, 0], came[:, 2] > 0))
    with torch.inference_mode():
        drafts = Drafter(model, caches, table).feed(rows, fed)
        hidden = graphs(rows, torch.cat((fed.tokens[:, None], drafts), 1).flatten(), fed.places)
    assert hidden.shape == (7 * 4, config.hidden_size)
    assert len(launched) > 3 * 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["base", "fp8"])
def test_graphs_on_a_gpu(name: str) -> None:
    device = torch.device("cuda", 0)
    eager, graphed = Side(name, None, device), Side(name, captures(device), device)
    slots, decodes = [3, 0, 4, 1, 2], [[3, 0, 4], [1], [4, 3, 2, 0, 1], [2, 0], [0, 2, 4]]
    assert _run(graphed, slots, decodes) == _run(eager, slots, decodes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_that_verify_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    _verify(Side("base", None, device, drafts=2), Side("base", captures(device), device, drafts=2))
