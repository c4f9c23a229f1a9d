"""Tests what ranks measure and report."""

import asyncio

import pytest
import torch

from tests.workers.harness import GOLDEN, workers
from tests.workers.transfer_ends import ends, export, snapshot
from wire.protocol import PeerRef, SamplingParams, Submit
from wire.tokens import TokenIds
from workers.config import WorkerConfig
from workers.leader.ranks import free_port
from workers.rank.engine import Engine
from workers.rank.expert_load import ExpertLoad
from workers.rank.watch import PHASES, StepWatch
from workers.schedule.step import Expect

_ME = ("decode",)


def test_one_step_a_second_is_measured() -> None:
    watch = StepWatch(torch.device("cpu"))
    assert [watch.begin(now) for now in (10.0, 10.9, 11.0, 11.5, 20.0, 20.5)] == [True, False, True, False, True, False]
    watch.lap("forward")
    assert dict(watch.phases) == dict.fromkeys(PHASES, 0.0)


@pytest.mark.parametrize("name", ["base", "tp4"])
def test_a_measured_step_counts_every_choice_of_an_expert(name: str) -> None:
    config = WorkerConfig(model=str(GOLDEN / name), dtype="float32", page_size=16, slots=4, max_step_tokens=256)
    engine = Engine(config)
    model = engine.model_config
    prompt = list(range(3, 40))
    engine.add(prompt, SamplingParams(max_tokens=4, seed=1))
    engine.step()
    stats = engine._runner.stats()
    assert stats is not None
    layers = model.num_hidden_layers - model.first_k_dense_replace
    assert stats.expert_tokens == (len(prompt) * model.num_experts_per_tok * layers,)
    assert [layer for layer, _ in stats.expert_peaks] == list(
        range(model.first_k_dense_replace, model.num_hidden_layers)
    )
    most = model.num_experts / model.num_experts_per_tok
    assert all(1 <= ratio <= most + 1e-3 for _, ratio in stats.expert_peaks)
    spent = dict(stats.phases)
    assert spent["forward"] > 0
    assert engine._runner.stats() is None  # told once


def test_experts_are_counted_for_the_rank_that_holds_them() -> None:
    config = Engine(WorkerConfig(model=str(GOLDEN / "base"), dtype="float32", slots=1)).model_config
    load = ExpertLoad(config, 2, torch.device("cpu"))
    assert load.peaks == ()
    load.counts[0, 0] += 6
    load.counts[:, -1] += 1
    load.settle()
    assert load.by_rank == (6, len(load.counts))
    assert load.counts.sum() == 0
    first = load.peaks[0][1]
    assert first == pytest.approx(6 / (7 / config.num_experts))
    load.counts[0] += 100
    load.settle()
    assert load.peaks[0][1] < first


def test_moved_bytes_are_counted_at_both_ends() -> None:
    latents, state = snapshot(0, 20)
    size = latents.nbytes + state.nbytes
    with ends("shm") as (prefill, decode):
        decode.transfers.expect(Expect("r", "P", 20))
        export(prefill, "r", 0, latents[:8], None)
        export(prefill, "r", 8, latents[8:], state)
        decode.wait_received("r")
        assert decode.transfers.received.bytes == size
        assert decode.transfers.received.seconds > 0
        prefill.wait_sent("r")
    # Its threads have ended: the one that sent is told of the end by the other.
    assert prefill.transfers.sent.bytes == size
    assert (prefill.transfers.received.bytes, decode.transfers.sent.bytes) == (0, 0)


@pytest.mark.process
def test_a_leader_reports_its_ranks_and_failed_snapshots() -> None:
    async def run() -> None:
        async with workers() as started:
            config = WorkerConfig(model=str(GOLDEN / "tp4"), tp=2, dtype="float32", page_size=16, slots=8)
            decode = await started.start(config, "decode")
            prompt, sampling = (3, 4, 5), SamplingParams(max_tokens=3, seed=1)
            assert (await started.whole(decode, prompt, sampling).end()).error is None
            orphan = started._new(decode)
            nobody = PeerRef("gone", "127.0.0.1", free_port("127.0.0.1"))
            decode.caller.send(Submit(orphan.request_id, TokenIds.of(prompt), sampling, 0, nobody))
            assert (await orphan.end()).finish == "error"
            told: dict[tuple[str, ...], float] = {}
            async with asyncio.timeout(60):
                while (
                    "ling_transfer_bytes_total",
                    *_ME,
                    "1",
                    "in",
                ) not in told:  # rank 1 tells after rank 0 has answered
                    readings = decode.leader.figures.read(decode.info, decode.leader.load)
                    told = {
                        (name, *(v for k, v in labels.items() if k != "worker")): value
                        for reading in readings for name, labels, value in reading.samples
                    }  # fmt: skip
                    await asyncio.sleep(0.01)
            assert sum(told["ling_expert_tokens_total", *_ME, rank] for rank in "01") > 0
            assert told["ling_transfer_failures_total", *_ME, "peer"] == 1
            assert told["ling_finished_total", *_ME, "length"] == 1
            assert told["ling_finished_total", *_ME, "error"] == 1
            assert (decode.leader.figures.totals.sampled, told["ling_step_sampled_tokens_total", *_ME]) == (3, 3)

    asyncio.run(run())
