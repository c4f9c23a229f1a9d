"""Tests weights from a live worker: what is sent, what is refused, and the fallback to storage."""

import asyncio
import dataclasses
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
import pytest
import torch
from msgspec import structs
from torch import Tensor

from benchmarks.loading import CONFIG, write_checkpoint
from tests.workers.harness import GOLDEN, workers
from tests.workers.test_worker import MODEL, cases, config
from tests.workers.transfer_ends import CHANNELS, HOST, End, ends
from wire.protocol import RankInfo, WorkerInfo
from workers.collectives.base import Solo
from workers.config import Lender, WorkerConfig
from workers.leader.start import find_lender
from workers.model.config import LingConfig
from workers.model.files import WeightError, weights_id
from workers.model.ling import LingModel
from workers.model.load_plan import rank_reads
from workers.model.shared import Borrowed, plan_of
from workers.model.weights import open_checkpoint
from workers.rank.load import load_weights
from workers.sizes import layout_of
from workers.transfer.channel import LinkBroken
from workers.transfer.lending import Weights, pause

CPU = torch.device("cpu")
FORMATS = ("base", "fp8", "int4")


def tensors() -> tuple[Tensor, ...]:
    """Tensors of every dtype of weights; some are not contiguous or empty, one is sent in several pieces."""
    made = torch.Generator().manual_seed(3)
    return (
        torch.randn(7, 5, generator=made),
        torch.randn(64, 48, generator=made).to(torch.bfloat16).T,
        torch.randn(33, generator=made).to(torch.float8_e4m3fn),
        torch.randint(-9, 9, (4, 4), generator=made).to(torch.int32),
        torch.empty(0),
        torch.randn(3 << 20, generator=made),
    )


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_tensor_arrives_unchanged(channel: Literal["shm", "gloo", "nixl"]) -> None:
    sent = tensors()
    with ends(channel) as (lender, borrower):
        lender.transfers.lending.weights = Weights("w", "plan", b"catalogue", sent)
        link = borrower.transfers.borrow(HOST, lender.transfers.port, "w")
        assert (link.plan, link.catalogue) == ("plan", b"catalogue")
        assert link.total == sum(t.numel() * t.element_size() for t in sent)
        for tensor in sent:
            out = torch.empty_like(tensor)
            link.fill(out)
            assert torch.equal(flat(out), flat(tensor))
        link.close()
        assert lender.transfers.lending.lent == link.total + len(link.catalogue)


def test_two_borrow_at_once() -> None:
    sent = tensors()
    with ends("shm") as (lender, first):
        second = End("E", "shm")
        lender.transfers.lending.weights = Weights("w", "plan", b"c", sent)
        links = [end.transfers.borrow(HOST, lender.transfers.port, "w") for end in (first, second)]
        for tensor in sent:
            for link in links:
                out = torch.empty_like(tensor)
                link.fill(out)
                assert torch.equal(out.float(), tensor.float())
        for link in links:
            link.close()
        second.transfers.close()


def test_other_weights_are_refused() -> None:
    with ends("shm") as (lender, borrower):
        with pytest.raises(LinkBroken, match="holds other weights, or lends none"):
            borrower.transfers.borrow(HOST, lender.transfers.port, "w")
        lender.transfers.lending.weights = Weights("other", "plan", b"c", ())
        with pytest.raises(LinkBroken, match="holds other weights, or lends none"):
            borrower.transfers.borrow(HOST, lender.transfers.port, "w")


def test_a_lender_that_serves_gives_a_quarter_of_its_time() -> None:
    assert pause(1.0, 1, busy=True) == pytest.approx(3.0)
    # Two at once have an eighth each.
    assert pause(1.0, 2, busy=True) == pytest.approx(7.0)
    assert pause(1.0, 2, busy=False) == 0.0


