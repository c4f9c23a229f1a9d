"""Measures the router with agents' prompts, short requests and many streams: `python -m benchmarks.gateway`.

Workers are fake and compute nothing. Sessions: the router's CPU for a new conversation and for its next turn, and the
longest gap in a stream of 50 tokens per second at the same time. Short requests at fixed rates, and paced streams: the
router, a bare server that answers with the same bytes, and, with `--sglang PYTHON` (an interpreter that has
`sglang-router`), that gateway in front of the bare server, in turn within one run; each figure is followed by its ratio
to the bare server's. Active streams: CPU per token of many streams at once. Idle streams: resident memory of each.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.conversations import SESSIONS, Session
from benchmarks.token_path import latencies, post, serve_router, started, streams, uvicorn_loop_run

_NANO = "checkpoints/ling-nano"
_LATER = 5
_RATES = (100, 500, 1000)
_PACE_S = 0.02
_IDLE = 10_000
_ACTIVE, _ACTIVE_TOKENS, _ACTIVE_PACE_S, _ACTIVE_S = 1_000, 10_000, 0.2, 6.0
_SHORT: dict[str, Any] = {"model": "tiny", "prompt": "x" * 300, "ignore_eos": True}


def serve_bare(pace_s: float) -> None:
    """Serve fixed bytes as an answer, or, if a stream is asked for, a chunk every `pace_s` seconds."""
    import uvicorn

    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1760000000, "model": "tiny"}
    choice = {"index": 0, "text": "a", "logprobs": None, "finish_reason": None}
    chunk = b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"
    whole = json.dumps({**head, "choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 1}}).encode()
    known = json.dumps({"model_path": "tiny", "served_model_name": "tiny", "is_generation": True}).encode()

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        asked = json.loads(body) if body else {}
        if not asked.get("stream"):
            answer = whole if asked else known
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(asked["max_tokens"]):
            await asyncio.sleep(pace_s)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def run() -> None:
        config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await serving

    uvicorn_loop_run(run())


@contextmanager
def _router(pace_s: float) -> Iterator[tuple[int, psutil.Process]]:
    with ExitStack() as stack:
        ports = [
            str(stack.enter_context(started("tests.router.fake_worker", "--pace", str(pace_s), "--role", role))[0])
            for role in ("prefill", "decode")
        ]
        yield stack.enter_context(started("benchmarks.gateway", "--serve", "router", *ports))


@contextmanager
def _sglang(python: str, server: int) -> Iterator[tuple[int, psutil.Process]]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port), "--worker-urls",
               f"http://127.0.0.1:{server}", "--policy", "round_robin", "--log-level", "error"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", method="POST")
                request.add_header("content-type", "application/json")
                urllib.request.urlopen(request, json.dumps({**_SHORT, "max_tokens": 1}).encode(), timeout=2).read()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit("sglang-router does not answer")
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(10)


def _cpu(*processes: psutil.Process) -> float:
    """CPU seconds of processes so far, by the scheduler's exact count; `cpu_times` only counts hundredths."""
    files = [file for process in processes for file in Path(f"/proc/{process.pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


async def _gaps(port: int, done: asyncio.Event) -> list[float]:
    """Read a paced stream until `done` is set; returns the seconds between its chunks."""
    body = json.dumps({**_SHORT, "model": "auto", "max_tokens": 100_000, "stream": True}).encode()
    reader, writer = await post(port, body)
    gaps, last = [], 0.0
    while not done.is_set():
        await reader.read(1 << 16)
        now = time.perf_counter()
        gaps.append(now - last if last else 0.0)
        last = now
    writer.close()
    return gaps


async def _ask(port: int, body: bytes) -> tuple[float, int]:
    """Send a chat request; returns milliseconds until its answer, and its prompt's number of tokens."""
    begun = time.perf_counter()
    reader, writer = await post(port, body, "/v1/chat/completions")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    answer = (head + await reader.read(1 << 16)).partition(b"\r\n\r\n")[2]
    writer.close()
    return (time.perf_counter() - begun) * 1e3, json.loads(answer)["usage"]["prompt_tokens"]


async def _session(session: Session, port: int, process: psutil.Process) -> str:
    bodies = list(session.bodies(2 * _LATER))
    costs, waits, tokens = [], [], 0
    for body in bodies[: _LATER + 1]:
        before = _cpu(process)
        waited, tokens = await _ask(port, body)
        costs.append((_cpu(process) - before) * 1e3)
        waits.append(waited)
    alone, beside = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().call_later(3.0, alone.set)
    gaps_alone = await _gaps(port, alone)
    stream = asyncio.create_task(_gaps(port, beside))
    await asyncio.sleep(0.2)
    for body in bodies[_LATER + 1 :]:
        await _ask(port, body)
        await asyncio.sleep(0.4)
    beside.set()
    gaps = await stream
    took = f"{costs[0]:.0f} | {statistics.median(costs[1:]):.1f} | {waits[0]:.0f} | {statistics.median(waits[1:]):.0f}"
    stood = f"{max(gaps_alone) * 1e3:.0f} | {max(gaps) * 1e3:.0f}"
    return f"| {session.name} | {tokens:,} | {len(bodies[_LATER]) / 1e6:.2f} | {took} | {stood} |"


def sessions() -> None:
    """Measure all kinds of sessions and print their table."""
    print("| session | tokens | MB | first: CPU ms | next: CPU ms | first: ms | next: ms ", end="")
    print("| gap alone: ms | beside: ms |\n|---|---|---|---|---|---|---|---|---|")
    for session in SESSIONS:
        with _router(_PACE_S) as (port, process):
            print(asyncio.run(_session(session, port, process)), flush=True)


def short(sglang: str | None) -> None:
    """Measure short requests and paced streams, and print their tables. sglang: an interpreter with it, or None."""
    one, two = (json.dumps({**_SHORT, "max_tokens": tokens}).encode() for tokens in (1, 2))
    with ExitStack() as stack:
        bare, server = stack.enter_context(started("benchmarks.gateway", "--serve", "bare", str(_PACE_S)))
        ways: dict[str, tuple[int, list[psutil.Process]]] = {"bare server": (bare, [server])}
        if sglang is not None:
            port, process = stack.enter_context(_sglang(sglang, bare))
            ways["sglang-router and bare server"] = (port, [process, server])
        with _router(0.0) as (port, process):
            print("| requests/s | way | p50 ms | p99 ms | CPU us a request |\n|---|---|---|---|---|")
            for rate in _RATES:
                bare_figures: tuple[float, ...] = ()
                asked = {name: (*way, one) for name, way in ways.items()}
                # A request of one token goes only to a prefill worker, one of two tokens to both workers.
                asked |= {"router": (port, [process], one), "router, two tokens": (port, [process], two)}
                for name, (at, processes, body) in asked.items():
                    before = _cpu(*processes)
                    spent = sorted(asyncio.run(latencies(at, rate, body)))
                    cost = (_cpu(*processes) - before) / len(spent) * 1e6
                    figures = (spent[len(spent) // 2] * 1e3, spent[int(len(spent) * 0.99)] * 1e3, cost)
                    bare_figures = bare_figures or figures
                    print(f"| {rate} | {name} | {_with_ratios(figures, bare_figures)} |", flush=True)
        with _router(_PACE_S) as (port, process):
            print("\n| 64 streams, 50 tok/s each | tok/s | CPU us a token |\n|---|---|---|")
            bare_figures = ()
            for name, (at, processes) in {**ways, "router": (port, [process])}.items():
                before = _cpu(*processes)
                rate_, _ = asyncio.run(streams(at, 64, 256, "tiny"))
                a_token = (rate_, (_cpu(*processes) - before) / (64 * 256) * 1e6)
                bare_figures = bare_figures or a_token
                print(f"| {name} | {_with_ratios(a_token, bare_figures)} |", flush=True)


def _with_ratios(figures: tuple[float, ...], bare: tuple[float, ...]) -> str:
    return " | ".join(
        f"{x:,.0f} ({x / y:.1f})" if x >= 100 else f"{x:.1f} ({x / y:.1f})" for x, y in zip(figures, bare, strict=True)
    )


async def _run_active(port: int, process: psutil.Process) -> tuple[float, float]:
    """Run a thousand streams; returns their chunks per second once all have begun, and router CPU seconds per chunk."""
    body = json.dumps({**_SHORT, "prompt": "x", "max_tokens": _ACTIVE_TOKENS, "stream": True}).encode()
    begun, chunks = 0, 0

    async def one() -> None:
        nonlocal begun, chunks
        reader, writer = await post(port, body)
        await reader.readuntil(b"data: {")
        begun += 1
        while data := await reader.read(1 << 16):
            chunks += data.count(b"data: {")
        writer.close()

    running = [asyncio.create_task(one()) for _ in range(_ACTIVE)]
    while begun < _ACTIVE:
        await asyncio.sleep(0.01)
    at, seen, spent = time.perf_counter(), chunks, _cpu(process)
    await asyncio.sleep(_ACTIVE_S)
    seconds, seen, spent = time.perf_counter() - at, chunks - seen, _cpu(process) - spent
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return seen / seconds, spent / seen


def active() -> None:
    """Measure rate, router CPU and memory of a thousand streams that run at once, and print them."""
    asked = _ACTIVE / _ACTIVE_PACE_S
    with _router(_ACTIVE_PACE_S) as (port, process):
        held = process.memory_info().rss
        rate, cost = asyncio.run(_run_active(port, process))
        grown = (process.memory_info().rss - held) / _ACTIVE / 1024
        print(
            f"\n{_ACTIVE:,} active streams: {rate:,.0f} of {asked:,.0f} tok/s asked for, each in a chunk of its own, "
            f"{cost * 1e6:.0f} us of router CPU a token, {grown:.1f} KiB each"
        )


async def _hold(port: int, process: psutil.Process, count: int) -> float:
    """Open `count` streams that wait for their first token; returns the router's bytes of resident memory for each."""
    body = json.dumps({**_SHORT, "model": "auto", "max_tokens": 100, "stream": True}).encode()
    begun, held = process.memory_info().rss, []
    for _ in range(count // 100):
        held += await asyncio.gather(*(post(port, body) for _ in range(100)))
    wanted = f"ling_in_flight {float(count)}".encode()
    for _ in range(600):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        if wanted in await reader.read(-1):
            break
        await asyncio.sleep(0.1)
    else:
        raise SystemExit(f"{count} streams were not taken")
    return (process.memory_info().rss - begun) / count


def idle() -> None:
    """Measure the router's memory for an idle stream and print it."""
    with _router(3600.0) as (port, process):
        print(f"\n{_IDLE:,} idle streams: {asyncio.run(_hold(port, process, _IDLE)) / 1024:.1f} KiB of the router each")


def main() -> None:
    """Run the chosen parts, or serve a part's server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sglang", metavar="PYTHON", help="an interpreter that has sglang-router")
    parser.add_argument("--only", choices=("sessions", "short", "active", "idle"))
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    match arguments.serve:
        case ["router", prefill, decode]:
            return serve_router(int(prefill), int(decode), _NANO, max_queue=2 * _IDLE, max_waiting=2 * _IDLE)
        case ["bare", pace_s]:
            return serve_bare(float(pace_s))
    if arguments.only in (None, "sessions"):
        sessions()
    if arguments.only in (None, "short"):
        short(arguments.sglang)
    if arguments.only in (None, "active"):
        active()
    if arguments.only in (None, "idle"):
        idle()


if __name__ == "__main__":
    main()
