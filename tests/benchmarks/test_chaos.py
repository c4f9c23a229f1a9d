"""Tests a short run of the chaos benchmark: agents' sessions while workers and routers are killed and stopped."""

import asyncio

import httpx
import pytest

from benchmarks.chaos import Tally, chaos
from tests.cluster.serving import serving


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_no_stream_fails_and_every_transcript_is_the_undisturbed_one() -> None:
    async def play(url: str) -> Tally:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            return await chaos(client, sessions=6, seconds=20, every=4, seed=2)

    with serving("--decode", "2", "--tp", "2", "--set", "router.replicas=2") as started:
        tally = asyncio.run(play(started.url))
    assert tally.failed == []
    assert tally.different == 0
    assert tally.kills