def flat(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def model_of(folder: Path) -> LingModel:
    return LingModel(LingConfig.load(folder, {}), Solo(), CPU, torch.float32)


def logits(model: LingModel) -> Tensor:
    with torch.inference_mode():
        hidden = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
        return model.logits(hidden)


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_each_format_is_borrowed_without_its_files(name: str, tmp_path: Path) -> None:
    folder = GOLDEN / name
    said: list[str] = []
    with ends("shm") as (lender, borrower):
        own = model_of(folder)
        load_weights(WorkerConfig(str(folder)), own, lender.transfers, said.append)
        description = tmp_path / "m"
        description.mkdir()
        shutil.copy(folder / "config.json", description)
        other = model_of(description)
        address = ((HOST, lender.transfers.port),)
        borrowing = WorkerConfig(str(description), lender=Lender("P", weights_id(folder), address))
        load_weights(borrowing, other, borrower.transfers, said.append)
        held, lent = borrower.transfers.lending.weights, lender.transfers.lending.weights
        assert held is not None
        assert lent is not None
        # It can lend in turn, and what it holds is the same to the last bit.
        assert (held.plan, held.catalogue, held.identity) == (lent.plan, lent.catalogue, lent.identity)
        for mine, theirs in zip(held.tensors, lent.tensors, strict=True):
            assert torch.equal(flat(mine), flat(theirs))
        assert torch.equal(logits(own), logits(other))
    assert said[-1].startswith("weights from P, rank 0 of 1: ")


def test_a_lender_of_another_version_is_refused() -> None:
    with pytest.raises(WeightError, match="was not asked for x: it runs another version"):
        Borrowed(b"\x80").find("x")


def test_equal_plans_mean_equal_bytes() -> None:
    def plan(name: str) -> str:
        config = LingConfig.load(GOLDEN / name, {})
        return plan_of(rank_reads(config, open_checkpoint(GOLDEN / name, 0, 1), 0, 1).reads)

    assert plan("base") == plan("base") != plan("tp4")


def info(**changes: object) -> WorkerInfo:
    settings = config(tp=2)
    layout = layout_of(settings, LingConfig.load(Path(MODEL), {}))
    ranks = tuple(RankInfo(r, 2, "n", "cpu", HOST, 3 + r) for r in range(2))
    made = WorkerInfo(
        worker_id="w", role="decode", host=HOST, port=1, node="n", pid=1, weights_id=weights_id(Path(MODEL)),
        layout=layout, vocab_size=8, page_size=16, pages=4, slots=2, max_model_len=256, ranks=ranks,
    )  # fmt: skip
    return structs.replace(made, **changes)  # type: ignore[arg-type]


def test_only_matching_live_workers_may_lend() -> None:
    settings = config(tp=2)
    found = find_lender(settings, [info()])
    assert found is not None
    assert (found.worker_id, found.addresses) == ("w", ((HOST, 3), (HOST, 4)))
    gpus = tuple(structs.replace(rank, device="cuda:0") for rank in info().ranks)
    others = [info(weights_id="x"), info(layout="x"), info(ranks=gpus)]
    assert find_lender(settings, others) is None
    assert find_lender(dataclasses.replace(settings, version="commit"), [info()]) is None
    model = dataclasses.replace(LingConfig.load(Path(MODEL), {}), drafts=True)
    drafting = info(layout=layout_of(settings, model))
    assert find_lender(settings, [drafting]) is None
    assert find_lender(dataclasses.replace(settings, speculate="auto"), [drafting, info(weights_id="x")]) is not None
    for changes in ({"load": "storage"}, {"load": "synthetic"}, {"verify": True}):
        assert find_lender(dataclasses.replace(settings, **changes), [info()]) is None  # type: ignore[arg-type]


class Breaking(tuple[Tensor, ...]):
    """A lender that sends half of its tensors and then closes the connection, as if it had died."""

    end: End

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(len(self) // 2):
            yield self[index]
        threading.Thread(target=self.end.transfers.close).start()
        raise LinkBroken("died")


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A checkpoint's folder without its weights."""
    folder = tmp_path / "m"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.mark.process
@pytest.mark.timeout(240)
def test_a_worker_without_files_starts_from_a_live_one_and_answers_alike(described: Path) -> None:
    asked: list[str] = []

    async def storage() -> None:
        asked.append("storage")

    async def run() -> None:
        async with workers() as started:
            first = await started.start(config(2, version="v1"), "decode")
            second = await started.start(config(2, str(described), version="v1"), "prefill", storage)
            third = await started.start(config(2, str(described), version="v1"), "decode", storage)
            assert first.info.weights_id == second.info.weights_id == third.info.weights_id
            streams = [started.split(second, third, p, s) for p, s, _ in cases(4)]
            for stream, (_, _, expected) in zip(streams, cases(4), strict=True):
                await stream.end()
                assert stream.token_ids == expected.token_ids

    asyncio.run(run())
    assert asked == []


@pytest.mark.process
@pytest.mark.timeout(240)
def test_a_lender_that_dies_half_way_leaves_storage(described: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    async def storage() -> None:
        asked.append("storage")
        for path in Path(MODEL).glob("*.safetensors"):
            shutil.copy(path, described)

    lender = End("dying", "auto")
    own = LingModel(LingConfig.load(Path(MODEL), {}), Solo(), CPU, torch.float32)
    load_weights(WorkerConfig(MODEL, version="v1"), own, lender.transfers, lambda _: None)
    held = lender.transfers.lending.weights
    assert held is not None
    breaking = Breaking(held.tensors)
    breaking.end = lender
    lender.transfers.lending.weights = dataclasses.replace(held, tensors=breaking)

    async def run() -> None:
        async with workers() as started:
            settings = config(1, str(described), version="v1")
            dying = info(weights_id=held.identity, ranks=(RankInfo(0, 2, "n", "cpu", HOST, lender.transfers.port),))
            dying = structs.replace(dying, layout=layout_of(settings, LingConfig.load(described, {})))
            worker = await started.start(settings, "decode", storage, [dying])
            for prompt, sampling, expected in cases(2):
                stream = started.whole(worker, prompt, sampling)
                await stream.end()
                assert stream.token_ids == expected.token_ids

    asyncio.run(run())
    assert asked == ["storage"]
    assert "no weights from w, loading from storage: rank 0 failed: " in caplog.text


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint several times as large as a link's buffers."""
    folder = tmp_path_factory.mktemp("large")
    write_checkpoint(CONFIG | {"hidden_size": 512, "vocab_size": 8192, "num_experts": 8}, folder, 1)
    return folder


@pytest.mark.process
@pytest.mark.timeout(240)
@pytest.mark.parametrize("channel", ["auto", "gloo"])
def test_a_lending_rank_that_is_killed_breaks_the_link(
    large: Path, channel: Literal["auto", "gloo"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGKILL at the first tensor the borrower's rank ends with an error, on every channel."""
    monkeypatch.setattr("workers.rank.load._PROGRESS_S", 0)
    done: list[int] = []

    async def run() -> None:
        async with workers() as started:
            lender = await started.start(config(1, str(large), channel=channel), "decode")
            (rank,) = lender.info.ranks
            address = (rank.transfer_host, rank.transfer_port)
            borrowing = WorkerConfig(str(large), lender=Lender("w", lender.info.weights_id, (address,)))
            model, borrower = model_of(large), End("E", channel)

            def tell(stage: str, so_far: int, total: int) -> None:
                if not done:
                    os.kill(rank.pid, signal.SIGKILL)
                done.extend((so_far, total))

            with pytest.raises(LinkBroken):
                await asyncio.to_thread(load_weights, borrowing, model, borrower.transfers, lambda _: None, tell)
            assert borrower.transfers.lending.weights is None
            borrower.transfers.close()

    asyncio.run(run())
    assert 0 < done[0] < done[1]


@pytest.mark.process
@pytest.mark.timeout(240)
def test_a_lending_rank_that_is_killed_leaves_storage(described: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rank of the lender hangs while another worker takes its weights, and is then killed."""
    asked: list[str] = []

    async def storage() -> None:
        asked.append("storage")
        for path in Path(MODEL).glob("*.safetensors"):
            shutil.copy(path, described)

    def called(process: psutil.Process, port: int) -> bool:
        """Whether a peer has connected to a process, even if the process has not accepted yet."""
        found = [c for c in psutil.net_connections("tcp") if c.laddr.port == port]
        return any(c.status == psutil.CONN_ESTABLISHED for c in found) and process.is_running()

    async def run() -> None:
        async with workers() as started:
            lender = await started.start(config(2, version="v1"), "decode")
            rank = lender.info.ranks[1]
            process = psutil.Process(rank.pid)
            process.suspend()
            starting = asyncio.create_task(
                started.start(config(2, str(described), version="v1"), "decode", storage, [lender.info])
            )
            async with asyncio.timeout(60):
                while not called(process, rank.transfer_port):
                    await asyncio.sleep(0.02)
            process.kill()
            worker = await starting
            for prompt, sampling, expected in cases(2):
                stream = started.whole(worker, prompt, sampling)
                await stream.end()
                assert stream.token_ids == expected.token_ids

    asyncio.run(run())
    assert asked == ["storage"]
    assert "loading from storage: rank 1 failed: " in caplog.text
