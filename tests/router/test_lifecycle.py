"""Tests requests that fail, hang or are slow: each end frees both workers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from router.app import ListedWorker, Pools
from router.relay.admission import Permit
from router.relay.choice import Choice, Prompt
from router.relay.job import Job
from router.text.tokenizer import Tokenizer
from tests.router.conftest import Stage, pair, served
from tests.router.fake_worker import FakeWorker, Request
from wire.protocol import PeerRef, SamplingParams
from wire.tokens import TokenIds

pytestmark = pytest.mark.process

PATH = "/v1/completions"
LONG = {"model": "tiny", "prompt": "A", "seed": 0, "max_tokens": 900, "ignore_eos": True}


def on(checkpoint: Path, act: Callable[[Stage], Awaitable[None]], workers: list[FakeWorker] | None = None,
       pools: Pools | None = None, **settings: Any) -> None:  # fmt: skip
    """Run `act` on a new stage, and check that nothing is in flight afterwards."""

    async def body() -> None:
        async with asyncio.timeout(120), served(checkpoint, workers or pair(), pools, **settings) as stage:
            await act(stage)
            await stage.until(lambda: stage.gateway.in_flight == 0)
            assert all(link.in_flight == 0 for link in stage.gateway.table.links())

    asyncio.run(body())


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_leaves_is_aborted_at_both(checkpoint: Path, stream: bool, choices: int) -> None:
    async def act(stage: Stage) -> None:
        # The workers compute nothing after taking the requests, so they are at both when the client goes.
        for worker in stage.workers.values():
            worker.gate.clear()
        async with stage.client() as client:
            ask = asyncio.create_task(client.post(PATH, json=LONG | {"stream": stream, "n": choices}))
            for worker in stage.workers.values():
                await worker.until(lambda w=worker: len(w.received) == choices)  # type: ignore[misc]
            ask.cancel()
            await asyncio.gather(ask, return_exceptions=True)
        for worker in stage.workers.values():
            ids = {r.request_id for r in worker.received}
            await worker.until(lambda w=worker, i=ids: w.aborted == i)  # type: ignore[misc]

    on(checkpoint, act)


def test_the_async_sdk_s_hang_up_is_an_abort(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="-", max_retries=0, timeout=60) as sdk:
            messages: list[Any] = [{"role": "user", "content": "hi"}]
            whole = await sdk.chat.completions.create(model="auto", messages=messages, max_tokens=9, seed=0)
            stream = await sdk.chat.completions.create(
                model="auto", messages=messages, max_tokens=900, seed=0, stream=True, extra_body={"ignore_eos": True}
            )
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if len(text) >= 9:
                    await stream.close()
                    break
            assert text.startswith(whole.choices[0].message.content or "-")
            await stage["d0"].until(lambda: len(stage["d0"].aborted) == 1)

    on(checkpoint, act, pair(pace_s=0.005))


def test_a_client_that_leaves_amid_a_stream_is_aborted(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client, client.stream("POST", PATH, json=LONG | {"stream": True}) as answer:
            async for _ in answer.aiter_text():
                await stage.until(lambda: stage.gateway.table.link("p0").in_flight == 0)
                break
        await stage["d0"].until(lambda: len(stage["d0"].aborted) == 1)
        assert stage["p0"].aborted == set()  # it had handed over

    on(checkpoint, act, pair(pace_s=0.005))


def test_the_prefill_worker_s_death_after_the_hand_off_does_not_matter(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        body = LONG | {"stream": True, "max_tokens": 40}
        async with stage.client() as client, client.stream("POST", PATH, json=body) as answer:
            text = ""
            async for piece in answer.aiter_text():
                if not text:
                    await stage.until(lambda: stage["p0"].running == {})
                    await stage["p0"].die()
                text += piece
        assert events(text)[-1]["choices"][0]["finish_reason"] == "length"

    on(checkpoint, act, pair(pace_s=0.005))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("refuses", ["p0", "d0"])
def test_a_worker_s_refusal_is_a_500_with_its_words(checkpoint: Path, refuses: str, stream: bool) -> None:
    async def act(stage: Stage) -> None:
        stage["p0" if refuses == "d0" else "d0"].gate.clear()
        stage[refuses].refuse = "no room on the moon"
        async with stage.client() as client:
            answer = await client.post(PATH, json=LONG | {"stream": stream})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "worker_error")
        assert "no room on the moon" in answer.json()["error"]["message"]
        other = stage["d0" if refuses == "p0" else "p0"]
        await other.until(lambda: len(other.aborted) == 1)

    on(checkpoint, act)


def test_outputs_that_overtake_each_other_are_put_in_order(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            straight = (await client.post(PATH, json=LONG | {"max_tokens": 30})).json()
            stage["p0"].gate.clear()
            ask = asyncio.create_task(client.post(PATH, json=LONG | {"max_tokens": 30, "stream": True}))
            await stage["d0"].until(lambda: len(stage["d0"].received) == 2)
            # The whole rest is at the router before the first token leaves.
            link = stage.gateway.table.link("d0")
            await stage.until(lambda: stage["d0"].running == {} and link.in_flight == 0)
            assert not ask.done()
            stage["p0"].gate.set()
            parts = events((await ask).text)
        assert "".join(p["choices"][0]["text"] for p in parts) == straight["choices"][0]["text"]
        assert parts[-1]["timings"]["prefill_s"] == 0.2

    on(checkpoint, act)


def test_a_request_the_prompt_s_own_token_ends_is_aborted_at_the_decode_worker(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        stage["d0"].gate.clear()
        async with stage.client() as client:
            first = await client.post(PATH, json=LONG | {"max_tokens": 1, "return_token_ids": True})
            ends = {"stop_token_ids": first.json()["choices"][0]["token_ids"]}
            answer = await client.post(PATH, json=LONG | ends)
        assert answer.json()["usage"]["completion_tokens"] == 1
        await stage["d0"].until(lambda: len(stage["d0"].aborted) == 1)
        assert stage["p0"].aborted == set()

    on(checkpoint, act)


def test_one_token_needs_no_decode_worker(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            one = (await client.post(PATH, json=LONG | {"max_tokens": 1})).json()
            assert (one["usage"]["completion_tokens"], one["choices"][0]["finish_reason"]) == (1, "length")
            assert (len(stage["p0"].received), len(stage["d0"].received)) == (1, 0)
            two = (await client.post(PATH, json=LONG | {"max_tokens": 2})).json()
            assert two["choices"][0]["text"].startswith(one["choices"][0]["text"])
            assert (len(stage["p0"].received), len(stage["d0"].received)) == (2, 1)

    on(checkpoint, act)


def test_a_stop_string_aborts_the_decode_worker(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            answer = (await client.post(PATH, json=LONG | {"stop": "FG"})).json()
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("CDE", "stop")
        await stage["d0"].until(lambda: len(stage["d0"].aborted) == 1)

    on(checkpoint, act, pair(pace_s=0.005))


def test_beyond_the_queue_is_429(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        stage["p0"].gate.clear()
        async with stage.client() as client:
            asks = [asyncio.create_task(client.post(PATH, json=LONG | {"max_tokens": 5, "n": 2})) for _ in range(2)]
            await stage["p0"].until(lambda: len(stage["p0"].received) == 4)
            refused = await client.post(PATH, json=LONG)
            assert refused.status_code == 429
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert refused.headers["retry-after"] == "7"
            assert (await client.post(PATH, json=LONG | {"n": 5})).status_code == 400
            stage["p0"].gate.set()
            assert [a.status_code for a in await asyncio.gather(*asks)] == [200, 200]
            assert (await client.post(PATH, json=LONG | {"max_tokens": 5})).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert "ling_requests_refused_total 1.0" in metrics
            assert 'ling_requests_total{api="completions",status="429"} 1.0' in metrics

    on(checkpoint, act, max_queue=4, retry_after_s=7)


def test_a_slow_client_gets_joined_chunks_and_stalls_no_one(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        # Long enough that the sockets' buffers can't hold it.
        tokens = 20_000
        asked = {"max_tokens": tokens, "stream": True, "return_token_ids": True, "logprobs": 20}
        body = json.dumps(LONG | asked).encode()
        url = httpx.URL(stage.url)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=4096)
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
                     % (PATH.encode(), len(body), body))  # fmt: skip
        link = stage.gateway.table.link("d0")
        await stage["d0"].until(lambda: len(stage["d0"].received) == 1)
        await stage.until(lambda: link.in_flight == 0)  # all of it generated, hardly any of it read
        # It keeps nobody out, though its answer is held for it.
        await stage.until(lambda: stage.gateway.in_flight == 0)
        async with stage.client() as client:
            other = await client.post(PATH, json=LONG | {"max_tokens": 50})
        assert other.json()["usage"]["completion_tokens"] == 50
        text = (await reader.read(-1)).decode()
        writer.close()
        parts = [part for line in text.split("\r\n") for part in line.split("\n\n")]
        chunks = [json.loads(part.removeprefix("data: ")) for part in parts if part.startswith("data: {")]
        ids = [i for c in chunks for i in c["choices"][0]["token_ids"]]
        assert len(ids) == tokens
        assert ids == [2 + (ids[0] - 2 + i) % 254 for i in range(tokens)]
        assert sum(len(c["choices"][0]["logprobs"]["tokens"]) for c in chunks) == tokens
        assert len(chunks) < tokens / 10 / 2  # half of the steps
        assert text.endswith("data: [DONE]\n\n\r\n0\r\n\r\n")

    workers = pair(max_model_len=200_000, pages=20_000, tokens_per_step=10)
    on(checkpoint, act, workers, max_queue=1)


@pytest.mark.parametrize("end", [Job.leave, lambda job: job.due(1.0), lambda job: job.landed(job.choices[0])])
def test_every_end_of_a_job_releases_its_permit_once(checkpoint: Path, end: Callable[[Job], None]) -> None:
    tokenizer = Tokenizer(str(checkpoint))
    given: list[int] = []
    permit = Permit(lambda: given.append(1))
    sampling = SamplingParams(max_tokens=1, seed=0)
    job = Job([Choice(0, Prompt(TokenIds.of((1,))), sampling, tokenizer)], stream=True, priority=0)
    job.when_over(permit.release)
    assert given == []
    end(job)
    job.leave()
    permit.release()
    assert given == [1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"first_token_timeout_s": 0.05}, "no first token"), ({"request_timeout_s": 0.05}, "no end")],
)
def test_requests_that_take_too_long_end(checkpoint: Path, settings: dict[str, float], words: str) -> None:
    async def act(stage: Stage) -> None:
        # Neither computes: a decode worker that had answered everything in time would have nothing to abort.
        for worker in stage.workers.values():
            worker.gate.clear()
        async with stage.client() as client:
            # On a busy machine the time may be up before the workers hear of it.
            while not all(worker.received for worker in stage.workers.values()):
                answer = await client.post(PATH, json=LONG)
                assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
                assert words in answer.json()["error"]["message"]
        for worker in stage.workers.values():
            await worker.until(lambda w=worker: w.aborted == {r.request_id for r in w.received})  # type: ignore[misc]

    on(checkpoint, act, **settings)


def test_a_body_that_never_comes_is_a_408(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        url = httpx.URL(stage.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{" % PATH.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()

    on(checkpoint, act, body_timeout_s=0.05)


def test_decode_workers_alone_serve_where_the_pools_say_so(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            answer = await client.post(PATH, json=LONG | {"max_tokens": 6})
            assert (await client.get("/ready")).status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 6
        assert answer.json()["timings"]["prefill_worker"] == "d0"
        (taken,) = stage["d0"].received
        assert (taken.source, taken.handoff) == (None, False)

    on(checkpoint, act, [FakeWorker("d0", "decode")], Pools(prefill=0, decode=1))


def test_workers_that_do_not_fit_together_are_named(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            ready = await client.get("/ready")
            answer = await client.post(PATH, json=LONG)
        assert (ready.status_code, answer.status_code) == (503, 503)
        for text in (ready.json()["reason"], answer.json()["error"]["message"]):
            assert "weights_id 'old' and 'new'" in text

    on(checkpoint, act,
       [FakeWorker("p0", "prefill", weights_id="old"), FakeWorker("d0", "decode", weights_id="new")])  # fmt: skip


def test_load_spreads_over_workers(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        for worker in stage.workers.values():
            worker.gate.clear()
        async with stage.client() as client:
            asks = [asyncio.create_task(client.post(PATH, json=LONG | {"max_tokens": 5})) for _ in range(8)]
            for worker in stage.workers.values():
                await worker.until(lambda w=worker: len(w.received) == 4)  # type: ignore[misc]
            for worker in stage.workers.values():
                worker.gate.set()
            answers = await asyncio.gather(*asks)
        assert {a.headers["x-ling-decode-worker"] for a in answers} == {"d0", "d1"}

    on(checkpoint, act, [*pair(), FakeWorker("p1", "prefill"), FakeWorker("d1", "decode")])


def test_an_unlisted_worker_finishes_what_it_has_and_takes_no_more(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        d0, d1 = stage["d0"], FakeWorker("d1", "decode")
        d0.gate.clear()
        async with stage.client() as client:
            ask = asyncio.create_task(client.post(PATH, json=LONG | {"max_tokens": 20}))
            await d0.until(lambda: len(d0.received) == 1)
            await d1.start()
            try:
                await stage.gateway.update_workers([stage.listed[0], ListedWorker(d1.ref, "decode")])
                await stage.until(lambda: stage.gateway.table.live()["decode"] == 1)
                states = (await client.get("/status")).json()["pools"]["decode"]["workers"]
                assert {w["id"]: w["state"] for w in states} == {"d0": "draining", "d1": "live"}
                second = await client.post(PATH, json=LONG | {"max_tokens": 20})
                assert second.headers["x-ling-decode-worker"] == "d1"
                d0.gate.set()
                first = await ask
                assert first.headers["x-ling-decode-worker"] == "d0"
                assert first.json()["choices"][0]["text"] == second.json()["choices"][0]["text"]
                await d0.until(lambda: d0.clients == set())  # the router has left it
            finally:
                await stage.gateway.update_workers(stage.listed[:1])
                await d1.die()

    on(checkpoint, act)


def test_a_worker_that_comes_back_is_used_again(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        port = stage["d0"].ref.port
        await stage["d0"].die()
        await stage.until(lambda: stage.gateway.unready() is not None)
        again = await FakeWorker("d0", "decode").start(port)
        try:
            await stage.until(lambda: stage.gateway.unready() is None)
            async with stage.client() as client:
                assert (await client.post(PATH, json=LONG | {"max_tokens": 5})).status_code == 200
            assert len(again.received) == 1
        finally:
            await again.die()

    on(checkpoint, act, [FakeWorker("d0", "decode")], Pools(prefill=0))


def test_another_process_at_a_worker_s_address_is_not_used(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        stranger = ListedWorker(PeerRef("d7", "127.0.0.1", stage["d0"].ref.port), "decode")
        await stage.gateway.update_workers([stranger])

        def problem() -> str:
            return "".join(link.problem for link in stage.gateway.table.links() if link.ref.worker_id == "d7")

        await stage.until(lambda: "is decode worker d0, not decode worker d7" in problem())
        assert stage.gateway.unready() is not None

    on(checkpoint, act)


def test_closing_the_gateway_fails_what_is_in_flight(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        stage["p0"].gate.clear()
        async with stage.client() as client:
            ask = asyncio.create_task(client.post(PATH, json=LONG))
            await stage["p0"].until(lambda: len(stage["p0"].received) == 1)
            await stage.gateway.close()
            assert (await ask).status_code == 503

    on(checkpoint, act)


def test_sixty_four_streams_each_get_their_own(checkpoint: Path) -> None:
    def says(request: Request) -> Callable[[int], int]:
        return lambda offset: 2 + (request.token_ids[0] * 31 + offset * 7) % 90

    async def act(stage: Stage) -> None:
        async with stage.client(limits=httpx.Limits(max_connections=64)) as client:

            async def one(i: int) -> None:
                body = {"model": "tiny", "prompt": [i + 2], "max_tokens": 20 + i, "stream": True,
                        "return_token_ids": True}  # fmt: skip
                parts = events((await client.post(PATH, json=body)).text)
                ids = [t for p in parts for t in p["choices"][0]["token_ids"]]
                assert ids == [2 + ((i + 2) * 31 + k * 7) % 90 for k in range(20 + i)]

            await asyncio.gather(*(one(i) for i in range(64)))

    on(checkpoint, act, pair(answer=says))
