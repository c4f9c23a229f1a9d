"""Tests clients that come back for their answers through any router."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.router.conftest import Stage, pair, served
from tests.router.fake_worker import Answer, FakeWorker, Request, counting

pytestmark = pytest.mark.process

KEY = {"idempotency-key": "turn-7"}
TOKENS = 12
BODY: dict[str, Any] = {
    "model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS, "temperature": 0,
    "stream": True,
}  # fmt: skip
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/messages"]


def body_of(path: str, **more: Any) -> dict[str, Any]:
    body = {**BODY, **more}
    if path == "/v1/completions":
        body["prompt"] = body.pop("messages")[0]["content"]
    return body


@asynccontextmanager
async def two(checkpoint: Path, **options: Any) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two routers in front of the same workers."""
    async with served(checkpoint, pair(), **options) as first, served(checkpoint, [], **options) as second:
        await second.gateway.update_workers(first.listed)
        await second.until(lambda: sum(second.gateway.table.live().values()) == 2)
        yield first, second


def kill(router: Stage) -> None:
    """End a router's connections, like those of a killed process."""
    for link in router.gateway.table.links():
        link._writer.transport.abort()  # type: ignore[union-attr]
        link.listed = None
        link._task.cancel()


def stop_at(worker: FakeWorker, offset: int, answers: Callable[[Request], Answer] = counting) -> None:
    """Make the worker stop after this token of its next requests, until its gate is set."""

    def answer(request: Request) -> Answer:
        inner = answers(request)

        def token(at: int) -> int:
            if at == offset and worker.stops:
                worker.stops = False
                worker.gate.clear()
            return inner(at)

        return token

    worker.stops = True
    worker.answer = answer


class Events:
    """A stream's events so far: (id, data)."""

    def __init__(self) -> None:
        self.all: list[tuple[str | None, str]] = []

    async def read(self, response: httpx.Response, most: int = 1 << 30) -> None:
        last = data = None
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                last = line[4:]
            elif line.startswith("data: "):
                data = line[6:]
            elif not line and data is not None:
                self.all.append((last, data))
                last = data = None
                if len(self.all) >= most:
                    return

    @property
    def last_id(self) -> str | None:
        return next((i for i, _ in reversed(self.all) if i is not None), None)

    @property
    def text(self) -> str:
        out = ""
        for _, data in self.all:
            if data == "[DONE]":
                continue
            event = json.loads(data)
            for choice in event.get("choices", ()):
                out += choice.get("text") or choice.get("delta", {}).get("content") or ""
            out += event.get("delta", {}).get("text", "")
        return out


