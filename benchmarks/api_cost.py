"""Measures what tools and schemas cost a stream in the router: `python -m benchmarks.api_cost`. Workers are fake.

It runs 32 chat streams at once of three kinds, in turn: plain text, strict tools that are called again and again, and
text held to a JSON Schema. It prints each kind's ratio to the plain streams: of the time per token at full speed, where
the router joins waiting tokens into one chunk; and of router CPU per token at a pace at which it joins none. The CPU of
a request before its first token is printed apart at that pace; at full speed it is part of the time per token.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.token_path import started, uvicorn_loop_run

_STREAMS, _TOKENS, _PACED_TOKENS, _ROUNDS = 32, 1024, 128, 5
_PACE_S = 0.02
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
_SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "line": {"type": "integer"},
        "edits": {"type": "array", "items": {"type": "object", "properties": {"old": {"type": "string"}}}},
    },
    "required": ["path", "line", "edits"],
    "additionalProperties": False,
}
_JSON = json.dumps({"path": "src/main.py", "line": 17, "edits": [{"old": f'print("{i}")\n'} for i in range(4)]})
_CALL = f'<tool_call>\n{{"name": "edit", "arguments": {_JSON}}}\n</tool_call>\n'
_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Edits.", "parameters": _SCHEMA, "strict": True}}
    for name in ("edit", "read", "search", "run")
]
_FORMAT = {"type": "json_schema", "json_schema": {"name": "edit", "schema": _SCHEMA, "strict": True}}
# For each kind of request: the fields it adds to the body, and the text that workers repeat in answer. Workers
# recognise the kind by the request's seed.
_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "The quick brown fox jumps over the lazy dog, and then it does so again. "),
    "tools": ({"tools": _TOOLS, "tool_choice": "required"}, _CALL),
    "schema": ({"response_format": _FORMAT}, _JSON),
}


def serve_worker(role: str, pace: float) -> None:
    """Serve a fake worker that answers each kind of request with its text. pace: seconds between tokens."""
    from router.text.tokenizer import Tokenizer
    from tests.router.conftest import write_checkpoint
    from tests.router.fake_worker import Answer, FakeWorker, Request

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(str(write_checkpoint(Path(folder))))
    texts = [tokenizer.encode(text, False) for _, text in _KINDS.values()]

    def answer(request: Request) -> Answer:
        ids = texts[request.sampling.seed]
        return lambda offset: ids[offset % len(ids)]

    async def run() -> None:
        sizes = {"slots": 4096, "pages": 1 << 20, "max_model_len": 1 << 20}
        worker = FakeWorker(role, role, answer=answer, pace_s=pace, **sizes)  # type: ignore[arg-type]
        await worker.start()
        print(worker.ref.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await worker.die()

    uvicorn_loop_run(run())


async def _stream(port: int, kind: str, tokens: int) -> int:
    """Read one stream to its end; returns the number of chunks."""
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": tokens,
        "stream": True,
        "seed": list(_KINDS).index(kind),
        **_KINDS[kind][0],
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_HEAD % (len(data), data))
    chunks, tail = 0, b""
    while b"[DONE]" not in tail:
        read = await reader.read(1 << 16)
        if not read:
            raise SystemExit(f"a stream ended early: {tail.decode(errors='replace')}")
        chunks += (tail[-5:] + read).count(b"data: {")
        tail = (tail + read)[-512:]
    writer.close()
    return chunks


async def _streams(port: int, kind: str, tokens: int) -> tuple[float, int]:
    """Run all streams of a kind at once; returns seconds per token and the number of all chunks."""
    begun = time.perf_counter()
    chunks = await asyncio.gather(*(_stream(port, kind, tokens) for _ in range(_STREAMS)))
    return (time.perf_counter() - begun) / (_STREAMS * tokens), sum(chunks)


def _router(stack: ExitStack, pace: float) -> tuple[int, psutil.Process]:
    ports = [
        stack.enter_context(started("benchmarks.api_cost", "--pace", str(pace), "--serve", role))[0]
        for role in ("prefill", "decode")
    ]
    return stack.enter_context(started("benchmarks.token_path", "--serve", "router", *map(str, ports), "router"))


def _at_full_speed() -> None:
    spent: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with ExitStack() as stack:
        port, _ = _router(stack, 0.0)
        for kind in _KINDS:
            asyncio.run(_streams(port, kind, 64))
        for _ in range(_ROUNDS):
            for kind, times in spent.items():
                times.append(asyncio.run(_streams(port, kind, _TOKENS))[0])
    plain = statistics.median(spent["plain"])
    print(f"{_STREAMS} streams at full speed: plain {plain * 1e6:.1f} us a token")
    for kind in list(_KINDS)[1:]:
        ratios = [a / b for a, b in zip(spent[kind], spent["plain"], strict=True)]
        print(f"  {kind}: {statistics.median(spent[kind]) * 1e6:.1f} us, {statistics.median(ratios):.2f} of plain")


def _cpu(port: int, process: psutil.Process, kind: str, tokens: int) -> tuple[float, int]:
    """Run all streams of a kind at once; returns the router's CPU seconds and the number of all chunks."""
    before = sum(process.cpu_times()[:2])
    chunks = asyncio.run(_streams(port, kind, tokens))[1]
    return sum(process.cpu_times()[:2]) - before, chunks


def _paced() -> None:
    requests: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    tokens: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    chunks = dict.fromkeys(_KINDS, 0)
    with ExitStack() as stack:
        port, process = _router(stack, _PACE_S)
        for kind in _KINDS:
            _cpu(port, process, kind, 1)
        for kind, spent in requests.items():
            spent += [_cpu(port, process, kind, 1)[0] / _STREAMS for _ in range(2 * _ROUNDS)]
        for _ in range(_ROUNDS):
            for kind, spent in tokens.items():
                cpu, chunks[kind] = _cpu(port, process, kind, _PACED_TOKENS)
                spent.append((cpu / _STREAMS - statistics.mean(requests[kind])) / (_PACED_TOKENS - 1))
    print(f"{_STREAMS} streams paced at up to {1 / _PACE_S:.0f} tok/s, CPU of the router:")
    for kind in _KINDS:
        token, request = statistics.median(tokens[kind]), statistics.mean(requests[kind])
        ratio, share = token / statistics.median(tokens["plain"]), chunks[kind] / (_STREAMS * _PACED_TOKENS)
        print(
            f"  {kind}: {token * 1e6:.0f} us a token, {ratio:.2f} of plain, in {share:.2f} chunks; "
            f"{request * 1e3:.1f} ms a request besides"
        )


def main() -> None:
    """Measure at full speed and at a fixed pace, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=("prefill", "decode"), help=argparse.SUPPRESS)
    parser.add_argument("--pace", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_worker(arguments.serve, arguments.pace)
        return
    _at_full_speed()
    _paced()


if __name__ == "__main__":
    main()
