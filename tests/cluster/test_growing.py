"""Tests that a pool grows under load and shrinks after it, on real Ray, while clients stream."""

import asyncio
import json

import httpx
import pytest

from tests.cluster.serving import Serving, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SETTINGS = (
    "decode.max_replicas=2", "autoscaling.busy=0.5", "autoscaling.upscale_delay_s=0", "autoscaling.downscale_delay_s=1",
)  # fmt: skip
TOKENS = 600


async def answer(client: httpx.AsyncClient) -> int:
    """Run one streamed completion, which must succeed; returns its tokens."""
    body = {
        "model": "auto", "prompt": "Once upon a time", "max_tokens": TOKENS, "stream": True, "return_token_ids": True,
        "ignore_eos": True,
    }  # fmt: skip
    tokens, last = 0, ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            last = line or last
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                tokens += len(event["choices"][0].get("token_ids") or [])
    assert last == "data: [DONE]"
    return tokens


async def streams(at: Serving, count: int, live: int) -> None:
    """Run `count` clients with stream after stream until the decode pool has `live` workers; none may fail."""
    reached = False

    async def again_and_again(client: httpx.AsyncClient) -> None:
        while not reached:
            assert await answer(client) == TOKENS

    async with httpx.AsyncClient(base_url=at.url, timeout=120) as client:
        running = [asyncio.create_task(again_and_again(client)) for _ in range(count)]
        try:
            await asyncio.to_thread(at.until, lambda: len(at.live("decode")) == live, 120)
        finally:
            reached = True
        await asyncio.gather(*running)


def test_a_decode_pool_grows_and_shrinks_and_no_stream_fails() -> None:
    """Six streams are more than half of eight slots; three are few enough for one worker. The other may have some of
    them when it ends, which go on.
    """
    with serving("--tp", "1", "--slots", "8", *(word for s in SETTINGS for word in ("--set", s))) as at:
        asyncio.run(streams(at, 6, live=2))
        asyncio.run(streams(at, 3, live=1))
        at.until(at.all_free)
