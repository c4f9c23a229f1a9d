"""Measures what the router costs, with fake workers that compute nothing: `python -m benchmarks.token_path`.

Streams: tokens per second through router and HTTP, against a bare FastAPI SSE endpoint on the same HTTP server, and
against a Ray Serve application that streams each token through a handle, behind Serve's own front. A router that falls
behind joins waiting tokens into one chunk, so its chunks per second are printed too, and a paced run in which it joins
none. Requests: the time to the whole answer at fixed rates.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

_STREAMS = (16, 64)
_TOKENS = 512
_RATES = (100, 500)
_RATE_S = 4.0
_HEAD = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"


# Servers. Each runs in a process of its own and prints its port once it serves.


def serve_router(prefill: int, decode: int, tokenizer: str | None = None, **options: Any) -> None:
    """Serve a router on uvicorn, in front of two workers.

    prefill, decode: the workers' ports. tokenizer: a checkpoint's folder; None for a tiny one. options: of
    `RouterConfig`.
    """
    import uvicorn

    from cluster.http_limits import LimitedHttp
    from router.app import Gateway, ListedWorker, Pools, RouterConfig, create_app
    from router.memory import keep_for_good
    from tests.router.conftest import write_checkpoint
    from wire.protocol import PeerRef

    async def run(folder: str) -> None:
        gateway = Gateway(RouterConfig("tiny", folder, **options), Pools())
        await gateway.start()
        app = create_app(gateway)
        keep_for_good()
        config = uvicorn.Config(app, http=LimitedHttp, port=0, log_level="error", lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        await gateway.update_workers(
            [
                ListedWorker(PeerRef("prefill", "127.0.0.1", prefill), "prefill"),
                ListedWorker(PeerRef("decode", "127.0.0.1", decode), "decode"),
            ]
        )
        while not server.started or gateway.unready():
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await serving

    with tempfile.TemporaryDirectory() as folder:
        uvicorn_loop_run(run(tokenizer or str(write_checkpoint(Path(folder)))))


def uvicorn_loop_run(work: "asyncio.Future[None] | object") -> None:
    """Run `work` on uvloop, as the product does."""
    import uvloop

    uvloop.run(work)


def serve_bare() -> None:
    """Serve a FastAPI endpoint that streams the same bytes from a generator."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()
    chunk = b"data: " + json.dumps(_chunk()).encode() + b"\n\n"

    @app.post("/v1/completions")
    async def completions(body: dict[str, object]) -> StreamingResponse:
        async def tokens() -> "object":
            for _ in range(int(str(body["max_tokens"]))):
                yield chunk
            yield b"data: [DONE]\n\n"

        return StreamingResponse(tokens(), media_type="text/event-stream")  # type: ignore[arg-type]

    async def run() -> None:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await serving

    uvicorn_loop_run(run())


def _chunk() -> dict[str, object]:
    choice = {"index": 0, "text": "a", "logprobs": None, "finish_reason": None}
    return {
        "id": "cmpl-0123456789abcdef0123456789abcdef",
        "object": "text_completion",
        "created": 1760000000,
        "model": "tiny",
        "choices": [choice],
    }


