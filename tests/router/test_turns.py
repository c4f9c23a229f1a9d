"""Tests which requests wait in the router for their turn, and which are refused."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs

from router.config import Pools
from tests.router.conftest import Stage, served
from tests.router.fake_worker import FakeWorker
from wire.protocol import Load


def ask(client: httpx.AsyncClient, priority: int = 0, **headers: str) -> "asyncio.Task[httpx.Response]":
    body = {"model": "auto", "prompt": "x", "max_tokens": 4, "priority": priority}
    return asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))


def one_place(checkpoint: Path, **options: Any) -> AbstractAsyncContextManager[Stage]:
    """A single worker with a single slot."""
    return served(checkpoint, [FakeWorker("d0", "decode", slots=1)], Pools(prefill=0), **options)


async def fill(stage: Stage, client: httpx.AsyncClient) -> "asyncio.Task[httpx.Response]":
    """Occupy the only slot with a request that gets no token."""
    stage["d0"].gate.clear()
    first = ask(client)
    await stage["d0"].until(lambda: bool(stage["d0"].running))
    return first


def test_a_request_without_room_waits_for_its_turn(checkpoint: Path) -> None:
    async def body() -> None:
        async with one_place(checkpoint) as stage, stage.client() as client:
            first = await fill(stage, client)
            second = ask(client)
            await stage.until(lambda: stage.gateway.waiting == 1)
            assert len(stage["d0"].received) == 1
            stage["d0"].gate.set()
            assert [(await task).status_code for task in (first, second)] == [200, 200]
            assert stage.gateway.waiting == 0

    asyncio.run(body())


def test_a_better_priority_does_not_wait_for_a_worse_one_s_places(checkpoint: Path) -> None:
    async def body() -> None:
        async with one_place(checkpoint) as stage, stage.client() as client:
            first = await fill(stage, client)
            sooner = ask(client, priority=-1)
            await stage["d0"].until(lambda: len(stage["d0"].received) == 2)
            stage["d0"].gate.set()
            assert [(await task).status_code for task in (first, sooner)] == [200, 200]

    asyncio.run(body())


def test_a_lane_is_bounded_and_a_client_that_leaves_gives_up_its_turn(checkpoint: Path) -> None:
    async def body() -> None:
        async with one_place(checkpoint, max_waiting=1) as stage, stage.client() as client:
            first = await fill(stage, client)
            second = ask(client)
            await stage.until(lambda: stage.gateway.waiting == 1)
            refused = await ask(client)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "queue_full"
            second.cancel()
            await stage.until(lambda: stage.gateway.waiting == 0)
            stage["d0"].gate.set()
            assert (await first).status_code == 200
            assert len(stage["d0"].received) == 1

    asyncio.run(body())


@pytest.mark.parametrize("behind", [0, 2])
def test_prompts_of_tenants_with_more_than_their_share_are_not_waited_for(checkpoint: Path, behind: int) -> None:
    async def body() -> None:
        async with one_place(checkpoint) as stage, stage.client() as client:
            idle = stage["d0"].load

            def far_behind() -> Load:
                return structs.replace(idle(), queued_tokens=2000, token_s=0.01, behind=behind)

            stage["d0"].load = far_behind  # type: ignore[method-assign]
            await stage.until(lambda: stage.gateway.table.link("d0").load.queued_tokens > 0)
            asked = ask(client)
            if behind:
                assert (await asked).status_code == 200
            else:
                await stage.until(lambda: stage.gateway.waiting == 1)
                assert not stage["d0"].received
                asked.cancel()

    asyncio.run(body())


def test_a_request_that_can_not_meet_its_deadline_is_refused_at_once(checkpoint: Path) -> None:
    async def body() -> None:
        async with one_place(checkpoint) as stage, stage.client() as client:
            busy = stage["d0"].load

            def far_behind() -> Load:
                return structs.replace(busy(), queued_tokens=500_000, token_s=1e-4)

            stage["d0"].load = far_behind  # type: ignore[method-assign]
            assert (await ask(client)).status_code == 200  # with its tokens come the figures
            refused = await ask(client, **{"x-first-token-deadline-ms": "2000"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "deadline_unmet"
            assert 45 <= int(refused.headers["retry-after"]) <= 60
            assert "ling_deadline_refused_total 1.0" in (await client.get("/metrics")).text

    asyncio.run(body())


def test_a_request_too_late_at_its_turn_is_not_computed(checkpoint: Path) -> None:
    async def body() -> None:
        async with one_place(checkpoint) as stage, stage.client() as client:
            first = await fill(stage, client)
            late = ask(client, **{"x-first-token-deadline-ms": "60000"})
            await stage.until(lambda: stage.gateway.waiting == 1)
            idle = stage["d0"].load

            def far_behind() -> Load:
                return structs.replace(idle(), queued_tokens=1_000_000, token_s=1e-4)

            stage["d0"].load = far_behind  # type: ignore[method-assign]
            refused = await late
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "deadline_unmet")
            stage["d0"].gate.set()
            assert (await first).status_code == 200
            assert len(stage["d0"].received) == 1

    asyncio.run(body())


@pytest.mark.parametrize("deadline", ["0", "-1", "soon", "1.5", "3600001", "99999999999999999999", ""])
def test_a_deadline_is_a_number_of_milliseconds(stage: Stage, deadline: str) -> None:
    answer = stage.http.post(
        f"{stage.url}/v1/chat/completions",
        json={"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
        headers={"x-first-token-deadline-ms": deadline},
    )
    assert answer.status_code == 400
    assert "x-first-token-deadline-ms" in answer.json()["error"]["message"]
