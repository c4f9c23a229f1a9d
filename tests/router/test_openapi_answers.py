"""Tests that real answers, whole and streamed, have exactly the fields of the published schemas."""

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.core.failures import Failure, FailureGroup

from router.app import ListedWorker
from router.openapi.document import document
from tests.router.batching import line, lines
from tests.router.conftest import Stage, served, staged
from tests.router.scripted import agent, scripted
from wire.progress import Progress, Starting
from wire.protocol import PeerRef, SamplingParams
from wire.snapshot_file import Turn, without_state
from wire.tokens import TokenIds

ASK: list[Any] = [{"role": "user", "content": "add"}]
REASON: list[Any] = [{"role": "user", "content": "reason"}]
F = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": F}, {"type": "function", "function": {"name": "time"}}]
OWN_TOOLS = [{"name": "add", "input_schema": {"type": "object"}}]
FLAT_TOOLS = [{"type": "function", **F, "strict": False}, {"type": "function", "name": "time"}]
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "time"}]}
JSON_SCHEMA = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
# What is asked whole, and then as a stream.
GENERATED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": ASK, "tools": TOOLS}),
    (CHAT, {"messages": ASK, "tools": TOOLS, "n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}),
    (CHAT, {"messages": REASON, "return_token_ids": True, "max_tokens": 30}),
    (TEXT, {"prompt": ["a", "b"], "logprobs": 2}),
    (TEXT, {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 3, "return_token_ids": True}),
    (TEXT, {"prompt": "a", "echo": True, "max_tokens": 0}),
    (MESSAGES, {"messages": ASK, "tools": OWN_TOOLS, "max_tokens": 300}),
    (MESSAGES, {"messages": REASON, "thinking": {"type": "adaptive"}, "max_tokens": 300}),
    (MESSAGES, {"messages": REASON, "stop_sequences": ["e"], "max_tokens": 4}),
    (RESPONSES, {"input": "add", "tools": FLAT_TOOLS, "instructions": "i", "metadata": {"a": "b"}, "user": "u"}),
    (RESPONSES, {"input": "add", "tools": FLAT_TOOLS, "max_output_tokens": 60}),
    (RESPONSES, {"input": "reason", "reasoning": {"effort": "high"}, "text": {"format": JSON_SCHEMA}}),
    (RESPONSES, {"input": "say", "include": ["message.output_text.logprobs"], "top_logprobs": 2, "store": False}),
    (RESPONSES, {"input": "add", "tools": FLAT_TOOLS, "tool_choice": {"type": "function", "name": "time"}}),
    (RESPONSES, {"input": "add", "tools": FLAT_TOOLS, "tool_choice": ALLOWED, "text": {"format": {"type": "text"}}}),
]  # fmt: skip
# All else, by what the paths name; `file_id` and so on stand for what `kept` made.
SAVED = without_state("w", "l", Turn("tiny", 2, SamplingParams(3, seed=1)), TokenIds.of((4, 5, 6)))
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("post", "/v1/messages/count_tokens", {"json": {"model": "tiny", "messages": ASK}}),
    ("post", "/tokenize", {"json": {"prompt": "x", "return_token_strs": True}}),
    ("post", "/tokenize", {"json": {"messages": ASK}}),
    ("post", "/detokenize", {"json": {"tokens": [5, 6]}}),
    ("get", "/tokenizer_info", {}),
    ("get", "/", {}),
    ("get", "/", {"headers": {"accept": "text/html"}}),
    ("get", "/live", {}),
    ("get", "/health", {}),
    ("get", "/ready", {}),
    ("get", "/status", {}),
    ("get", "/metrics", {}),
    ("get", "/openapi.json", {}),
    ("get", "/v1/models", {}),
    ("get", "/v1/models/{name}", {}),
    ("get", "/v1/models", {"headers": {"anthropic-version": "2023-06-01"}}),
    ("get", "/v1/models/{name}", {"headers": {"anthropic-version": "2023-06-01"}}),
    ("post", "/v1/files", {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}),
    ("get", "/v1/files", {}),
    ("get", "/v1/files", {"params": {"purpose": "batch_output"}}),
    ("get", "/v1/files/{file_id}", {}),
    ("get", "/v1/files/{file_id}/content", {}),
    ("get", "/v1/batches", {}),
    ("get", "/v1/batches/{batch_id}", {}),
    ("get", "/v1/batches/{broken_batch_id}", {}),
    ("post", "/v1/batches/{batch_id}/cancel", {}),
    ("get", "/v1/messages/batches", {}),
    ("get", "/v1/messages/batches/{message_batch_id}", {}),
    ("get", "/v1/messages/batches/{message_batch_id}/results", {}),
    ("post", "/v1/messages/batches/{message_batch_id}/cancel", {}),
    ("delete", "/v1/messages/batches/{message_batch_id}", {}),
    ("get", "/v1/responses/{response_id}", {}),
    ("get", "/v1/responses/{response_id}", {"params": {"stream": "true"}}),
    ("get", "/v1/responses/{response_id}/input_items", {}),
    ("post", "/v1/responses/{response_id}/cancel", {}),
    ("delete", "/v1/responses/{response_id}", {}),
    ("delete", "/v1/files/{spare_file_id}", {}),
    ("get", "/v1/sessions", {}),
    ("get", "/v1/sessions/{session_id}", {}),
    ("get", "/v1/sessions/{session_id}/snapshot", {}),
    ("post", "/v1/sessions/{spare_session_id}/snapshot", {"content": SAVED}),
    ("post", "/v1/sessions/{session_id}/replay", {"json": {}}),
    ("get", "/v1/requests/{request_id}/snapshot", {}),
    ("post", "/v1/sessions/{session_id}/fork", {"json": {"ids": ["fork"]}}),
    ("post", "/v1/sessions/{session_id}/park", {}),
    ("post", "/v1/sessions/{session_id}/resume", {}),
    ("delete", "/v1/sessions/{session_id}", {}),
]
ITEMS: list[Any] = [
    {"role": "developer", "content": "Be"},
    {"role": "user", "content": "add"},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"role": "assistant", "content": "I look."},
    {"type": "function_call", "call_id": "c", "name": "time", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "noon"},
]