def serve_hops() -> None:
    """Serve a Ray Serve ingress that streams from a second deployment, one item per token."""
    import os

    os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    import ray
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    from ray import serve

    from tests.cluster.serving import free_port

    chunk = "data: " + json.dumps(_chunk()) + "\n\n"
    app = FastAPI()

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.01})
    class Tokens:
        async def stream(self, count: int) -> "object":
            for _ in range(count):
                yield chunk
                await asyncio.sleep(0)

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.01})
    @serve.ingress(app)
    class Ingress:
        def __init__(self, tokens: "serve.handle.DeploymentHandle") -> None:
            self.tokens = tokens.options(stream=True)

        @app.post("/v1/completions")
        async def completions(self, body: dict) -> StreamingResponse:  # type: ignore[type-arg]
            items = self.tokens.stream.remote(int(body["max_tokens"]))

            async def events() -> "object":
                async for item in items:
                    yield item
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")  # type: ignore[arg-type]

    port = free_port()
    ray.init(address="local", include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    serve.run(Ingress.bind(Tokens.bind()), name="hops")  # type: ignore[attr-defined] # Serve's decorators give it
    print(port, flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


@contextmanager
def started(*command: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server in a process of its own until the end; yields the port that it prints, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = process.stdout.readline()
        while line and not line.strip().isdigit():
            line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(command)} ended before it served")
        yield int(line), psutil.Process(process.pid)
    finally:
        process.stdin.close()
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        try:
            process.wait(3 if command[-1] != "hops" else 60)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(10)
        for child in psutil.wait_procs(family, timeout=3)[1]:
            child.kill()


# The client


async def post(
    port: int, body: bytes, path: str = "/v1/completions"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request on a new connection; returns the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_HEAD % (path.encode(), len(body), body))
    return reader, writer


async def _stream(port: int, tokens: int, model: str = "auto") -> int:
    """Read one stream to its end; returns its number of chunks."""
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": tokens, "ignore_eos": True, "stream": True})
    reader, writer = await post(port, body.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(head.decode())
    chunks = 0
    tail = b""
    while True:
        data = await reader.read(1 << 16)
        if not data:
            raise SystemExit("a stream ended early")
        chunks += (tail[-5:] + data).count(b"data: {")
        tail = (tail + data)[-32:]
        if b"[DONE]" in tail:
            writer.close()
            return chunks


async def streams(port: int, count: int, tokens: int, model: str = "auto") -> tuple[float, float]:
    """Run `count` streams at once; returns tokens and chunks per second of all together."""
    await _stream(port, 8, model)
    begun = time.perf_counter()
    chunks = await asyncio.gather(*(_stream(port, tokens, model) for _ in range(count)))
    spent = time.perf_counter() - begun
    return count * tokens / spent, sum(chunks) / spent


_ASKED = json.dumps({"model": "auto", "prompt": "x" * 300, "max_tokens": 1, "ignore_eos": True}).encode()


async def latencies(port: int, rate: int, body: bytes = _ASKED) -> list[float]:
    """Send `rate` requests per second, each when it is due, whether or not earlier ones were answered.

    Returns the seconds of each from when it was due to its whole answer. body: the request's JSON.
    """
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    spent: list[float] = []

    async def one(due: float) -> None:
        if idle:
            reader, writer = idle.pop()
            writer.write(_HEAD % (b"/v1/completions", len(body), body))
        else:
            reader, writer = await post(port, body)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(head.decode())
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        spent.append(time.perf_counter() - due)
        idle.append((reader, writer))

    begun = time.perf_counter()
    running = []
    for i in range(int(rate * _RATE_S)):
        due = begun + i / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        running.append(asyncio.create_task(one(due)))
    await asyncio.gather(*running)
    return spent


@contextmanager
def _router(pace: float) -> Iterator[tuple[int, psutil.Process]]:
    with ExitStack() as stack:
        ports = [
            stack.enter_context(started("tests.router.fake_worker", "--pace", str(pace), "--role", role))[0]
            for role in ("prefill", "decode")
        ]
        yield stack.enter_context(started("benchmarks.token_path", "--serve", "router", *map(str, ports), "router"))


def _compare(count: int, hops_port: int, bare_port: int, router_port: int) -> None:
    rates: dict[str, list[tuple[float, float]]] = {"router": [], "bare": [], "hops": []}
    for _ in range(3):
        for name, port, tokens in (
            ("router", router_port, _TOKENS),
            ("bare", bare_port, _TOKENS),
            ("hops", hops_port, 64),
        ):
            rates[name].append(asyncio.run(streams(port, count, tokens)))
    rate = {k: statistics.median(t for t, _ in v) for k, v in rates.items()}
    chunks = statistics.median(c for _, c in rates["router"])
    print(
        f"{count} streams, tok/s: router {rate['router']:,.0f} ({chunks:,.0f} chunks/s), "
        f"bare SSE {rate['bare']:,.0f}, two-hop Serve handle {rate['hops']:,.0f}; "
        f"router/bare {rate['router'] / rate['bare']:.2f}, router/two-hop {rate['router'] / rate['hops']:.1f}",
        flush=True,
    )


def main() -> None:
    """Measure streams and requests, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    serve = parser.parse_args().serve
    if serve:
        {"router": lambda: serve_router(int(serve[1]), int(serve[2])), "bare": serve_bare, "hops": serve_hops}[
            serve[-1]
        ]()
        return
    with (
        _router(0.0) as (router, _),
        started("benchmarks.token_path", "--serve", "bare") as (bare, _),
        started("benchmarks.token_path", "--serve", "hops") as (hops, _),
    ):
        for count in _STREAMS:
            _compare(count, hops, bare, router)
    with _router(0.02) as (router, process):
        before, begun = sum(process.cpu_times()[:2]), time.perf_counter()
        tokens, chunks = asyncio.run(streams(router, 64, 128))
        cpu = sum(process.cpu_times()[:2]) - before
        print(
            f"64 streams paced at up to 50 tok/s each: {tokens:,.0f} tok/s in {chunks:,.0f} chunks/s, "
            f"{cpu / (64 * 128) * 1e6:.0f} us of router CPU a token, "
            f"{cpu / (time.perf_counter() - begun):.0%} of a core"
        )
    with _router(0.0) as (router, _):
        for rate in _RATES:
            spent = sorted(asyncio.run(latencies(router, rate)))
            print(
                f"{rate} requests/s: p50 {spent[len(spent) // 2] * 1e3:.1f} ms, "
                f"p99 {spent[int(len(spent) * 0.99)] * 1e3:.1f} ms from sending to the whole answer"
            )


if __name__ == "__main__":
    main()
