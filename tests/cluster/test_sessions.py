"""Tests sessions and moving answers on real Ray: park, fork, drain in mid-answer, and recovery from disk."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.cluster.serving import Serving, serving
from tests.cluster.test_serving import MODEL, cases, stream

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
STREAMS = 32


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    sets = {
        "cache.host_bytes": "1000000000",
        "cache.disk_dir": str(tmp_path_factory.mktemp("disk")),
        "router.data_dir": str(tmp_path_factory.mktemp("data")),
    }
    words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    # Its decode workers compute prompts too.
    with serving(
        "--model", MODEL, "--prefill", "0", "--decode", "2", "--tp", "1", "--dtype", "float32", *words
    ) as started:
        yield started


def ask(cluster: Serving, prompt: list[int], new: int, name: str | None = None) -> tuple[int, ...]:
    body: dict[str, Any] = {"model": "auto", "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True}
    named = {} if name is None else {"session_id": name}
    answer = cluster.client.post("/v1/completions", json=body | {"return_token_ids": True} | named)
    assert answer.status_code == 200, answer.text
    return tuple(answer.json()["choices"][0]["token_ids"])


def tier(cluster: Serving, name: str) -> str | None:
    found: str | None = cluster.client.get(f"/v1/sessions/{name}").json()["tier"]
    return found


def test_a_session_is_parked_resumed_forked_and_found_after_its_worker_was_drained(cluster: Serving) -> None:
    # Beginnings of answers that are known to have no near ties: each turn is asked with the answer so far.
    prompt, new, expected = max(cases(), key=lambda case: case[1])
    whole = expected.token_ids
    assert ask(cluster, prompt, 8, "s") == whole[:8]
    assert cluster.client.post("/v1/sessions/s/park").status_code == 200
    cluster.until(lambda: tier(cluster, "s") in ("host", "disk"))
    assert ask(cluster, [*prompt, *whole[:8]], 8, "s") == whole[8:16]
    assert cluster.client.post("/v1/sessions/s/park").status_code == 200
    assert cluster.client.post("/v1/sessions/s/resume").json()["tier"] == "device"
    forks = cluster.client.post("/v1/sessions/s/fork", json={"ids": ["a", "b"]}).json()["data"]
    assert [fork["tokens"] for fork in forks] == [len(prompt) + 16] * 2
    for name in ("a", "b"):
        assert ask(cluster, [*prompt, *whole[:16]], 8, name) == whole[16:24]
    cluster.until(lambda: len(cluster.live("decode")) == 2)
    for worker in [one["id"] for one in cluster.workers("decode")]:
        drain(cluster, worker)
        cluster.until(lambda: len(cluster.live("decode")) == 2, 90)
    cluster.until(lambda: tier(cluster, "s") == "disk")
    assert ask(cluster, [*prompt, *whole[:16]], new - 16, "s") == whole[16:]
    cluster.until(cluster.all_free)


def drain(cluster: Serving, worker: str) -> None:
    command = [sys.executable, "-m", "cluster.cli", "drain", worker, "--url", cluster.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_worker_is_drained_under_streams_and_none_fails(cluster: Serving) -> None:
    asked = sorted(cases(), key=lambda case: case[1])[-STREAMS:]
    worker = cluster.one_live("decode")["id"]
    begun = asyncio.Event()

    async def gained(ids: list[int]) -> None:
        begun.set()

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=cluster.url + "/v1", api_key="-", max_retries=0) as client:
            streams = [asyncio.create_task(stream(client, prompt, new, gained)) for prompt, new, _ in asked]
            await begun.wait()
            await asyncio.to_thread(drain, cluster, worker)
            answers = await asyncio.gather(*streams)
        assert [tuple(ids) for ids, _ in answers] == [expected.token_ids for _, _, expected in asked]

    asyncio.run(run())
    assert worker not in [one["id"] for one in cluster.live("decode")]
    cluster.until(lambda: len(cluster.live("decode")) == 2, 90)
    cluster.until(cluster.all_free)
