"""Tests structured output over HTTP with the vendors' SDKs and a real worker."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest

from router.app import Pools
from tests.router.conftest import LoopThread, Stage, served
from tests.workers.test_grammar_worker import in_threads
from wire.protocol import PeerRef
from workers.config import WorkerConfig
from workers.leader.leader import Leader

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
HELLO: Any = [{"role": "user", "content": "Hello!"}]


class Answer(pydantic.BaseModel):
    """The schema of an answer."""

    mood: Literal["good", "bad"]
    sure: bool
    codes: list[Literal[1, 2, 3]] = pydantic.Field(min_length=1, max_length=3)


class RealWorker:
    """A real leader whose rank is a thread; the stage starts and ends it like a fake worker."""

    def __init__(self, name: str = "d0", **settings: Any) -> None:
        self._name = name
        self._config = WorkerConfig(str(NANO), slots=8, max_model_len=2048, **settings)
        self._leader = Leader(self._config, name, "decode")

    @property
    def recomputed(self) -> int:
        """The number of computed tokens after which nothing was sampled: all of a prompt but its last."""
        totals = self._leader.figures.totals
        return totals.tokens - totals.sampled

    async def start(self) -> None:
        await self._leader.start(in_threads(self._config, self._name))
        self.info = self._leader.info
        self.ref = PeerRef(self._name, self.info.host, self.info.port)
        self._task = asyncio.create_task(self._leader.run())

    async def die(self) -> None:
        self._task.cancel()
        await self._leader.close()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    thread, opened = LoopThread(), AsyncExitStack()

    async def enter() -> Stage:
        return await opened.enter_async_context(served(NANO, [RealWorker()], Pools(0, 1)))  # type: ignore[list-item]

    try:
        yield thread.run(enter())
    finally:
        thread.run(opened.aclose())
        thread.close()


@pytest.fixture(scope="module")
def sdk(stage: Stage) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="-", http_client=stage.http) as client:
        yield client


def test_parse_gives_the_clients_own_model(sdk: openai.OpenAI) -> None:
    for seed in range(3):
        answer = sdk.chat.completions.parse(model="tiny", messages=HELLO, response_format=Answer, seed=seed)
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, Answer)


def test_a_stream_parses_as_it_comes(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model="tiny", messages=HELLO, response_format=Answer, seed=4) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert isinstance(message.parsed, Answer)


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_is_made(sdk: openai.OpenAI, stream: bool) -> None:
    tool = openai.pydantic_function_tool(Answer, name="answer")
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "tools": [tool], "seed": 1}
    asked |= {"tool_choice": "required", "parallel_tool_calls": False}
    if stream:
        with sdk.chat.completions.stream(**asked) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = sdk.chat.completions.parse(**asked).choices[0]
    (call,) = choice.message.tool_calls or ()
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert isinstance(call.function.parsed_arguments, Answer)


def test_messages_call_the_tool_that_is_named(stage: Stage) -> None:
    with anthropic.Anthropic(base_url=stage.url, api_key="-") as client:
        answer = client.messages.create(
            model="tiny",
            max_tokens=200,
            messages=HELLO,
            tools=[{"name": "answer", "input_schema": Answer.model_json_schema()}],
            tool_choice={"type": "tool", "name": "answer"},
        )
    (block,) = answer.content
    assert block.type == "tool_use"
    Answer.model_validate(block.input)
    assert answer.stop_reason == "tool_use"


def test_extras_and_completions(sdk: openai.OpenAI) -> None:
    choice = sdk.chat.completions.create(
        model="tiny", messages=HELLO, extra_body={"structured_outputs": {"choice": ["left", "right"]}}
    ).choices[0]
    assert choice.message.content in ("left", "right")
    text = sdk.completions.create(
        model="tiny",
        prompt="Hello",
        max_tokens=100,
        extra_body={"response_format": {"type": "json_schema", "json_schema": {
            "name": "a", "strict": True, "schema": Answer.model_json_schema()}}},
    ).choices[0].text  # fmt: skip
    Answer.model_validate(json.loads(text))


def test_a_grammar_that_can_not_end_is_the_client_s_error(stage: Stage) -> None:
    body = {"model": "tiny", "messages": HELLO, "structured_outputs": {"regex": "[0-9]{2}"}, "min_tokens": 9}
    answer = stage.http.post(f"{stage.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "its text is whole, but it may not end" in answer.json()["error"]["message"]
