"""Tests that each answer carries the request's id, and that all endpoints limit what they read alike."""

import asyncio
import json
import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import pytest

from router.access.keys import hashed, make_key
from router.http.entrance import MAX_HEAD_BYTES
from tests.router.conftest import Stage, pair, served, staged

KEY = make_key()
POSTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens"),
    *("/tokenize", "/detokenize"),
)
GOOD: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def guarded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"acme sha256:{hashed(KEY)}\n")
    with staged(checkpoint, pair(), api_keys=str(file), max_body_bytes=5000, max_queue=1) as stage:
        yield stage


ASKS: list[tuple[int, str, str, dict[str, Any]]] = [
    (200, "GET", "/v1/models", {}),
    (200, "GET", "/health", {}),
    (200, "POST", "/v1/chat/completions", {"json": GOOD}),
    (200, "POST", "/v1/chat/completions", {"json": GOOD | {"stream": True}}),
    (200, "POST", "/v1/messages", {"json": GOOD}),
    (200, "POST", "/v1/messages/count_tokens", {"json": {"model": "tiny", "messages": GOOD["messages"]}}),
    (400, "POST", "/v1/messages", {"json": {}}),
    (400, "POST", "/tokenize", {"json": {}}),
    (401, "POST", "/v1/messages", {"headers": {"authorization": "Bearer wrong"}}),
    (401, "GET", "/v1/models", {"headers": {"authorization": ""}}),
    (404, "GET", "/v1/nothing", {}),
    (404, "GET", "/nothing", {}),
    (404, "POST", "/v1/messages/nothing", {}),
    (405, "GET", "/v1/chat/completions", {}),
    (413, "POST", "/v1/messages", {"content": b"x" * 6000}),
    (413, "POST", "/v1/completions", {"content": b"x" * 6000}),
    (400, "POST", "/v1/completions", {"json": {"model": "tiny", "prompt": "x", "n": 2}}),
]


@pytest.mark.parametrize("given", ["given-id-7", None])
@pytest.mark.parametrize(("status", "method", "path", "options"), ASKS, ids=[f"{a[0]} {a[1]} {a[2]}" for a in ASKS])
def test_the_request_id_comes_back_with_every_answer(
    guarded: Stage, status: int, method: str, path: str, options: dict[str, Any], given: str | None
) -> None:
    headers = {"authorization": f"Bearer {KEY}"} | ({"x-request-id": given} if given else {})
    options = {**options, "headers": headers | options.get("headers", {})}
    answer = guarded.http.request(method, guarded.url + path, **options)
    assert answer.status_code == status, answer.text
    assert answer.headers.get_list("x-request-id") == [given or answer.headers["x-request-id"]]
    assert len(answer.headers["x-request-id"]) >= 10
    if path.startswith("/v1/messages"):
        assert answer.headers.get_list("request-id") == [answer.headers["x-request-id"]]
        if status >= 400:
            assert answer.json()["request_id"] == answer.headers["request-id"]


def test_errors_of_a_full_queue_and_a_lost_pool_have_the_request_id(checkpoint: Path) -> None:
    async def act() -> None:
        router = served(checkpoint, pair(), max_queue=1, first_token_timeout_s=60.0)
        async with asyncio.timeout(120), router as stage, stage.client() as client:
            stage["d0"].gate.clear()
            first = asyncio.create_task(client.post("/v1/messages", json=GOOD))
            await stage.until(lambda: stage.gateway.in_flight == 1)
            full = await client.post("/v1/messages", json=GOOD, headers={"x-request-id": "mine-1"})
            assert (full.status_code, full.json()["request_id"], full.headers["retry-after"]) == (429, "mine-1", "1")
            stage["d0"].gate.set()
            assert (await first).status_code == 200
            await stage.gateway.update_workers([])
            stage.gateway._dispatcher._wait_s = 0.01  # for a worker, else as long as for a first token
            gone = await client.post("/v1/chat/completions", json=GOOD, headers={"x-request-id": "mine-2"})
            assert (gone.status_code, gone.headers["x-request-id"]) == (503, "mine-2")

    asyncio.run(act())


@pytest.mark.parametrize("given", ["x" * 129, "a b", "a, b", "é", ""])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/models", "/health", "/nothing"])
def test_an_invalid_request_id_is_replaced_everywhere(guarded: Stage, given: str, path: str) -> None:
    answer = guarded.http.get(guarded.url + path, headers={"x-request-id": given.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code in (200, 401, 404, 405)
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", [*POSTS, "/v1/models", "/health"])
def test_a_head_that_is_too_long_is_a_431(guarded: Stage, path: str) -> None:
    for headers, query in ((b"x" * MAX_HEAD_BYTES, ""), (b"x" * 6_000, "?" + "x" * 60_000)):
        answer = guarded.http.post(guarded.url + path + query, headers={"x-more": headers})  # type: ignore[dict-item]
        assert answer.status_code == 431, answer.text
        assert "exceeds 65536 bytes" in answer.text
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", POSTS)
def test_json_that_nests_too_deep_is_refused(guarded: Stage, path: str) -> None:
    def ask(depth: int) -> str:
        body = '{"x": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
        answer = guarded.http.post(guarded.url + path, content=body, headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code == 400
        message: str = answer.json()["error"]["message"]
        return message

    assert "deeper than 200 levels" in ask(202)
    assert "deeper" not in ask(150)


@contextmanager
def logged_to(lines: "queue.SimpleQueue[Any]") -> Iterator[None]:
    """Also append the router's log records to `lines`."""
    handler = QueueHandler(lines)
    logging.getLogger("router.http.entrance").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("router.http.entrance").removeHandler(handler)


def test_the_log_has_the_request_id_and_the_outcome(guarded: Stage, caplog: pytest.LogCaptureFixture) -> None:
    # A line is written after its answer has left, so the client may be ahead of it.
    lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with caplog.at_level(logging.INFO, "router.http.entrance"), logged_to(lines):
        headers = {"x-request-id": "look-for-me", "authorization": f"Bearer {KEY}"}
        assert guarded.http.get(guarded.url + "/v1/models", headers=headers).status_code == 200
        assert guarded.http.get(guarded.url + "/a%0Ab", headers=headers).status_code == 404
        said: list[tuple[str, dict[str, Any]]] = []
        while len(said) < 2:  # an earlier test's last line may come after its answer too
            record = lines.get(timeout=60)
            if record.fields["request_id"] == "look-for-me":
                said.append((record.getMessage(), record.fields))
    assert [line for line, _ in said] == ["GET '/v1/models'", "GET '/a\\nb'"]
    assert [(f["request_id"], f["status"], f.get("tenant")) for _, f in said] == [
        ("look-for-me", 200, "acme"),
        ("look-for-me", 404, None),
    ]


def test_a_failure_in_the_router_is_a_500_with_the_request_id(
    guarded: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(guarded.gateway, "limits", broken)
    headers = {"x-request-id": "broken-1", "authorization": f"Bearer {KEY}"}
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/messages", "POST"), ("/v1/models", "GET")):
        body = json.dumps(GOOD) if method == "POST" else None
        answer = guarded.http.request(method, guarded.url + path, content=body, headers=headers)
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] == "broken-1"
        assert "secret" not in answer.text
    assert any("broken-1" in r.getMessage() and r.levelno >= logging.WARNING for r in caplog.records)
