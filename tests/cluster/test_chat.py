"""Tests the terminal chat against a server with canned answers."""

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import httpx
import pytest
from rich.console import Console

from cluster import chat
from cluster.chat import Chat
from cluster.hints import hints

Answer = Callable[[dict[str, Any]], httpx.Response]


def events(*items: object) -> httpx.Response:
    lines = [f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n" for item in items]
    return httpx.Response(200, text="".join(lines))


def delta(**content: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": content}]}


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, list[dict[str, Any]]]]:
    """Run a chat with typed lines; returns its output and the requests that it sent."""

    def run(
        lines: list[str], answer: Answer, system: str | None = None, api_key: str | None = None
    ) -> tuple[str, list[dict[str, Any]]]:
        requests: list[dict[str, Any]] = []

        def handle(request: httpx.Request) -> httpx.Response:
            assert request.headers.get("authorization") == (f"Bearer {api_key}" if api_key else None)
            requests.append(json.loads(request.content))
            return answer(requests[-1])

        real = httpx.Client
        transport = httpx.MockTransport(handle)
        monkeypatch.setattr(chat.httpx, "Client", lambda headers, **_: real(transport=transport, headers=headers))
        typed = iter(lines)
        console = Console(file=StringIO(), width=200)

        def read(*_: object, **__: object) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(console, "input", read)
        Chat("http://x", console, system, {"temperature": 0.5}, api_key).run()
        assert isinstance(console.file, StringIO)
        return console.file.getvalue(), requests

    return run


def test_the_chat_streams_keeps_history_and_forgets_on_clear(talk: Callable[..., Any]) -> None:
    printed, requests = talk(
        ["one", "two", "/clear", "three", "/exit", "never"],
        lambda _: events(delta(role="assistant", content="Hel"), delta(content="lo[b]"), {"choices": []}, "[DONE]"),
        system="S",
    )
    assert printed.count("Hello[b]") == 3
    contents = [[m["content"] for m in r["messages"]] for r in requests]
    assert contents == [["S", "one"], ["S", "one", "Hello[b]", "two"], ["S", "three"]]
    assert all(r["temperature"] == 0.5 and r["stream"] for r in requests)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(429, json={"error": {"message": "too many"}}), "429: too many"),
        (httpx.Response(502, text="bad gateway"), "502: bad gateway"),
        (httpx.Response(401, json={"error": {"message": "a key"}}), "401: a key; give it as --api-key or in LING_API"),
        (events({"error": {"message": "worker ended"}}, "[DONE]"), "worker ended"),
        (events(delta(content="half")), "cut off"),
    ],
)
def test_errors_are_shown_and_the_chat_goes_on(talk: Callable[..., Any], response: httpx.Response, said: str) -> None:
    good = events(delta(content="fine"), "[DONE]")
    printed, requests = talk(["a", "b"], lambda body: good if body["messages"][-1]["content"] == "b" else response)
    assert said in printed
    assert "fine" in printed
    assert len(requests) == 2


def test_a_server_that_does_not_answer_is_named(talk: Callable[..., Any]) -> None:
    def refuse(_: dict[str, Any]) -> httpx.Response:
        raise httpx.ConnectError("refused")

    printed, _ = talk(["a"], refuse)
    assert "no answer from http://x: refused" in printed


def test_a_key_goes_with_every_request(talk: Callable[..., Any]) -> None:
    _, requests = talk(["one", "two"], lambda _: events(delta(content="fine"), "[DONE]"), api_key="sk-x")
    assert len(requests) == 2


def test_a_started_cluster_prints_how_to_send_requests_with_and_without_a_key() -> None:
    url = "http://127.0.0.1:8000"
    assert "LING_API_KEY" not in hints(url, None)
    assert f"curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{{" in hints(url, None)
    told = hints(url, "/etc/my keys")
    assert "python -m router.access.keys TENANT >> '/etc/my keys'" in told
    assert '-H "authorization: Bearer $LING_API_KEY" -d' in told
