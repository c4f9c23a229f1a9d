"""Tests TLS between router and workers: streams work, deaths are seen at once, and no text can be read."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from router.relay.costs import Costs
from router.relay.link import ListedWorker
from router.relay.table import WorkerTable
from tests.certificates import environment, recording
from tests.router.conftest import Stage, pair, served
from tests.router.fake_worker import FakeWorker
from wire.tls import TlsError, tls

pytestmark = pytest.mark.process

NAME = "router-that-tells"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1}


@pytest.fixture
def variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Switch TLS on by Ray's variables."""
    made = environment(tmp_path / "tls")
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    tls.cache_clear()
    yield made
    tls.cache_clear()


async def answer(stage: Stage) -> str:
    async with stage.client() as client:
        response = await client.post("/v1/chat/completions", json=ASK)
    assert response.status_code == 200
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def exchanged(checkpoint: Path) -> tuple[str, bytes]:
    """An answer, and the bytes that passed between router and decode worker."""
    workers = pair()
    async with served(checkpoint, workers, name=NAME) as stage, recording(workers[1].info.port) as (port, seen):
        through = structs.replace(workers[1].ref, port=port)
        await stage.gateway.update_workers([stage.listed[0], ListedWorker(through, "decode")])
        await stage.until(lambda: stage.gateway.table.live() == {"prefill": 1, "decode": 1})
        return await answer(stage), bytes(seen)


def test_texts_visible_in_the_clear_are_not_visible_in_tls(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear, seen = asyncio.run(exchanged(checkpoint))
    assert NAME.encode() in seen
    assert clear
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    tls.cache_clear()
    try:
        sealed, passed = asyncio.run(exchanged(checkpoint))
    finally:
        tls.cache_clear()
    assert sealed == clear
    assert len(passed) > len(seen)
    assert NAME.encode() not in passed


@pytest.mark.usefixtures("variables")
def test_a_worker_s_death_is_seen_at_once(checkpoint: Path) -> None:
    async def run() -> None:
        workers = [*pair(pace_s=0.005), FakeWorker("d1", "decode", pace_s=0.005)]
        async with served(checkpoint, workers) as stage, stage.client() as client:
            ask = ASK | {"stream": True, "max_tokens": 100, "ignore_eos": True}
            async with client.stream("POST", "/v1/chat/completions", json=ask) as response:
                lines = response.aiter_lines()
                while '"content":"' not in await anext(lines):
                    pass
                await stage[response.headers["x-ling-decode-worker"]].die()
                rest = [line.removeprefix("data: ") async for line in lines if line]
            assert rest[-1] == "[DONE]"
            assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"

    asyncio.run(run())


@pytest.mark.usefixtures("variables")
def test_a_router_without_tls_gets_no_worker(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with served(checkpoint, pair()) as stage:
            monkeypatch.setenv("RAY_USE_TLS", "0")
            tls.cache_clear()
            monkeypatch.setattr("router.relay.link._CONNECT_S", 0.2)
            table = WorkerTable("plain", "", Costs())
            await table.update(stage.listed)
            await stage.until(lambda: all("Timeout" in link.problem for link in table.links()))
            assert table.live() == {"prefill": 0, "decode": 0}
            await table.close()

    asyncio.run(run())


def test_a_file_that_is_missing_ends_the_router_before_it_serves(variables: dict[str, str]) -> None:
    Path(variables["RAY_TLS_SERVER_KEY"]).unlink()
    with pytest.raises(TlsError, match=r"^RAY_TLS_SERVER_KEY: can't read .*: No such file"):
        WorkerTable("r", "", Costs())
