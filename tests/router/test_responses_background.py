"""Tests responses that run without their clients, that fail, or that another router is asked for."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from router.access.keys import hashed, make_key
from router.api.responses.rows import LEASE_S
from router.api.responses.takeover import Takeover
from tests.router.conftest import Stage, pair, served
from tests.router.scripted import scripted
from tests.router.test_responses import checked, kinds
from tests.router.test_resume import kill as cut_off
from tests.router.test_resume import stop_at

pytestmark = pytest.mark.process

LONG = "x" * 300
ASKED: dict[str, Any] = {"model": "tiny", "input": "go"}


@asynccontextmanager
async def talking(checkpoint: Path, text: str = "hello there", **options: Any) -> AsyncIterator[Stage]:
    """Serve a pair of workers with these answers."""
    async with asyncio.timeout(120), served(checkpoint, scripted(checkpoint, lambda _: text), **options) as stage:
        yield stage


@asynccontextmanager
async def two_routers(checkpoint: Path, folder: Path, text: str) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two routers of one host, each with its own workers."""
    async with AsyncExitStack() as opened:
        stages = [
            await opened.enter_async_context(talking(checkpoint, text, run_dir=str(folder / "run"))) for _ in range(2)
        ]
        yield stages[0], stages[1]


def client(stage: Stage, key: str = "-") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key=key, max_retries=0, timeout=60)


async def over(sdk: openai.AsyncOpenAI, response_id: str) -> Any:
    """Poll a response until it is over, and return it."""
    async with asyncio.timeout(60):
        while (answer := await sdk.responses.retrieve(response_id)).status == "in_progress":
            await asyncio.sleep(0.005)
        return answer


def pause(stage: Stage) -> None:
    for worker in stage.workers.values():
        worker.gate.clear()


def go_on(stage: Stage) -> None:
    for worker in stage.workers.values():
        worker.gate.set()


def test_a_background_response_runs_without_its_client_and_can_be_continued(checkpoint: Path) -> None:
    async def act() -> None:
        async with talking(checkpoint) as stage, client(stage) as sdk:
            pause(stage)
            begun = await sdk.responses.create(**ASKED, background=True)
            assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
            assert (await sdk.responses.retrieve(begun.id)).model_dump() == begun.model_dump()
            with pytest.raises(openai.BadRequestError) as early:
                await sdk.responses.create(**ASKED, previous_response_id=begun.id)
            assert early.value.code == "previous_response_not_completed"
            go_on(stage)
            answer = await over(sdk, begun.id)
            assert (answer.status, answer.output_text, answer.id) == ("completed", "hello there", begun.id)
            assert answer.usage.output_tokens == 12
            after = await sdk.responses.create(**ASKED, previous_response_id=begun.id)
            assert after.output_text == "hello there"
            assert (await sdk.responses.cancel(begun.id)).status == "completed"
            await stage.until(lambda: stage.gateway.in_flight == 0)

    asyncio.run(act())


