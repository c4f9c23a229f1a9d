"""Tests requests that outlive their workers: transcripts are the undisturbed ones, nothing counts twice."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.app import ListedWorker, Pools
from router.relay.recovery import Again, Enough, Setbacks
from tests.router.conftest import Stage
from tests.router.fake_worker import FakeWorker, Request
from tests.router.test_lifecycle import LONG, PATH, events, on

pytestmark = pytest.mark.process

ASK = LONG | {"max_tokens": 60, "logprobs": 1, "return_token_ids": True, "stream": True}


def fleet(prefill: int = 2, decode: int = 2, **options: Any) -> list[FakeWorker]:
    options = {"pace_s": 0.001} | options
    return [FakeWorker(f"p{i}", "prefill", **options) for i in range(prefill)] + [
        FakeWorker(f"d{i}", "decode", **options) for i in range(decode)
    ]


async def undisturbed(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.post(PATH, json=ASK | {"stream": False} | changes)).json()
    return answer


def told(text: str) -> tuple[str, list[int], int]:
    """Read a stream; returns its text, token ids and number of log-probabilities."""
    choices = [part["choices"][0] for part in events(text) if part["choices"]]
    ids = [i for c in choices for i in c["token_ids"]]
    return "".join(c["text"] for c in choices), ids, sum(len(c["logprobs"]["tokens"]) for c in choices)


async def begun(stage: Stage, *among: str, count: int = 1) -> FakeWorker:
    """The worker that has the request now."""
    workers = [stage[name] for name in among]
    async with asyncio.timeout(60):
        while True:
            for worker in workers:
                if len(worker.running) >= count:
                    return worker
            await asyncio.sleep(0.001)


async def streamed(client: httpx.AsyncClient, act: Callable[[str], Awaitable[None]], **changes: Any) -> str:
    """Read a stream; returns its text. act: called with the text so far at each chunk."""
    text = ""
    async with client.stream("POST", PATH, json=ASK | changes) as answer:
        async for piece in answer.aiter_text():
            text += piece
            await act(text)
    assert answer.status_code == 200
    return text


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_stream_continues_after_its_worker_died(checkpoint: Path, deaths: int) -> None:
    async def act(stage: Stage) -> None:
        names = [f"d{i}" for i in range(deaths + 1)]
        async with stage.client() as client:
            expected = await undisturbed(client)
            left, seen = deaths, 0

            async def kill(text: str) -> None:
                nonlocal left, seen
                whole = text[: text.rfind("\n\n") + 1].split("\n\n")
                tokens = sum(
                    len(json.loads(part[6:])["choices"][0]["token_ids"]) for part in whole if "token_ids" in part
                )
                if left and tokens > seen + 5:
                    left, seen = left - 1, tokens
                    await (await begun(stage, *names)).die()

            text = await streamed(client, kill, stream_options={"include_usage": True})
        assert left == 0
        assert told(text) == (expected["choices"][0]["text"], expected["choices"][0]["token_ids"], 60)
        assert events(text)[-1]["usage"] == expected["usage"]
        resumed = [r for name in names for r in stage[name].received if r.generated]
        assert len(resumed) == deaths
        prompt = expected["usage"]["prompt_tokens"]
        assert all(len(r.token_ids) == prompt + r.generated and not r.handoff and r.source is None for r in resumed)
        assert len({r.request_id for name in names for r in stage[name].received if r.sampling.max_tokens == 60}) > 1

    on(checkpoint, act, fleet(decode=deaths + 1, pace_s=0.01))


@pytest.mark.parametrize("dies", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_worker_dies_before_its_first_token_is_computed_elsewhere(
    checkpoint: Path, dies: str, stream: bool
) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            expected = await undisturbed(client)
            for name in ("p0", "p1"):
                stage[name].gate.clear()
            ask = asyncio.create_task(client.post(PATH, json=ASK | {"stream": stream, "n": 1}))
            await (await begun(stage, *(("p0", "p1") if dies == "prefill" else ("d0", "d1")))).die()
            for name in ("p0", "p1"):
                stage[name].gate.set()
            answer = await ask
        assert answer.status_code == 200
        got = told(answer.text)[0] if stream else answer.json()["choices"][0]["text"]
        assert got == expected["choices"][0]["text"]

    on(checkpoint, act, fleet())


def test_without_a_prefill_worker_decode_workers_compute_prompts(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            expected = await undisturbed(client)
            await stage["p0"].die()
            await stage.until(lambda: stage.gateway.table.live()["prefill"] == 0)
            again = await undisturbed(client)
            assert again["choices"][0]["text"] == expected["choices"][0]["text"]
            assert again["timings"]["prefill_worker"] == again["timings"]["decode_worker"]
            assert (await client.get("/ready")).status_code == 200

    on(checkpoint, act, fleet(prefill=1))


def test_without_a_decode_worker_prefill_workers_answer(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            expected = await undisturbed(client)
            died = False

            async def end(text: str) -> None:
                nonlocal died
                if not died:
                    died = True
                    await stage["d0"].die()

            text = await streamed(client, end)
            again = await undisturbed(client)
            assert told(text)[0] == again["choices"][0]["text"] == expected["choices"][0]["text"]
            assert again["timings"]["prefill_worker"] == again["timings"]["decode_worker"] == "p0"
            assert (await client.get("/ready")).status_code == 200

    on(checkpoint, act, fleet(prefill=1, decode=1, pace_s=0.004))


def test_while_no_worker_lives_requests_wait(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            expected = await undisturbed(client)
            port = stage["d0"].ref.port
            await stage["d0"].die()
            await stage.until(lambda: stage.gateway.unready() is not None)
            ready = await client.get("/ready")
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
            asks = [asyncio.create_task(client.post(PATH, json=ASK | {"stream": False})) for _ in range(3)]
            await stage.until(lambda: stage.gateway.in_flight == 3)
            asks.pop().cancel()
            await stage.until(lambda: stage.gateway.in_flight == 2)
            again = await FakeWorker("d0", "decode").start(port)
            try:
                answers = [answer.json() for answer in await asyncio.gather(*asks)]
                assert len(again.received) == 2  # not for the client that had left
            finally:
                await again.die()
        assert {a["choices"][0]["text"] for a in answers} == {expected["choices"][0]["text"]}

    on(checkpoint, act, fleet(prefill=0, decode=1), Pools(prefill=0))


def test_a_stream_waits_for_the_worker_s_successor(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        port, born = stage["d0"].ref.port, []
        async with stage.client() as client:
            expected = await undisturbed(client)

            async def replace(text: str) -> None:
                if not born:
                    await stage["d0"].die()
                    born.append(await FakeWorker("d0", "decode").start(port))

            text = await streamed(client, replace)
            await born[0].die()
        assert told(text)[0] == expected["choices"][0]["text"]

    on(checkpoint, act, fleet(prefill=0, decode=1, pace_s=0.01), Pools(prefill=0))


def test_the_wait_for_a_worker_is_bounded(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            await undisturbed(client)
            await stage["d0"].die()
            await stage.until(lambda: stage.gateway.unready() is not None)
            answer = await client.post(PATH, json=ASK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
        assert "within 0.05 s" in answer.json()["error"]["message"]

    on(checkpoint, act, fleet(prefill=0, decode=1), Pools(prefill=0), first_token_timeout_s=0.05)


def test_no_request_waits_before_every_pool_had_a_worker(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            refused = await client.post(PATH, json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
        assert refused.headers["retry-after"] == "1"

    on(checkpoint, act, fleet(prefill=1, decode=0))


def test_a_request_that_ends_two_workers_is_quarantined(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            for name in ("d0", "d1", "d2"):
                stage[name].gate.clear()
            ask = asyncio.create_task(client.post(PATH, json=ASK | {"stream": False}))
            died = []
            for _ in range(2):
                worker = await begun(stage, *({"d0", "d1", "d2"} - set(died)))
                died.append(worker.info.worker_id)
                await worker.die()
            answer = await ask
            # No status that clients would try again by themselves.
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "request_quarantined")
            assert "2 workers in a row ended" in answer.json()["error"]["message"]
            assert "`ling snapshot save --request ID FILE`" in answer.json()["error"]["message"]
            (left,) = {"d0", "d1", "d2"} - set(died)
            assert stage[left].received == []
            stage[left].gate.set()
            assert (await undisturbed(client))["choices"][0]["finish_reason"] == "length"

    # Decode workers alone, so that no token comes between.
    on(checkpoint, act, fleet(prefill=0, decode=3), Pools(prefill=0, decode=3))


def poisoned(token: int) -> FakeWorker:
    worker = FakeWorker("d0", "decode")
    worker.poison = token
    return worker


def test_bystanders_of_a_request_that_ends_workers_are_served(checkpoint: Path) -> None:
    poison, count = 66, 4

    async def act(stage: Stage) -> None:
        worker, port = stage["d0"], stage["d0"].ref.port
        async with stage.client() as client:
            worker.gate.clear()
            worker.poison = poison
            asks = [
                asyncio.create_task(client.post(PATH, json=ASK | {"stream": False, "prompt": [poison + i]}))
                for i in range(count)
            ]
            for next_together in (True, False, False):
                if not worker.gate.is_set():
                    await worker.until(lambda w=worker: len(w.received) == count)  # type: ignore[misc]
                    worker.gate.set()
                await worker.ended.wait()
                worker = poisoned(poison)
                if next_together:  # else they come one at a time, until it is clear which of them it is
                    worker.gate.clear()
                await worker.start(port)
            answers = await asyncio.gather(*asks)
            await worker.die()
        assert [a.status_code for a in answers[1:]] == [200] * (count - 1)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (422, "request_quarantined")

    on(checkpoint, act, fleet(prefill=0, decode=1), Pools(prefill=0, decode=1))


def test_a_snapshot_that_does_not_arrive_is_computed_again(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        stage["d0"].refuse, stage["d0"].retry, stage["d0"].refusals = "the link broke", True, 2
        async with stage.client() as client:
            assert (await undisturbed(client))["choices"][0]["finish_reason"] == "length"
            assert len(stage["d0"].received) == 3
            stage["d0"].refusals = 100
            stage["p0"].gate.clear()  # no token comes between
            answer = await client.post(PATH, json=ASK)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "worker_error")
            assert "the link broke" in answer.json()["error"]["message"]
            assert len(stage["d0"].received) == 3 + 6
            metrics = (await client.get("/metrics")).text
            assert 'ling_resumed_total{cause="transfer"} 7.0' in metrics

    on(checkpoint, act, fleet(prefill=1, decode=1, tokens_per_step=60))


def test_a_closing_router_tries_nothing_again(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        stage["p0"].gate.clear()
        stage["p1"].gate.clear()
        async with stage.client() as client:
            ask = asyncio.create_task(client.post(PATH, json=LONG))
            await begun(stage, "d0", "d1")
            await stage.gateway.close()
            answer = await ask
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_lost")

    on(checkpoint, act, fleet())


@given(
    st.lists(st.tuples(st.sampled_from(("death", "node", "silence", "transfer", "token")), st.booleans()), max_size=30)
)
def test_tries_are_bounded_and_a_token_forgives(happenings: list[tuple[Any, bool]]) -> None:
    setbacks = Setbacks()
    since: list[str] = []
    for what, alone in happenings:
        if what == "token":
            setbacks.clear()
            since = []
            continue
        since.append(what)
        verdict = setbacks.add(what, alone)
        deaths, transfers = since.count("death"), sum(map(since.count, ("node", "silence", "transfer")))
        if isinstance(verdict, Enough):
            assert deaths > 2 or transfers > 5 or (deaths == 2 and alone)
            assert verdict.quarantined == (what == "death")
            return
        assert deaths <= 2
        assert transfers <= 5
        assert 0 <= verdict.after_s <= 2
        assert verdict == Again(verdict.after_s, apart=deaths == 2)


def test_an_answer_continues_only_with_the_weights_it_began_with(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        port, born = stage["d0"].ref.port, []
        others = [FakeWorker(name, role, weights_id="new") for name, role in (("p9", "prefill"), ("d9", "decode"))]
        for worker in others:
            await worker.start()
        listed = [*stage.listed, *(ListedWorker(w.ref, w.info.role) for w in others)]
        async with stage.client() as client:
            expected = await undisturbed(client)

            async def roll_out(text: str) -> None:
                if not born:
                    await stage.gateway.update_workers(listed)
                    await stage.until(lambda: stage.gateway.table.live()["decode"] == 2)
                    await stage["p0"].die()
                    await stage.until(lambda: stage.gateway.table.live_link("p0") is None)
                    await stage["d0"].die()
                    born.append(await FakeWorker("d0", "decode").start(port))

            text = await streamed(client, roll_out)
            assert told(text)[0] == expected["choices"][0]["text"]
            assert others[1].received == []
        for worker in (*others, *born):
            await worker.die()

    on(checkpoint, act, fleet(prefill=1, decode=1, pace_s=0.01))


def resumes_at(request: Request) -> Callable[[int], int]:
    """An answer whose tokens tell where it was resumed."""
    return lambda offset: 2 + request.generated


def test_listed_again_under_another_address_it_is_another_worker(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        successor = await FakeWorker("d0", "decode", answer=resumes_at).start()
        try:
            async with stage.client() as client:

                async def replace(text: str) -> None:
                    if not stage["d0"].clients:
                        return
                    if len(stage["d0"].received) == 1 and text.count('"tokens"') > 3:
                        await stage.gateway.update_workers([ListedWorker(successor.ref, "decode")])
                        await stage["d0"].die()

                text = await streamed(client, replace)
            ids = told(text)[1]
            resumed = successor.received[0].generated
            assert ids[resumed:] == [2 + resumed] * (60 - resumed)
        finally:
            await successor.die()

    on(checkpoint, act, fleet(prefill=0, decode=1, pace_s=0.01), Pools(prefill=0))


def test_a_stream_continues_elsewhere_when_its_worker_is_silent(checkpoint: Path) -> None:
    """The worker is stopped or cut off while its connection stays open. Idle workers do not count as silent."""

    async def act(stage: Stage) -> None:
        stopped: list[FakeWorker] = []
        async with stage.client() as client:
            expected = await undisturbed(client)

            async def stop(text: str) -> None:
                if not stopped:
                    stopped.append(await begun(stage, "d0", "d1"))
                    stopped[0].silent = True
                    stopped[0].gate.clear()

            text = await streamed(client, stop)
            problem = stage.gateway.table.link(stopped[0].info.worker_id).problem
            metrics = (await client.get("/metrics")).text
            assert 'ling_resumed_total{cause="silence"} 1.0' in metrics
            stopped[0].silent = False
            stopped[0].gate.set()
            await stage.until(lambda: sum(stage.gateway.table.live().values()) == 4)
        assert told(text)[:2] == (expected["choices"][0]["text"], expected["choices"][0]["token_ids"])
        assert problem == "it said nothing for 1.5 s"

    on(checkpoint, act, fleet(pace_s=0.005))


def test_a_router_that_begins_while_a_pool_is_away_answers_if_it_has_served(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            assert (await client.post(PATH, json=ASK)).status_code == 503
            stage.gateway.pools_have_served({"decode"})
            assert (await client.post(PATH, json=ASK)).status_code == 503
            stage.gateway.pools_have_served({"decode", "prefill"})
            assert (await client.post(PATH, json=ASK)).status_code == 200

    on(checkpoint, act, fleet(prefill=0, decode=1), Pools(1, 1))


def test_workers_of_a_node_that_end_together_count_once(checkpoint: Path) -> None:
    """A request that was alone at the first is not given to the next, of whose end the router does not know yet."""

    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            expected = await undisturbed(client)
            for worker in stage.workers.values():
                worker.gate.clear()
                worker.silent = True
            ask = asyncio.create_task(client.post(PATH, json=ASK | {"stream": False}))
            first = await begun(stage, "d0", "d1", "d2")
            for worker in sorted(stage.workers.values(), key=lambda w: w is not first):
                link = stage.gateway.table.link(worker.info.worker_id)
                await worker.die()
                await stage.until(lambda link=link: not link.connected)  # type: ignore[misc]
            successor = await FakeWorker(first.info.worker_id, "decode").start(first.ref.port)
            try:
                answer = await ask
            finally:
                await successor.die()
            assert answer.json()["choices"] == expected["choices"]
            metrics = (await client.get("/metrics")).text
            assert 'ling_resumed_total{cause="death"} 1.0' in metrics

    on(checkpoint, act, fleet(prefill=0, decode=3), Pools(prefill=0, decode=3))
