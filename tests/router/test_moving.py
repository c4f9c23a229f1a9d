"""Tests that the answers of a draining worker continue at another one, and clients only see a pause."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.access.keys import hashed, make_key
from router.app import Pools
from tests.router.conftest import Stage, served
from tests.router.fake_worker import FakeWorker

pytestmark = pytest.mark.process
PATH = "/v1/completions"
BODY = {"model": "tiny", "prompt": "Once upon", "seed": 3, "max_tokens": 300, "ignore_eos": True}


def workers(decode: int = 2) -> list[FakeWorker]:
    made = [FakeWorker(f"d{n}", "decode", pace_s=0.002) for n in range(decode)]
    return [FakeWorker("p0", "prefill"), *made]


def on(checkpoint: Path, act: Callable[[Stage], Awaitable[None]], count: int = 2, **options: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(120), served(checkpoint, workers(count), Pools(1, count), **options) as stage:
            await act(stage)

    asyncio.run(run())


async def undisturbed(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    return str((await client.post(PATH, json=body)).json()["choices"][0]["text"])


@pytest.mark.parametrize("kept", [False, True])
def test_moved_answers_continue_where_they_were(checkpoint: Path, kept: bool) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            bodies = [BODY | {"seed": n} for n in range(8)]
            expected = await asyncio.gather(*(undisturbed(client, body) for body in bodies))
            tasks = [asyncio.create_task(client.post(PATH, json=body)) for body in bodies]
            first = stage["d0"]
            before = len(first.received)
            await stage.until(lambda: any(r.at > 5 for r in first.running.values()))
            moved = {r.request.request_id: r.at for r in first.running.values()}
            first.move(kept)
            answers = [(await task).json()["choices"][0]["text"] for task in tasks]
            assert answers == expected
            assert moved
            again = {r.request_id.rsplit(".", 1)[0]: r for r in stage["d1"].received if r.generated}
            # One may have told its last token by the time that it was to move.
            assert again.keys() & moved.keys()
            for request_id in again.keys() & moved.keys():
                at = moved[request_id]
                assert again[request_id].generated == at
                source = again[request_id].prefix.source
                if kept:
                    assert source is not None
                    assert source.worker_id == "d0"
                    assert again[request_id].prefix.kept_tokens == len(BODY["prompt"]) + at - 1
                else:
                    assert source is None
            assert len(first.received) >= before

    on(checkpoint, act)


def test_the_next_worker_pulls_the_snapshot_while_the_answer_goes_on(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            expected = await undisturbed(client, BODY)
            task = asyncio.create_task(client.post(PATH, json=BODY))
            workers = [stage["d0"], stage["d1"]]
            await stage.until(lambda: any(r.at > 5 for worker in workers for r in worker.running.values()))
            first, second = sorted(workers, key=lambda worker: -len(worker.running))
            (request_id,) = first.running
            first.announce()
            told = len(BODY["prompt"]) + first.running[request_id].at - 1
            answer = (await task).json()["choices"][0]["text"]
            assert answer == expected
            warm, again = second.received[-2:]
            assert (warm.warm, len(warm.token_ids), warm.prefix.kept_tokens) == (True, told + 1, told)
            assert warm.prefix.source == again.prefix.source == first.ref
            assert first.asked_to_move == [request_id]
            assert again.prefix.kept_tokens >= told
            assert again.generated > told - len(BODY["prompt"])

    on(checkpoint, act)


def test_an_operator_drains_a_worker_and_not_the_last_one(checkpoint: Path) -> None:
    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            answer = await client.post("/v1/workers/d0/drain")
            assert answer.json() == {"id": "d0", "object": "worker", "state": "draining"}
            async with asyncio.timeout(60):
                await stage["d0"].drained.wait()
            answer = await client.post("/v1/workers/nobody/drain")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "worker_not_found")
            answer = await client.post("/v1/workers/p0/drain")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "last_worker")

    on(checkpoint, act)


def test_with_keys_only_operators_drain(checkpoint: Path, tmp_path: Path) -> None:
    keys = {tenant: make_key() for tenant in ("ann", "ops")}
    lines = [f"{tenant} sha256:{hashed(key)}" for tenant, key in keys.items()]
    (tmp_path / "keys").write_text("\n".join(lines) + "\n")

    async def act(stage: Stage) -> None:
        async with stage.client() as client:
            for tenant, status in (("ann", 403), ("ops", 200)):
                headers = {"authorization": f"Bearer {keys[tenant]}"}
                assert (await client.post("/v1/workers/d0/drain", headers=headers)).status_code == status
            assert (await client.post("/v1/workers/d0/drain")).status_code == 401

    on(checkpoint, act, api_keys=str(tmp_path / "keys"), operators=("ops",))
