"""Tests long prompts: ones that are too long are not encoded, and no long work runs on the event loop."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from router.api.chat import Chat
from router.text.tokenizer import Tokenizer
from tests.router.conftest import pair, served

pytestmark = pytest.mark.process

LONG = "All work and no play. " * 20_000


def body(**fields: Any) -> bytes:
    """The JSON of a request."""
    return json.dumps({"model": "auto", "max_tokens": 1, **fields}).encode()


ASKED = [
    ("/v1/chat/completions", body(messages=[{"role": "user", "content": LONG}])),
    ("/v1/messages", body(messages=[{"role": "user", "content": LONG}])),
    ("/v1/messages", body(messages=[{"role": "user", "content": "x"}], system=LONG)),
    ("/v1/responses", json.dumps({"model": "auto", "input": LONG}).encode()),
    ("/v1/completions", body(prompt=LONG)),
]


@pytest.mark.parametrize(("path", "asked"), ASKED)
def test_a_prompt_that_is_too_long_is_refused_before_it_is_encoded(
    checkpoint: Path, path: str, asked: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and the longest token bound the length; the error has the words that agents look for."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(Tokenizer, "encode", never)
    monkeypatch.setattr(Tokenizer, "encode_chat", never)

    async def run() -> None:
        async with served(checkpoint, pair()) as stage, stage.client() as client:
            answer = await client.post(path, content=asked)
            assert answer.status_code == 400
            assert "prompt is too long: " in answer.json()["error"]["message"]
            assert not stage["d0"].received

    asyncio.run(run())


def test_long_work_runs_in_a_thread(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, rendering and encoding run in a thread; those of a short request stay on the event loop."""
    threads: dict[str, set[str]] = {"read": set(), "encode_chat": set()}

    def spied(owner: type, name: str) -> None:
        inner = getattr(owner, name)

        def spy(*args: Any) -> Any:
            threads[name].add(threading.current_thread().name)
            return inner(*args)

        monkeypatch.setattr(owner, name, spy)

    spied(Chat, "read")
    spied(Tokenizer, "encode_chat")

    async def run() -> None:
        async with served(checkpoint, pair(max_model_len=2**20)) as stage, stage.client() as client:
            for content, apart in (("x", False), (LONG[:30_000], True)):
                for seen in threads.values():
                    seen.clear()
                asked = body(messages=[{"role": "user", "content": content}])
                answer = await client.post("/v1/chat/completions", content=asked)
                assert answer.status_code == 200, answer.text
                for name, seen in threads.items():
                    assert [n.startswith("apart") for n in seen] == [apart], name

    asyncio.run(run())


def test_a_bound_never_exceeds_the_count(checkpoint: Path) -> None:
    tokenizer = Tokenizer("checkpoints/ling-nano")
    for text in ("a", "parameters" * 50, " " * 99, "語" * 40, LONG[:5000], "description " * 9):
        assert 0 < tokenizer.least_tokens(len(text)) <= len(tokenizer.encode(text, False))
