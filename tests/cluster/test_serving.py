"""Tests the whole cluster on real Ray."""

import asyncio
import json
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.cluster.serving import Serving, kill, serving
from wire.protocol import SamplingParams
from workers.config import WorkerConfig
from workers.rank.engine import Completion, Engine

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

MODEL = str(Path(__file__).parent.parent / "golden" / "tp4")
GAP = 1e-3
STREAMS = 64


@cache
def cases() -> list[tuple[list[int], int, Completion]]:
    """64 prompts of mixed lengths and the bare engine's answers, one by one; no two best tokens nearly tie."""
    engine = Engine(WorkerConfig(MODEL, dtype="float32"))
    rng = random.Random(11)
    found = []
    while len(found) < STREAMS:
        prompt = [rng.randrange(2, 256) for _ in range(rng.randrange(1, 300))]
        new = rng.randrange(1, 48)
        (answer,) = engine.generate([prompt], [SamplingParams(new, seed=0, temperature=0, logprobs=2)])
        if all(p.top_logprobs[0] - p.top_logprobs[1] > GAP for p in answer.logprobs):
            found.append((prompt, new, answer))
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Serving]:
    """A cluster with four ranks per worker; other files test one and two ranks."""
    with serving("--model", MODEL, "--tp", "4", "--dtype", "float32", "--set", "router.name_workers=true") as started:
        yield started


async def stream(
    client: openai.AsyncOpenAI,
    prompt: list[int],
    new: int,
    gained: Callable[[list[int]], Awaitable[None]] | None = None,
) -> tuple[list[int], Any]:
    """One streamed completion: its token ids, and its timings. gained: called with what there is, at each chunk."""
    ids: list[int] = []
    last: Any = None
    answer = await client.completions.create(
        model="auto",
        prompt=prompt,
        max_tokens=new,
        temperature=0,
        stream=True,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    async for chunk in answer:
        for choice in chunk.choices:
            ids += getattr(choice, "token_ids", None) or []
            if gained is not None:
                await gained(ids)
        last = getattr(chunk, "timings", None) or last
    return ids, last


def test_64_streams_together_equal_the_bare_engine_one_by_one(cluster: Serving) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=cluster.url + "/v1", api_key="-", max_retries=0) as client:
            answers = await asyncio.gather(*(stream(client, prompt, new) for prompt, new, _ in cases()))
        assert [tuple(ids) for ids, _ in answers] == [expected.token_ids for _, _, expected in cases()]
        # A decode worker may compute prompts by itself while others wait at the prefill worker; not all of them.
        assert any(timings["prefill_pid"] != timings["decode_pid"] for _, timings in answers)

    asyncio.run(run())
    cluster.until(cluster.all_free)


def test_status_and_timings_show_the_split(cluster: Serving) -> None:
    # Short, and kept nowhere: whatever steps took before, the decode worker would not compute it sooner by itself.
    body = {"model": "auto", "prompt": [7, 5, 3], "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    answer = cluster.client.post("/v1/completions", json=body)
    assert answer.status_code == 200
    timings = answer.json()["timings"]
    (prefill,), (decode,) = cluster.workers("prefill"), cluster.workers("decode")
    assert timings["prefill_worker"] == prefill["id"] == answer.headers["x-ling-prefill-worker"]
    assert timings["decode_worker"] == decode["id"] == answer.headers["x-ling-decode-worker"]
    for stage in ("queue_s", "prefill_s", "transfer_s", "decode_s"):
        assert timings[stage] >= 0
    assert min(timings["prefill_s"], timings["transfer_s"], timings["decode_s"]) > 0
    pids = [r["pid"] for w in (prefill, decode) for r in w["ranks"]] + [prefill["pid"], decode["pid"]]
    assert len(set(pids)) == len(pids)


def test_clients_that_leave_free_everything_on_both_sides(cluster: Serving) -> None:
    prompt = cases()[0][0]

    async def leave_early(client: httpx.AsyncClient, lines: int) -> None:
        body = {"model": "auto", "prompt": prompt, "max_tokens": 500, "stream": True, "ignore_eos": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_lines():
                lines -= 1
                if lines <= 0:
                    return

    async def run() -> None:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
            await asyncio.gather(*(leave_early(client, n % 9) for n in range(40)))

    asyncio.run(run())
    cluster.until(cluster.all_free)


@pytest.mark.parametrize("killed_process", ["leader", "rank"])
@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_streams_outlive_a_killed_worker(cluster: Serving, role: str, killed_process: str) -> None:
    """After kill -9 of its leader or of a rank, Serve restarts it, and all streams are the undisturbed ones."""
    worker = cluster.one_live(role)
    other = "prefill" if role == "decode" else "decode"
    before = cluster.one_live(other)
    asked = sorted(cases(), key=lambda c: c[1])[-24:]
    killed = False

    async def strike(_: list[int]) -> None:
        nonlocal killed
        if not killed:
            killed = True
            kill(worker["pid"] if killed_process == "leader" else worker["ranks"][-1]["pid"])

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=cluster.url + "/v1", api_key="-", max_retries=0) as client:
            answers = await asyncio.gather(*(stream(client, prompt, new, strike) for prompt, new, _ in asked))
        assert [tuple(ids) for ids, _ in answers] == [expected.token_ids for _, _, expected in asked]

    asyncio.run(run())
    cluster.until(lambda: any(w["id"] != worker["id"] for w in cluster.live(role)), 90)
    assert cluster.one_live(other)["id"] == before["id"]
    if role == "decode":
        assert 'ling_resumed_total{cause="death"} 0.0' not in cluster.client.get("/metrics").text
    cluster.until(cluster.all_free)


async def stream_again_and_again(
    client: httpx.AsyncClient, prompt: list[int], new: int, gained: Callable[[], None]
) -> list[int]:
    """One streamed completion's token ids, where the client reconnects whenever its connection ends."""
    body = {
        "model": "auto", "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True,
        "return_token_ids": True, "ignore_eos": True,
    }  # fmt: skip
    ids: list[int] = []
    headers = {"idempotency-key": uuid.uuid4().hex}
    while True:
        try:
            async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
                assert response.status_code in (200, 503), await response.aread()
                last = None
                async for line in response.aiter_lines():
                    if line.startswith("id: "):
                        last = line[4:]
                    elif line == "data: [DONE]":
                        return ids
                    elif line.startswith("data: "):
                        event = json.loads(line[6:])
                        assert "error" not in event, event
                        ids += event["choices"][0].get("token_ids") or []
                        headers["last-event-id"] = last or headers["last-event-id"]
                        gained()
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)  # its successor takes seconds to start


def test_streams_outlive_a_killed_router(cluster: Serving) -> None:
    """After kill -9 of the only router the workers go on, and clients get the rest from its successor."""
    asked = sorted(cases(), key=lambda c: c[1])[-12:]
    router = cluster.status()["router"]["pid"]
    killed = False

    def strike() -> None:
        nonlocal killed
        if not killed:
            killed = True
            kill(router)

    async def run() -> None:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
            answers = await asyncio.gather(
                *(stream_again_and_again(client, prompt, new, strike) for prompt, new, _ in asked)
            )
        assert [tuple(ids) for ids in answers] == [expected.token_ids for _, _, expected in asked]

    asyncio.run(run())
    assert cluster.status()["router"]["pid"] != router
    cluster.until(cluster.all_free)
