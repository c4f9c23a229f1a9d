"""Tests how often a rank waits for its GPU: counted on a CPU, and refused by CUDA on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch

from tests.workers.model_rig import CPU
from tests.workers.test_graphs import PAGE, Again, Side, _prompt
from tests.workers.waits import Waits
from wire.protocol import SamplingParams
from workers.collectives.base import Solo
from workers.model.batch import Caches
from workers.rank.graphs import captures
from workers.schedule.step import Admit, Ahead, Commit, Export, Install, Row, StepPlan
from workers.transfer.incoming import ReceivedSnapshot
from workers.transfer.snapshot import read_latents, read_shard, read_state, write_latents, write_state


class Exports:
    """A fake transfer layer that keeps what is sent and returns it as received."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, torch.Tensor]] = []
        self.state = torch.empty(0)

    def send(self, export: Export, latents: torch.Tensor, state: torch.Tensor | None) -> None:
        self.parts.append((export.stop - export.start, latents))
        if state is not None:
            self.state = state

    def take(self, request_id: str) -> ReceivedSnapshot:
        return ReceivedSnapshot(tuple(self.parts), self.state, 1)


class Rank(Solo):
    """One rank of a group, whose collectives return its own values."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def _begun(device: torch.device = CPU, capture: Any = None, drafts: int = 0) -> Side:
    """A runner with two sequences whose prompts are computed."""
    side = Side("base", capture, device, drafts)
    # Greedy: the reference that draws where there is no GPU reads values.
    admits = tuple(Admit(slot, SamplingParams(max_tokens=9, seed=1, temperature=0.0), (), 3) for slot in (0, 1))
    side.step([_prompt(0, 6, (0, 1, 2)), _prompt(1, 3, (3, 4))], admits)
    side.runner._watch._due = float("inf")  # a measured step reads the experts' counts too
    return side


def _decode(side: Side, **more: Any) -> None:
    rows = (Row(0, 6, (5,), 0, (), True), Row(1, 3, (6,), 0, (), True))
    side.steps += 1
    side.run(StepPlan(step=side.steps, rows=rows, **more))


def test_a_decode_step_waits_once_for_its_tokens() -> None:
    side = _begun()
    with Waits() as waits:
        _decode(side)
    assert waits.seen == {"tolist": 1}


@pytest.mark.parametrize("rank", [0, 3])
def test_only_the_first_of_four_ranks_waits(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    side = _begun()
    monkeypatch.setattr(side.runner, "_collectives", Rank(rank, 4))
    with Waits() as waits:
        _decode(side)
    assert waits.seen == ({} if rank else {"tolist": 1})


@pytest.mark.parametrize("rank", [0, 3])
def test_drafting_and_verifying_wait_for_nothing_but_the_tokens(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    side = _begun(drafts=2)
    monkeypatch.setattr(side.runner, "_collectives", Rank(rank, 4))
    with Waits() as waits:
        for commits in ((), (Commit(0, 2), Commit(1, 1))):
            side.steps += 1
            starts = (6, 3) if not commits else (8, 4)
            rows = tuple(Row(slot, start, (5,), 0, (), True, drafts=2) for slot, start in enumerate(starts))
            side.run(StepPlan(step=side.steps, commits=commits, rows=rows))
    # The tokens of each step, then its drafts, which were there before.
    assert waits.seen == ({} if rank else {"tolist": 4})


def test_snapshots_leave_and_enter_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    side = _begun()
    monkeypatch.setattr(side.runner._snapshots, "_transfers", Exports())
    with Waits() as waits:
        _decode(side, exports=(Export("r", "D", 0, (0, 1), 0, 6, True),))
        side.run(StepPlan(step=9, installs=(Install("r", 2, (5, 6), 0),)))
    assert waits.seen == {"tolist": 1}
    pages = side.caches
    assert torch.equal(read_latents(pages, (5, 6), 0, 6), read_latents(pages, (0, 1), 0, 6))


@contextmanager
def _no_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_no_wait_in_decode_export_and_install() -> None:
    device = torch.device("cuda", 0)
    side = _begun(device, captures(device))
    graphs = side.runner._graphs
    assert graphs is not None
    rows = (Row(0, 6, (5,), 0, (), True), Row(1, 3, (6,), 0, (), True))
    caches: Caches = side.caches
    with _no_waits(), torch.inference_mode():
        side.model.logits(graphs(rows, torch.tensor((5, 6)).to(device)))
        latents, state = read_shard(caches, (0, 1), 0, 6, 0, 1), read_state(caches, 0)
        write_latents(caches, (5, 6), latents)
        write_state(caches, 2, state)
    assert torch.equal(caches.latent[:, 5], caches.latent[:, 0])
    assert latents.shape[0] == 6 <= 2 * PAGE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("drafts", [0, 2])
def test_cuda_finds_no_wait_in_a_step_that_the_device_feeds(drafts: int) -> None:
    device = torch.device("cuda", 0)
    assert _told(_begun(device, captures(device), drafts), drafts, _no_waits) == _told(
        _begun(device, drafts=drafts), drafts
    )


@pytest.mark.parametrize("drafts", [0, 2])
def test_steps_fed_one_after_another_give_what_steps_read_first_give(drafts: int) -> None:
    assert _told(_begun(capture=Again(), drafts=drafts), drafts, nullcontext) == _told(_begun(drafts=drafts), drafts)


def _told(
    side: Side, drafts: int, within: Callable[[], AbstractContextManager[None]] | None = None
) -> list[tuple[tuple[int, ...], ...]]:
    """The tokens of four steps; within: each one is started in it before the one before is read."""
    told: list[tuple[tuple[int, ...], ...]] = []
    rows = (
        Row(0, 6, (5,), 3, (5, 6), True, drafts=drafts), Row(1, 3, (6,), 2, (7, 8, 9), True, drafts=drafts),
    )  # fmt: skip
    side.runner.start(StepPlan(step=7, rows=rows), lambda result: told.append(result.tokens))
    for step in range(8, 11):
        assert side.runner.runs_ahead == (within is not None)
        with within() if within is not None else nullcontext():
            side.runner.start(StepPlan(step=step, ahead=Ahead((), ())), lambda result: told.append(result.tokens))
    side.runner.finish()
    return told