def say(prompt: str) -> str:
    return "<think>\nhm\n</think>\n\nyes" if "<user>reason<" in prompt else agent(prompt)


@pytest.fixture(scope="module")
def stage(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(checkpoint, scripted(checkpoint, say, 3), data_dir=str(tmp_path_factory.mktemp("data"))) as started:
        yield started


@pytest.fixture(scope="module")
def published() -> Any:
    return schemathesis.openapi.from_dict(document("tiny", keyed=False))


def check(published: Any, method: str, path: str, answer: httpx.Response, content: bytes | None = None) -> None:
    """Check an answer against its published schema. content: replaces the answer's own content."""
    request = httpx.Request(method, answer.request.url)
    content = answer.content if content is None else content
    told = httpx.Response(answer.status_code, headers=answer.headers, content=content, request=request)
    told.elapsed = timedelta()
    published[path][method].validate_response(told)


@pytest.fixture(scope="module")
def kept(stage: Stage, published: Any) -> dict[str, str]:
    """The ids of a file, of finished batches, and of a background response."""

    def post(path: str, **sent: Any) -> Any:
        answer = stage.http.post(f"{stage.url}{path}", **sent)
        assert answer.status_code == 200, answer.text
        check(published, "post", path, answer)
        return answer.json()["id"]

    def upload(text: str) -> str:
        return str(post("/v1/files", files={"file": ("a.jsonl", text.encode())}, data={"purpose": "batch"}))

    def batch(text: str) -> tuple[str, str]:
        file_id = upload(text)
        asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "b"}}
        return file_id, str(post("/v1/batches", json=asked))

    file_id, batch_id = batch(lines(2) + line("bad", n=0))
    _, broken_batch_id = batch("no JSON\n")
    asked = {"model": "tiny", "input": ITEMS, "background": True, "stream": True, "tools": FLAT_TOOLS}
    created = stage.http.post(f"{stage.url}{RESPONSES}", json=asked).text
    response_id = json.loads(created.split("data: ")[1].split("\n")[0])["response"]["id"]
    entries = [{"custom_id": "a", "params": {"model": "tiny", "max_tokens": 3, "messages": ASK}}]
    message_batch_id = str(post("/v1/messages/batches", json={"requests": entries}))
    deadline = time.monotonic() + 60
    message_batch = f"/v1/messages/batches/{message_batch_id}"
    while stage.http.get(stage.url + message_batch).json()["processing_status"] != "ended":
        assert time.monotonic() < deadline
    for path in (f"/v1/batches/{batch_id}", f"/v1/batches/{broken_batch_id}"):
        deadline = time.monotonic() + 60
        while (answer := stage.http.get(stage.url + path)).json()["status"] not in ("completed", "failed"):
            check(published, "get", "/v1/batches/{batch_id}", answer)
            assert time.monotonic() < deadline, answer.text
    named = {"model": "tiny", "messages": ASK, "max_tokens": 3, "session_id": "session"}
    stage.http.post(f"{stage.url}{CHAT}", json=named).raise_for_status()
    worker = stage["d0"]
    worker.refuse, worker.refusals = "it broke", 1
    failed = {"model": "tiny", "messages": ASK, "max_tokens": 3}
    answer = stage.http.post(f"{stage.url}{CHAT}", json=failed, headers={"x-request-id": "failed"})
    assert answer.status_code == 500
    worker.refuse = None
    return {
        "name": "tiny",
        "session_id": "session",
        "spare_session_id": "opened",
        "request_id": "failed",
        "file_id": file_id,
        "spare_file_id": upload("{}"),
        "batch_id": batch_id,
        "broken_batch_id": broken_batch_id,
        "message_batch_id": message_batch_id,
        "response_id": response_id,
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), GENERATED, ids=range(len(GENERATED)))
def test_generated_answers_are_as_published(
    stage: Stage, published: Any, path: str, body: dict[str, Any], stream: bool
) -> None:
    options: dict[str, Any] = {"stream": True} if stream else {}
    if stream and path in (CHAT, TEXT):
        options["stream_options"] = {"include_usage": True}
    answer = stage.http.post(stage.url + path, json={"model": "tiny"} | body | options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    check(published, "post", path, answer)


@pytest.mark.parametrize(("method", "path", "sent"), OTHERS, ids=[f"{i} {m} {p}" for i, (m, p, _) in enumerate(OTHERS)])
def test_all_other_answers_are_as_published(
    stage: Stage, published: Any, kept: dict[str, str], method: str, path: str, sent: dict[str, Any]
) -> None:
    answer = stage.http.request(method, stage.url + path.format(**kept), **sent)
    assert answer.status_code == 200, answer.text
    described = path.replace("{spare_", "{").replace("{broken_", "{").replace("{message_batch", "{batch")
    check(published, method, described, answer)


def test_nothing_that_is_described_is_left_out() -> None:
    asked = {("post", path) for path, _ in GENERATED} | {("post", "/v1/batches"), ("post", "/v1/messages/batches")}
    # Its worker ends: tests/router/test_moving.py.
    asked |= {("post", "/v1/workers/{worker_id}/drain")}
    asked |= {
        (method, path.replace("{spare_", "{").replace("{message_batch", "{batch"))
        for method, path, _ in OTHERS
        if "broken" not in path
    }
    paths = document("tiny", keyed=False)["paths"]
    assert asked == {(method, path) for path, methods in paths.items() for method in methods}
    for path, methods in paths.items():
        for operation in methods.values():
            content = operation["responses"]["200"]["content"]
            assert all(kind == "application/octet-stream" or said["schema"] for kind, said in content.items()), path


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


def refuses(published: Any, path: str, answer: httpx.Response, content: bytes) -> bool:
    try:
        check(published, "post", path, answer, content)
    except (Failure, FailureGroup):
        return True
    return False


@pytest.mark.parametrize("at", [0, 2, 6, 9])
def test_an_unknown_field_is_not_published(stage: Stage, published: Any, at: int) -> None:
    path, body = GENERATED[at]
    answer = stage.http.post(stage.url + path, json={"model": "tiny"} | body)
    assert not refuses(published, path, answer, answer.content)
    count = len(list(objects(answer.json())))
    free = 0
    for i in range(count):
        content = answer.json()
        list(objects(content))[i]["ling"] = 1
        free += not refuses(published, path, answer, json.dumps(content).encode())
    # The input of two calls, and the parameters of a tool, may hold anything.
    assert free == {6: 2, 9: 1}.get(at, 0)
    for name in answer.json():
        if name not in ("timings", "prompt_token_ids"):
            content = {k: v for k, v in answer.json().items() if k != name}
            assert refuses(published, path, answer, json.dumps(content).encode()), name


@pytest.mark.parametrize("at", [0, 6, 9])
def test_an_unknown_event_is_not_published(stage: Stage, published: Any, at: int) -> None:
    path, body = GENERATED[at]
    answer = stage.http.post(stage.url + path, json={"model": "tiny", "stream": True} | body)
    assert not refuses(published, path, answer, answer.content)
    blocks = answer.text.split("\n\n")[:-1]
    for block in blocks:
        if not block.endswith("[DONE]"):
            other = block[:-1] + ',"ling":1}'
            assert refuses(published, path, answer, answer.text.replace(block, other, 1).encode()), other
    if path != CHAT:
        assert refuses(published, path, answer, answer.text.replace("event: ", "event: ling", 1).encode())


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_streams_that_fail(checkpoint: Path, published: Any, path: str) -> None:
    async def act() -> None:
        async with asyncio.timeout(120), served(checkpoint, scripted(checkpoint, lambda _: "x" * 900)) as stage:
            for worker in stage.workers.values():
                worker.pace_s = 0.005
            body = {"input": "x"} if path == RESPONSES else {"messages": ASK, "max_tokens": 900}
            async with (
                stage.client() as client,
                client.stream("POST", path, json={"model": "tiny", "stream": True} | body) as answer,
            ):
                pieces: list[bytes] = []
                async for piece in answer.aiter_raw():
                    if not pieces:
                        await stage.until(lambda: stage.gateway.table.link("p0").in_flight == 0)
                        stage["d0"].fail("no luck")
                    pieces.append(piece)
                check(published, "post", path, answer, b"".join(pieces))
                told = json.loads(pieces[-1].split(b"data: ")[1].partition(b"\n")[0])
                assert told.get("error") or told["response"]["error"]
                if path == MESSAGES:
                    assert told["request_id"] == answer.headers["request-id"]

    asyncio.run(act())


def test_a_cluster_whose_workers_are_not_there(checkpoint: Path, published: Any) -> None:
    async def act() -> None:
        async with served(checkpoint, []) as stage, stage.client() as client:
            await stage.gateway.update_workers([ListedWorker(PeerRef("gone", "127.0.0.1", 1), "decode")])
            way = Progress("loading weights", 1_000_000, 4_000_000, rate=1e6)
            stage.gateway.starting = (Starting("decode-1", "decode", "n", way, 0.5),)
            for path, status in (("/ready", 503), ("/status", 200), ("/v1/models", 200)):
                answer = await client.get(path)
                assert answer.status_code == status
                check(published, "get", path, answer)
            pools = (await client.get("/status")).json()["pools"]
            assert pools["decode"]["workers"][0]["problem"]
            (starting,) = pools["decode"]["starting"]
            assert (starting["done_bytes"], starting["left_s"], starting["still_s"]) == (1_000_000, 3.0, 0.5)
            reason = (await client.get("/ready")).json()["reason"]
            assert reason.endswith("; a decode worker: loading weights: 1.00 of 4.00 MB, 1 MB/s, 3 s left")

    asyncio.run(act())