async def whole(stage: Stage, path: str, **headers: str) -> Events:
    events = Events()
    async with stage.client() as client, client.stream("POST", path, json=body_of(path), headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        await events.read(response)
    return events


@pytest.mark.parametrize("path", PATHS)
def test_a_killed_router_s_client_gets_the_rest_from_another(checkpoint: Path, path: str) -> None:
    """The worker goes on meanwhile; no token is computed or sent twice."""

    async def run() -> None:
        async with two(checkpoint) as (first, second):
            worker = first["d0"]
            submitted = len(worker.received)
            events = Events()
            stop_at(worker, 6)
            body = body_of(path)
            async with first.client() as client, client.stream("POST", path, json=body, headers=KEY) as response:
                reading = asyncio.create_task(events.read(response))
                await first.until(lambda: len(events.text) >= 3 and not worker.gate.is_set())
                kill(first)
                reading.cancel()
            await worker.until(lambda: len(worker.clients) == 1)
            worker.gate.set()
            rest = await whole(second, path, **KEY, **{"last-event-id": events.last_id or ""})
            again = await whole(second, path, **KEY)
            assert events.text + rest.text == again.text
            assert events.text
            assert rest.text
            assert len(worker.received) == submitted + 1

    asyncio.run(run())


def test_a_client_that_hung_up_gets_the_rest_too(checkpoint: Path) -> None:
    """The computed tokens are sent again, and the rest is computed."""

    async def run() -> None:
        path = PATHS[0]
        async with two(checkpoint) as (first, second):
            worker, events = first["d0"], Events()
            stop_at(worker, 6)
            body = body_of(path)
            async with first.client() as client, client.stream("POST", path, json=body, headers=KEY) as response:
                await events.read(response, most=2)
            await worker.until(lambda: not worker.running)
            worker.gate.set()
            rest = await whole(second, path, **KEY, **{"last-event-id": events.last_id or ""})
            assert worker.received[-1].generated > 0
            assert events.text + rest.text == (await whole(second, path, **KEY)).text

    asyncio.run(run())


@pytest.mark.parametrize("path", PATHS)
def test_the_same_request_again_gets_the_same_answer(checkpoint: Path, path: str) -> None:
    """A request without a seed gets its answer again from another router after its end, without computing."""

    async def run() -> None:
        async with two(checkpoint) as (first, second):
            body = body_of(path, temperature=1, stream=False)

            async def ask(stage: Stage) -> dict[str, Any]:
                async with stage.client() as client:
                    answer = await client.post(path, json=body, headers=KEY)
                assert answer.status_code == 200, answer.text
                return {k: v for k, v in answer.json().items() if k not in ("created", "timings", "choices", "usage")}

            one = await ask(first)
            received = len(first["d0"].received)
            assert await ask(second) == one
            assert len(first["d0"].received) == received

    asyncio.run(run())


def test_a_client_that_knows_the_end_gets_the_remaining_events(checkpoint: Path) -> None:
    async def run() -> None:
        async with two(checkpoint) as (first, second):
            events = await whole(first, PATHS[0], **KEY)
            assert events.last_id == f"{TOKENS}f"
            rest = await whole(second, PATHS[0], **KEY, **{"last-event-id": events.last_id})
            assert [data for _, data in rest.all] == ["[DONE]"]

    asyncio.run(run())


def test_another_body_under_the_same_key_is_refused(checkpoint: Path) -> None:
    async def run() -> None:
        async with two(checkpoint) as (first, second), first.client() as one, second.client() as other:
            path, body = PATHS[0], body_of(PATHS[0], stream=False)
            assert (await one.post(path, json=body, headers=KEY)).status_code == 200
            refused = await other.post(path, json={**body, "max_tokens": 3}, headers=KEY)
            assert refused.status_code == 422
            assert refused.json()["error"]["code"] == "idempotency_key_reused"
            # Another path's key is another key.
            assert (await other.post(PATHS[1], json=body_of(PATHS[1], stream=False), headers=KEY)).status_code == 200

    asyncio.run(run())


def test_the_later_connection_at_a_router_takes_the_answer_over(checkpoint: Path) -> None:
    async def run() -> None:
        async with served(checkpoint, pair()) as stage, stage.client() as client:
            worker = stage["d0"]
            worker.gate.clear()
            body = body_of(PATHS[0], stream=False)
            earlier = asyncio.create_task(client.post(PATHS[0], json=body, headers=KEY))
            await worker.until(lambda: bool(worker.running))
            later = asyncio.create_task(client.post(PATHS[0], json=body, headers=KEY))
            assert (await earlier).json()["error"]["code"] == "taken_over"
            worker.gate.set()
            assert (await later).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("dies", [False, True])
def test_the_same_request_takes_its_session_over(checkpoint: Path, tmp_path: Path, dies: bool) -> None:
    """dies: its router, so that nobody releases the session."""

    async def run() -> None:
        async with (
            two(checkpoint, data_dir=str(tmp_path)) as (first, second),
            first.client() as one,
            (second if dies else first).client() as other,
        ):
            worker = first["d0"]
            worker.gate.clear()
            body = {**body_of(PATHS[0], stream=False), "session_id": "s"}
            earlier = asyncio.create_task(one.post(PATHS[0], json=body, headers=KEY))
            await worker.until(lambda: bool(worker.running))
            assert (await other.post(PATHS[0], json=body)).json()["error"]["code"] == "session_busy"
            if dies:
                kill(first)
            later = asyncio.create_task(other.post(PATHS[0], json=body, headers=KEY))
            if not dies:
                assert (await earlier).json()["error"]["code"] == "taken_over"
            worker.gate.set()
            answer = await later
            assert answer.status_code == 200, answer.text
            assert (await other.get("/v1/sessions/s")).json()["tokens"] > 0
            earlier.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(
    "headers",
    [
        {"last-event-id": "3"}, {"idempotency-key": ""}, {"idempotency-key": "a b"}, {"idempotency-key": "k" * 256},
        {**KEY, "last-event-id": "soon"}, {**KEY, "last-event-id": "1,2"}, {**KEY, "last-event-id": "-1"},
    ],
)  # fmt: skip
def test_headers_that_are_not_understood_are_refused(stage: Stage, headers: dict[str, str]) -> None:
    answer = stage.http.post(f"{stage.url}{PATHS[0]}", json=body_of(PATHS[0]), headers=headers)
    assert answer.status_code == 400
    assert "ency-Key" in answer.text or "Last-Event-ID" in answer.text


def test_streams_without_a_key_have_no_ids(stage: Stage) -> None:
    answer = stage.http.post(f"{stage.url}{PATHS[0]}", json=body_of(PATHS[0]))
    assert "\nid:" not in answer.text