@pytest.mark.parametrize("way", ["cancel", "delete"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_response_frees_its_workers(checkpoint: Path, way: str, stream: bool) -> None:
    async def act() -> None:
        async with talking(checkpoint, LONG) as stage, client(stage) as sdk, stage.client() as http:
            pause(stage)
            if stream:
                events = await sdk.responses.create(**ASKED, background=True, stream=True)
                response_id = (await anext(aiter(events))).response.id  # type: ignore[union-attr]
            else:
                response_id = (await sdk.responses.create(**ASKED, background=True)).id
            worker = stage["d0"]
            await worker.until(lambda: bool(worker.received))
            if way == "cancel":
                for _ in range(2):
                    assert (await sdk.responses.cancel(response_id)).status == "cancelled"
            else:
                await sdk.responses.delete(response_id)
            await worker.until(lambda: worker.received[0].request_id in worker.aborted)
            await stage.until(lambda: stage.gateway.in_flight == 0)
            go_on(stage)
            found = await http.get(f"/v1/responses/{response_id}")
            assert found.status_code == (200 if way == "cancel" else 404)
            if way == "cancel":
                assert (found.json()["status"], found.json()["output"]) == ("cancelled", [])
                with pytest.raises(openai.BadRequestError, match="is cancelled"):
                    await sdk.responses.create(**ASKED, previous_response_id=response_id)
            if stream:
                rest = [event async for event in events]
                assert [e.type for e in rest[1:]] == (["response.incomplete"] if way == "cancel" else [])

    asyncio.run(act())


def test_a_stream_can_be_left_and_taken_up_again(checkpoint: Path) -> None:
    async def act() -> None:
        async with talking(checkpoint) as stage, client(stage) as sdk, stage.client() as http:
            whole = await http.post("/v1/responses", json={**ASKED, "background": True, "stream": True})
            events = checked(whole.text)
            response_id = events[-1]["response"]["id"]
            assert kinds(events)[-1] == "response.completed"
            assert events[-1]["response"]["output"][0]["content"][0]["text"] == "hello there"
            for after in (-1, 0, 3, 5, len(events) - 2, len(events) - 1):
                query: dict[str, Any] = {"stream": "true"} | ({"starting_after": after} if after >= 0 else {})
                again = await http.get(f"/v1/responses/{response_id}", params=query)
                assert checked(again.text, after + 1) == events[after + 1 :]
            pause(stage)
            left = await sdk.responses.create(**ASKED, background=True, stream=True)
            first: Any = await anext(aiter(left))
            await left.close()
            go_on(stage)
            async with sdk.responses.stream(response_id=first.response.id, starting_after=1) as stream:
                deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
                assert "".join(deltas) == "hello there"
                assert (await stream.get_final_response()).output_text == "hello there"

    asyncio.run(act())


def test_another_router_of_the_host_knows_all_of_it(checkpoint: Path, tmp_path: Path) -> None:
    async def act() -> None:
        async with (
            two_routers(checkpoint, tmp_path, "hello there") as (one, two),
            client(one) as here,
            client(two) as there,
            two.client() as http,
        ):
            first = await here.responses.create(**ASKED)
            assert (await there.responses.retrieve(first.id)).output_text == "hello there"
            second = await there.responses.create(**ASKED, previous_response_id=first.id)
            prompt = two.gateway.tokenizer.decode(two["d0"].received[-1].token_ids)
            assert prompt == "<user>go<assistant>hello there<user>go<assistant>"
            await here.responses.delete(second.id)
            with pytest.raises(openai.NotFoundError):
                await there.responses.retrieve(second.id)
            # A stream is followed from the other router, while it runs.
            pause(one)
            events = await here.responses.create(**ASKED, background=True, stream=True)
            response_id = (await anext(aiter(events))).response.id  # type: ignore[union-attr]
            follow = asyncio.create_task(http.get(f"/v1/responses/{response_id}", params={"stream": "true"}))
            go_on(one)
            assert kinds(checked((await follow).text))[-1] == "response.completed"
            # And cancelled from there.
            pause(one)
            begun = await here.responses.create(**ASKED, background=True)
            assert (await there.responses.cancel(begun.id)).status == "cancelled"
            worker = one["d0"]
            await worker.until(lambda: worker.received[-1].request_id in worker.aborted)
            go_on(one)
            assert (await here.responses.retrieve(begun.id)).status == "cancelled"
        assert not (tmp_path / "run").exists()

    asyncio.run(act())


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_background_response_says_so(checkpoint: Path, stream: bool) -> None:
    async def act() -> None:
        async with talking(checkpoint) as stage, client(stage) as sdk, stage.client() as http:
            for worker in stage.workers.values():
                worker.refuse = "no luck"
            body = {**ASKED, "background": True, "stream": stream}
            answer = await http.post("/v1/responses", json=body)
            if stream:
                events = checked(answer.text)
                assert kinds(events) == ["response.created", "response.in_progress", "response.failed"]
                failed = events[-1]["response"]
            else:
                failed = (await over(sdk, answer.json()["id"])).model_dump()
            assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
            assert "no luck" in failed["error"]["message"]

    asyncio.run(act())


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_answer_is_an_http_error(checkpoint: Path, stream: bool) -> None:
    async def act() -> None:
        async with talking(checkpoint) as stage, stage.client() as http:
            for worker in stage.workers.values():
                worker.refuse = "no luck"
            answer = await http.post("/v1/responses", json={**ASKED, "stream": stream})
            assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")

    asyncio.run(act())


def test_a_stream_that_fails_says_so_in_band_and_is_kept(checkpoint: Path) -> None:
    async def act() -> None:
        async with talking(checkpoint, LONG) as stage, client(stage) as sdk:
            for worker in stage.workers.values():
                worker.pace_s = 0.005
            got: list[Any] = []
            async for event in await sdk.responses.create(**ASKED, stream=True):
                got.append(event)
                if event.type == "response.output_text.delta" and stage["d0"].running:
                    await stage.until(lambda: stage.gateway.table.link("p0").in_flight == 0)
                    stage["d0"].fail("no luck")
            assert got[-1].type == "response.failed"
            failed = got[-1].response
            assert (failed.status, failed.output[0].status) == ("failed", "incomplete")
            assert failed.error.code == "server_error"
            assert "no luck" in failed.error.message
            assert (await sdk.responses.retrieve(failed.id)).model_dump() == failed.model_dump()

    asyncio.run(act())


def test_a_client_that_leaves_frees_the_work_and_nothing_is_kept(checkpoint: Path) -> None:
    async def act() -> None:
        async with talking(checkpoint, LONG) as stage, client(stage) as sdk:
            pause(stage)
            go = asyncio.create_task(sdk.responses.create(**ASKED))
            worker = stage["d0"]
            await worker.until(lambda: bool(worker.received))
            go.cancel()
            await worker.until(lambda: worker.received[0].request_id in worker.aborted)
            await stage.until(lambda: stage.gateway.in_flight == 0)

    asyncio.run(act())


def test_responses_of_a_closing_router_have_failed(checkpoint: Path, tmp_path: Path) -> None:
    async def act() -> None:
        async with talking(checkpoint, data_dir=str(tmp_path)) as stage, client(stage) as sdk:
            kept = await sdk.responses.create(**ASKED)
            pause(stage)
            begun = await sdk.responses.create(**ASKED, background=True)
        async with talking(checkpoint, data_dir=str(tmp_path)) as stage, client(stage) as sdk:
            assert (await sdk.responses.retrieve(begun.id)).status == "failed"
            assert (await sdk.responses.retrieve(kept.id)).model_dump() == kept.model_dump()

    asyncio.run(act())


def test_tenants_do_not_meet(checkpoint: Path, tmp_path: Path) -> None:
    one, two, three = make_key(), make_key(), make_key()
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{t} sha256:{hashed(k)}\n" for t, k in (("acme", one), ("acme", two), ("other", three))))

    async def act() -> None:
        async with talking(checkpoint, api_keys=str(keys)) as stage:
            async with client(stage, one) as sdk:
                kept = await sdk.responses.create(**ASKED)
                begun = await sdk.responses.create(**ASKED, background=True, stream=True)
                response_id = (await anext(aiter(begun))).response.id  # type: ignore[union-attr]
            async with client(stage, two) as sdk:
                assert (await sdk.responses.retrieve(kept.id)).output_text == "hello there"
            async with client(stage, three) as sdk:
                for each in (kept.id, response_id):
                    for act in (sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel):
                        with pytest.raises(openai.NotFoundError):
                            await act(each)
                    with pytest.raises(openai.NotFoundError):
                        await sdk.responses.input_items.list(each)
                    with pytest.raises(openai.BadRequestError, match="is kept here"):
                        await sdk.responses.create(**ASKED, previous_response_id=each)
            async with client(stage, one) as sdk:
                assert (await sdk.responses.retrieve(kept.id)).id == kept.id

    asyncio.run(act())


def test_background_responses_count_in_a_key_s_limit_of_running_requests(checkpoint: Path, tmp_path: Path) -> None:
    key = make_key()
    (tmp_path / "keys").write_text(f"acme sha256:{hashed(key)}\nacme limits concurrent=2\n")

    async def act() -> None:
        async with talking(checkpoint, api_keys=str(tmp_path / "keys")) as stage, client(stage, key) as sdk:
            pause(stage)
            begun = [await sdk.responses.create(**ASKED, background=True) for _ in range(2)]
            with pytest.raises(openai.RateLimitError):
                await sdk.responses.create(**ASKED, background=True)
            go_on(stage)
            await stage.until(lambda: stage.gateway.in_flight == 0)
            assert {(await over(sdk, each.id)).status for each in begun} == {"completed"}

    asyncio.run(act())


def test_bounds_are_the_configured_ones(checkpoint: Path) -> None:
    async def act() -> None:
        async with talking(checkpoint, max_responses=2) as stage, client(stage) as sdk:
            made = [await sdk.responses.create(**ASKED) for _ in range(3)]
            with pytest.raises(openai.NotFoundError):
                await sdk.responses.retrieve(made[0].id)
            assert [(await sdk.responses.retrieve(r.id)).id for r in made[1:]] == [r.id for r in made[1:]]

    asyncio.run(act())


def test_a_full_queue_is_a_429_before_anything_is_kept(checkpoint: Path) -> None:
    async def act() -> None:
        async with asyncio.timeout(120), served(checkpoint, pair(), max_queue=1) as stage, client(stage) as sdk:
            pause(stage)
            begun = await sdk.responses.create(**ASKED, background=True)
            with pytest.raises(openai.RateLimitError):
                await sdk.responses.create(**ASKED, background=True)
            await sdk.responses.cancel(begun.id)
            await stage.until(lambda: stage.gateway.in_flight == 0)

    asyncio.run(act())


async def kill(router: Stage) -> None:
    """End a router like a killed process: it tells neither its workers nor the store. Its leases run out."""
    cut_off(router)
    (takeover,) = (service for service in router.gateway._services if isinstance(service, Takeover))
    for task in (takeover._task, takeover._background._renewing, *takeover._background._tasks):
        if task is not None:
            task.cancel()
    await takeover._store._database.run(lambda db: db.execute("UPDATE responses SET lease = lease - ?", (LEASE_S + 1,)))


async def read_some(response: httpx.Response, text: str) -> str:
    """Read a stream until it has this many events, and return them."""
    told, pieces = "", response.aiter_text()
    while sum(len(json.loads(d)) for d in re.findall(r'"delta":("[^"]*")', told)) < len(text) + 2:
        told += await anext(pieces)
    return told[: told.rindex("\n\n") + 2]


@pytest.mark.parametrize("way", ["background", "background stream", "key"])
@pytest.mark.parametrize("dies", [False, True])
def test_another_router_continues_a_dead_router_s_response(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, dies: bool
) -> None:
    """dies: whether the worker that computes the response dies too."""
    monkeypatch.setattr("router.api.responses.takeover._LOOK_S", 0.02)
    said = "hello there, this is what it says"
    asked = {**ASKED, "stream": way != "background", "background": way != "key"}
    headers = {"x-ling-session": "s"} | ({"idempotency-key": "k"} if way == "key" else {})

    async def act() -> None:
        options = {"run_dir": str(tmp_path / "run")}
        async with (
            talking(checkpoint, said, **options) as one,
            served(checkpoint, [], **options) as two,
            two.client() as http,
        ):
            await two.gateway.update_workers(one.listed)
            await two.until(lambda: two.gateway.unready() is None)
            worker = one["d0"]
            stop_at(worker, 12, worker.answer)
            before: list[Any] = []
            async with one.client() as first:
                if way == "background":
                    response_id = (await first.post("/v1/responses", json=asked, headers=headers)).json()["id"]
                    await worker.until(lambda: not worker.gate.is_set())
                else:
                    async with first.stream("POST", "/v1/responses", json=asked, headers=headers) as response:
                        before = checked(await read_some(response, said[:6]))
                    response_id = before[0]["response"]["id"]
                await kill(one)
            if dies:
                await worker.die()
            else:
                await two.until(lambda: two.gateway.table.links() != [])
                worker.gate.set()
            if way == "background":
                async with client(two) as sdk:
                    assert (await over(sdk, response_id)).output_text == said
            else:
                query = {"stream": "true", "starting_after": len(before) - 1}
                rest = checked((await http.get(f"/v1/responses/{response_id}", params=query)).text, len(before))
                events = [*before, *rest]
                assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == said
                assert kinds(events)[-1] == "response.completed"
                item = events[-1]["response"]["output"][0]
                assert {e["item_id"] for e in events if "item_id" in e} == {item["id"]}
                assert item["content"][0]["text"] == said
            if way == "key":
                repeated = await http.post("/v1/responses", json=asked, headers=headers)
                assert checked(repeated.text) == events
                other = await http.post("/v1/responses", json={**asked, "input": "other"}, headers=headers)
                assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
            # Its session goes on from its end.
            session = (await http.get("/v1/sessions/s")).json()
            assert (session["last_request"], session["tokens"] > 0) == (response_id, True)
            if not dies:
                assert len(worker.received) == 1

    asyncio.run(act())


@pytest.mark.parametrize("store", [True, False])
def test_the_same_key_gives_the_same_whole_response(checkpoint: Path, store: bool) -> None:
    async def act() -> None:
        async with served(checkpoint, pair()) as stage, stage.client() as http:
            asked = {**ASKED, "max_output_tokens": 12, "store": store}
            headers = {"idempotency-key": "k"}
            first, again = [(await http.post("/v1/responses", json=asked, headers=headers)).json() for _ in range(2)]
            assert first["status"] == "incomplete"
            assert (first["id"], first["output"], first["store"]) == (again["id"], again["output"], store)
            assert len(stage["p0"].received) == 1
            other = await http.post("/v1/responses", json={**asked, "input": "other"}, headers=headers)
            assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
            kept = await http.get(f"/v1/responses/{first['id']}")
            assert kept.json() == first if store else kept.status_code == 404

    asyncio.run(act())


def test_the_same_request_twice_at_once_is_answered_once(checkpoint: Path) -> None:
    async def act() -> None:
        async with served(checkpoint, pair()) as stage, stage.client() as http:
            pause(stage)
            asked = {**ASKED, "max_output_tokens": 12}
            asks = [
                asyncio.create_task(http.post("/v1/responses", json=asked, headers={"idempotency-key": "k"}))
                for _ in range(4)
            ]
            # All have been begun before the first is recorded, or come after it; one of them is computed.
            await stage.until(lambda: stage.gateway.in_flight == 1 and len(stage["d0"].received) >= 1)
            go_on(stage)
            answers = [(await ask).json() for ask in asks]
            assert [a["status"] for a in answers] == ["incomplete"] * 4
            assert all((a["id"], a["output"]) == (answers[0]["id"], answers[0]["output"]) for a in answers)
            await stage.until(lambda: stage.gateway.in_flight == 0)

    asyncio.run(act())


def test_a_whole_response_with_a_key_outlives_its_client_and_fails_as_an_error(checkpoint: Path) -> None:
    async def act() -> None:
        options = {"first_token_timeout_s": 60, "request_timeout_s": 0.5}
        async with served(checkpoint, pair(), **options) as stage, stage.client() as http:
            pause(stage)
            headers = {"idempotency-key": "k"}
            with pytest.raises(httpx.TimeoutException):
                await http.post("/v1/responses", json=ASKED, headers=headers, timeout=0.05)
            late = await http.post("/v1/responses", json=ASKED, headers=headers)
            assert (late.status_code, late.json()["error"]["code"]) == (500, "server_error")
            assert "0.5 s" in late.json()["error"]["message"]

    asyncio.run(act())
