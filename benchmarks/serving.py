"""Measures a cluster over HTTP: batching, and a hand-off against computing the prompt again.

`python -m benchmarks.serving` starts `ling serve` on the embedded checkpoint, or measures a running cluster (`--url`).
It prints ratios; both sides of a ratio are measured in turn in the same run.
"""

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import httpx

_PROMPT, _NEW, _STREAMS = 64, 64, 32


def _body(rng: random.Random, prompt: int, new: int, stream: bool) -> dict[str, object]:
    return {
        "model": "auto",
        "prompt": [rng.randrange(33, 120) for _ in range(prompt)],
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }


async def _stream(client: httpx.AsyncClient, body: dict[str, object]) -> list[float]:
    """Run one stream; returns the seconds between its chunks."""
    times = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        held = ""
        async for text in response.aiter_text():
            *lines, held = (held + text).split("\n")
            now = time.perf_counter()
            times += [now for line in lines if line.startswith("data: {")]
    return [after - before for before, after in pairwise(times)]


async def batching(client: httpx.AsyncClient) -> None:
    """Run 8 streams one after another and 32 streams together; print tokens/s and the times between chunks of both."""
    rng = random.Random(1)
    bodies = [_body(rng, _PROMPT, _NEW, True) for _ in range(_STREAMS)]
    await asyncio.gather(*(_stream(client, b) for b in bodies))
    rates: dict[str, list[float]] = {"alone": [], "together": []}
    gaps: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(3):
        begun = time.perf_counter()
        for body in bodies[:8]:
            gaps["alone"] += await _stream(client, body)
        rates["alone"].append(8 * _NEW / (time.perf_counter() - begun))
        begun = time.perf_counter()
        for each in await asyncio.gather(*(_stream(client, b) for b in bodies)):
            gaps["together"] += each
        rates["together"].append(_STREAMS * _NEW / (time.perf_counter() - begun))
    alone, together = (statistics.median(rates[k]) for k in ("alone", "together"))
    print(
        f"batching: 1 stream {alone:.0f} tok/s, {_STREAMS} streams {together:.0f} tok/s, ratio {together / alone:.1f}"
    )
    for streams, found in gaps.items():
        cuts = statistics.quantiles(found, n=100)
        print(f"between chunks, {streams}: p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms")


async def handoff(client: httpx.AsyncClient, tokens: int) -> None:
    """Print the time to move a snapshot against the time to compute its prompt. tokens: the prompt's length."""
    rng = random.Random(2)
    timings = []
    for _ in range(8):
        response = await client.post("/v1/completions", json=_body(rng, tokens, 2, False))
        response.raise_for_status()
        timings.append(response.json()["timings"])
    prefill, transfer = (statistics.median(t[k] for t in timings[1:]) for k in ("prefill_s", "transfer_s"))
    print(
        f"hand-off of {tokens} tokens: transfer {transfer * 1e3:.1f} ms, prefilling again {prefill * 1e3:.1f} ms, "
        f"ratio {transfer / prefill:.3f}"
    )


@asynccontextmanager
async def running_cluster(url: str | None, arguments: list[str]) -> AsyncIterator[str]:
    """Yield the URL of a cluster: `url`, or else one that runs `ling serve` with these arguments until the end."""
    if url is not None:
        yield url
        return
    port = 8765
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "serve", "--port", str(port), *arguments], stdout=subprocess.DEVNULL
    )
    try:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient() as client:
            for _ in range(600):
                try:
                    if (await client.get(base + "/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None:
                    raise SystemExit(f"ling serve ended with code {process.returncode}")
                await asyncio.sleep(0.2)
        yield base
    finally:
        process.terminate()
        process.wait(60)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running cluster; without it one is started")
    parser.add_argument("--tokens", type=int, default=2000, help="prompt length of the hand-off")
    arguments, serve = parser.parse_known_args()
    async with running_cluster(arguments.url, serve) as url, httpx.AsyncClient(base_url=url, timeout=600) as client:
        await batching(client)
        await handoff(client, arguments.tokens)


if __name__ == "__main__":
    asyncio.run(_main())
