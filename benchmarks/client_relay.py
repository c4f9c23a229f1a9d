"""A relay between client and cluster in `benchmarks.clients`, which forces a small model to call the client's shell.

Client and cluster are unmodified. In requests that offer the client's shell tool, the relay narrows the tool to one
command and sets `tool_choice` to it. Once the history has the tool's result, it sets `tool_choice` to none, so that the
model answers. It records each exchange for the report.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

# The result's text does not occur in the command, so only a shell that ran the command can print it.
COMMAND = "echo result-$((40 + 2))"
RESULT = "result-42"
_HOPS = {"host", "content-length", "connection", "transfer-encoding", "keep-alive", "date", "server"}
# Names of the parameter of a shell tool that takes the command.
_FIELDS = ("command", "cmd")
_SHELLS = ("Bash", "bash", "exec_command", "shell_command", "shell", "run_shell_command")
_RESULTS = ("tool_result", "function_call_output", "local_shell_call_output", "custom_tool_call_output")


@dataclass(frozen=True)
class Exchange:
    """A request that passed the relay. error: the beginning of the answer's body if the status is an error."""

    path: str
    status: int
    error: str = ""


@dataclass
class Notes:
    """What passed the relay.

    forced: number of requests whose tool call was forced. returned: whether a request had the command's result.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    forced: int = 0
    returned: bool = False

    @property
    def refused(self) -> list[Exchange]:
        """The refused requests, without those that only count tokens."""
        return [e for e in self.exchanges if e.status >= 400 and "count_tokens" not in e.path]


def certain(path: str, body: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """A request's body with its tool call forced; unchanged if it offers no shell tool. It updates `notes`."""
    altered = dict(body)
    offered = body.get("tools") or []
    name = next((n for n in _SHELLS for tool in offered if _named(tool) == n), None)
    if name is None:
        return altered
    history = json.dumps(body.get("messages", body.get("input")))
    if _answered(body):
        notes.returned = notes.returned or RESULT in history
        altered["tool_choice"] = {"type": "none"} if path.endswith("/messages") else "none"
        return altered
    notes.forced += 1
    altered["tools"] = [_narrowed(tool) if _named(tool) == name else tool for tool in offered]
    if path.endswith("/messages"):
        altered["tool_choice"] = {"type": "tool", "name": name}
    elif path.endswith("/responses"):
        altered["tool_choice"] = {"type": "function", "name": name}
    else:
        altered["tool_choice"] = {"type": "function", "function": {"name": name}}
    return altered


def _named(tool: Mapping[str, Any]) -> str:
    name: str = tool.get("function", tool).get("name", "")
    return name


def _answered(body: Mapping[str, Any]) -> bool:
    messages = body.get("messages")
    if messages is None:
        items = body["input"] if isinstance(body["input"], list) else []
        return any(item.get("type") in _RESULTS for item in items)
    parts = (p for m in messages if isinstance(m["content"], list) for p in m["content"])
    return any(m["role"] == "tool" for m in messages) or any(part.get("type") in _RESULTS for part in parts)


def _narrowed(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool with only its required parameters and its command, which is a constant."""
    function = dict(tool.get("function", tool))
    key = "input_schema" if "input_schema" in function else "parameters"
    schema = function[key]
    kept = {n: p for n, p in schema["properties"].items() if n in schema.get("required", ()) or n in _FIELDS}
    for name in _FIELDS:
        if name in kept:
            listed = kept[name].get("type") == "array"
            kept[name] = {"const": ["bash", "-lc", COMMAND] if listed else COMMAND}
    function[key] = {"type": "object", "properties": kept, "required": list(kept), "additionalProperties": False}
    return {**tool, "function": function} if "function" in tool else function


@contextmanager
def relay(target: str, *, force: bool) -> Iterator[tuple[str, Notes]]:
    """Run a relay to `target` on loopback; yields its URL and the requests it noted.

    force: make the model call the shell tool.
    """
    notes = Notes()
    upstream = httpx.AsyncClient(base_url=target, timeout=None, trust_env=False)

    async def pass_on(request: Request) -> StreamingResponse:
        body, path = await request.body(), request.url.path
        if force and body and "content-encoding" not in request.headers:
            body = json.dumps(certain(path, json.loads(body), notes)).encode()
        headers = [(k, v) for k, v in request.headers.items() if k not in _HOPS]
        url = httpx.URL(path=path, query=request.url.query.encode())
        answer = await upstream.send(
            upstream.build_request(request.method, url, headers=headers, content=body), stream=True
        )
        error = "" if answer.is_success else (await answer.aread()).decode(errors="replace")[:400]
        notes.exchanges.append(Exchange(f"{request.method} {path}", answer.status_code, error))

        async def content() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_bytes():
                    yield part
            finally:
                await answer.aclose()

        kept = {k: v for k, v in answer.headers.items() if k not in _HOPS}
        return StreamingResponse(content(), answer.status_code, kept)

    methods = ["GET", "POST", "DELETE", "HEAD", "PUT", "PATCH"]
    app = Starlette(routes=[Route("/{path:path}", pass_on, methods=methods)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False, lifespan="off"))
    started = threading.Event()

    async def serve() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        started.set()
        await serving
        await upstream.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", notes
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
