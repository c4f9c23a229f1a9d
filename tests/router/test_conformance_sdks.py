"""Tests the vendors' SDKs, whole and streamed and at the same time, and their models of each answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, TypeAdapter

from tests.router.conftest import Stage, served
from tests.router.scripted import agent, scripted, talking

pytestmark = pytest.mark.process

TOOLS: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ADD: list[Any] = [{"role": "user", "content": "add"}]
OWN_TOOLS: list[Any] = [{"name": "add", "input_schema": {"type": "object"}}]
CALLS = [("add", {"a": 2, "b": [1, "x</tool_call>y"]}), ("time", {})]
# What these answers hold beyond the vendors'.
OWN = {"timings", "token_ids", "prompt_token_ids", "reasoning_content", "max_model_len"}


def say(prompt: str) -> str:
    if "<user>weather<" in prompt:
        return WEATHER
    if "<user>call weather<" in prompt:
        return CALL
    return "<think>\nhm\n</think>\n\nyes" if "<user>reason<" in prompt else agent(prompt)


@pytest.fixture(scope="module")
def agents(checkpoint: Path) -> Iterator[Stage]:
    with talking(checkpoint, say, 3) as stage:
        yield stage


def extras(value: Any) -> set[str]:
    """The fields of an answer that the SDK's models do not know, at any depth."""
    if isinstance(value, BaseModel):
        inside = [extras(getattr(value, name)) for name in type(value).model_fields]
        return set(value.model_extra or {}).union(*inside)
    return set().union(*map(extras, value)) if isinstance(value, list) else set()


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


CHAT: dict[str, Any] = {"model": "tiny", "messages": ADD, "tools": TOOLS}
REASON: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "reason"}]}
SHAPES: list[tuple[str, dict[str, Any], Any, Any]] = [
    ("/v1/chat/completions", CHAT, ChatCompletion, ChatCompletionChunk),
    ("/v1/chat/completions", CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2}, ChatCompletion, ChatCompletionChunk),
    ("/v1/chat/completions", REASON | {"return_token_ids": True}, ChatCompletion, ChatCompletionChunk),
    ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "logprobs": 2}, Completion, Completion),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "echo": True, "max_tokens": 3}, Completion, Completion),
    ("/v1/messages", {"model": "tiny", "max_tokens": 300, "messages": ADD, "tools": OWN_TOOLS}, Message,
     RawMessageStreamEvent),
    ("/v1/messages", REASON | {"max_tokens": 300, "thinking": {"type": "enabled", "budget_tokens": 9}}, Message,
     RawMessageStreamEvent),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "whole", "part"), SHAPES, ids=range(len(SHAPES)))
def test_answers_and_events_match_the_sdks_models(
    agents: Stage, path: str, body: dict[str, Any], whole: Any, part: Any
) -> None:
    answer = agents.http.post(agents.url + path, json=body)
    assert answer.status_code == 200, answer.text
    assert extras(TypeAdapter(whole).validate_json(answer.content)) <= OWN
    options = {} if path == "/v1/messages" else {"stream_options": {"include_usage": True}}
    stream = agents.http.post(agents.url + path, json=body | {"stream": True} | options)
    seen = events(stream.text)
    assert len(seen) > 1
    for event in seen:
        if part is Completion:
            # The SDK's one model for whole and streamed completions has no null here; OpenAI's API sends it.
            for choice in event["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
        if event.get("type") != "ping":  # the SDK passes over pings before its models
            assert extras(TypeAdapter(part).validate_python(event)) <= OWN


def test_the_smaller_answers_too(agents: Stage) -> None:
    listed = agents.http.get(f"{agents.url}/v1/models").json()
    assert listed["object"] == "list"
    assert extras(Model.model_validate(listed["data"][0])) <= OWN
    body = {"model": "tiny", "messages": ADD}
    counted = agents.http.post(f"{agents.url}/v1/messages/count_tokens", json=body)
    assert not extras(MessageTokensCount.model_validate(counted.json()))


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls]


async def whole_chat(sdk: openai.AsyncOpenAI) -> Any:
    return (await sdk.chat.completions.create(**CHAT)).choices[0].message


async def raw_chat(sdk: openai.AsyncOpenAI) -> Any:
    """The answer that the SDK's stream state assembles from raw chunks."""
    from openai.lib.streaming.chat import ChatCompletionStreamState  # noqa: PLC0415

    state = ChatCompletionStreamState()
    async for chunk in await sdk.chat.completions.create(**CHAT, stream=True):
        state.handle_chunk(chunk)
    return state.get_final_completion().choices[0].message


async def helped_chat(sdk: openai.AsyncOpenAI) -> Any:
    kinds = []
    async with sdk.chat.completions.stream(**CHAT) as stream:
        async for event in stream:
            kinds.append(event.type)
        final = (await stream.get_final_completion()).choices[0].message
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert "content.done" in kinds
    return final


async def whole_message(sdk: anthropic.AsyncAnthropic) -> Any:
    return await sdk.messages.create(model="tiny", max_tokens=300, messages=ADD, tools=OWN_TOOLS)


async def helped_message(sdk: anthropic.AsyncAnthropic) -> Any:
    kinds = []
    async with sdk.messages.stream(model="tiny", max_tokens=300, messages=ADD, tools=OWN_TOOLS) as stream:
        async for event in stream:
            kinds.append(event.type)
        final = await stream.get_final_message()
    assert kinds.count("content_block_stop") == 3
    assert "input_json" in kinds
    return final


@asynccontextmanager
async def both(checkpoint: Path) -> AsyncIterator[tuple[Stage, openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        stage = await stack.enter_async_context(served(checkpoint, scripted(checkpoint, say, 3)))
        options: dict[str, Any] = {"api_key": "-", "max_retries": 0, "timeout": 10}
        chat = await stack.enter_async_context(openai.AsyncOpenAI(base_url=f"{stage.url}/v1", **options))
        messages = await stack.enter_async_context(anthropic.AsyncAnthropic(base_url=stage.url, **options))
        yield stage, chat, messages


class Weather(BaseModel):
    city: str
    degrees: int


WEATHER = '{"city": "Oslo", "degrees": 7}'
CALL = f'<tool_call>\n{{"name": "Weather", "arguments": {WEATHER}}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_parsed_answers_and_parsed_arguments(agents: Stage, stream: bool) -> None:
    tool = openai.pydantic_function_tool(Weather)
    asked: list[tuple[dict[str, Any], str]] = [
        ({"response_format": Weather}, "weather"),
        ({"tools": [tool], "tool_choice": "required"}, "call weather"),
    ]
    with openai.OpenAI(base_url=f"{agents.url}/v1", api_key="-", max_retries=0, timeout=60) as sdk:
        for how, said in asked:
            options: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": said}], **how}
            if stream:
                with sdk.chat.completions.stream(**options) as events_:
                    message: Any = events_.get_final_completion().choices[0].message
            else:
                message = sdk.chat.completions.parse(**options).choices[0].message
            parsed = message.tool_calls[0].function.parsed_arguments if "tools" in options else message.parsed
            assert parsed == Weather(city="Oslo", degrees=7)
            assert agents["d0"].received[-1].sampling.grammar is not None


def test_both_sdks_at_once_and_asynchronous(checkpoint: Path) -> None:
    async def act() -> None:
        async with both(checkpoint) as (stage, chat, messages):
            chats = [ask(chat) for ask in (whole_chat, raw_chat, helped_chat) for _ in range(3)]
            asked = [ask(messages) for ask in (whole_message, helped_message) for _ in range(3)]
            for said in await asyncio.gather(*chats):
                assert (said.content, calls_of(said)) == ("I look.", CALLS)
            for said in await asyncio.gather(*asked):
                assert [b.type for b in said.content] == ["text", "tool_use", "tool_use"]
                assert [(b.name, b.input) for b in said.content[1:]] == CALLS
            assert stage.gateway.in_flight == 0

    asyncio.run(act())


async def leave_early(stage: Stage, chat: openai.AsyncOpenAI, messages: anthropic.AsyncAnthropic) -> None:
    async for _ in await chat.completions.create(model="tiny", prompt="x", stream=True):
        break
    async with messages.messages.stream(model="tiny", max_tokens=900, messages=ADD) as stream:
        async for _ in stream:
            break


def test_a_stream_left_early_frees_its_work(checkpoint: Path) -> None:
    async def act() -> None:
        async with both(checkpoint) as (stage, chat, messages):
            for worker in stage.workers.values():
                worker.pace_s = 0.002
                worker.tokens_per_step = 1
            await leave_early(stage, chat, messages)
            await stage.until(lambda: not stage["d0"].running and stage.gateway.in_flight == 0)

    asyncio.run(act())


ASKED: list[Any] = [{"role": "user", "content": "weather"}]
CALLED: list[Any] = [{"role": "user", "content": "call weather"}]


def sent_back(said: Any, dump: bool) -> Any:
    """The message as the SDK's object, or as a dict of all its fields."""
    return said.model_dump(warnings=False) if dump else said


@pytest.mark.parametrize("dump", [False, True])
def test_parsed_chats_can_be_sent_back(agents: Stage, dump: bool) -> None:
    tools: Any = [openai.pydantic_function_tool(Weather)]
    with openai.OpenAI(base_url=f"{agents.url}/v1", api_key="-", max_retries=0, timeout=60) as sdk:
        text = sdk.chat.completions.parse(model="tiny", messages=ASKED, response_format=Weather).choices[0].message
        sdk.chat.completions.create(model="tiny", messages=[*ASKED, sent_back(text, dump), *ASKED])
        assert prompt_of(agents) == f"<user>weather<assistant>{WEATHER}<user>weather<assistant>"
        with sdk.chat.completions.stream(model="tiny", messages=CALLED, tools=tools) as events_:
            call: Any = events_.get_final_completion().choices[0].message
        result: Any = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "ok"}
        sdk.chat.completions.create(model="tiny", messages=[*CALLED, sent_back(call, dump), result], tools=tools)
        assert prompt_of(agents).endswith(
            f"<user>call weather<assistant>{CALL}<tool>ok({call.tool_calls[0].id})<assistant>"
        )


@pytest.mark.parametrize("dump", [False, True])
def test_parsed_responses_can_be_sent_back(agents: Stage, dump: bool) -> None:
    tools: Any = [{"type": "function", "name": "Weather", "parameters": Weather.model_json_schema(), "strict": False}]
    with openai.OpenAI(base_url=f"{agents.url}/v1", api_key="-", max_retries=0, timeout=60) as sdk:
        text = sdk.responses.parse(model="tiny", input=ASKED, text_format=Weather)
        sdk.responses.create(model="tiny", input=[*ASKED, *(sent_back(i, dump) for i in text.output), *ASKED])
        assert prompt_of(agents) == f"<user>weather<assistant>{WEATHER}<user>weather<assistant>"
        with sdk.responses.stream(model="tiny", input=CALLED, tools=tools) as events_:
            called = events_.get_final_response()
        call: Any = called.output[0]
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "ok"}
        sdk.responses.create(model="tiny", input=[*CALLED, sent_back(call, dump), result], tools=tools)
        assert prompt_of(agents).endswith(f"{CALL}<tool>ok({call.call_id})<assistant>")


@anthropic.beta_tool
def add(a: int, b: list[Any]) -> str:
    """Adds.

    Args:
        a: a number
        b: whatever
    """
    return f"{a} and {len(b)}"


@anthropic.beta_tool
def time() -> str:
    """The time."""
    return "noon"


def test_the_anthropic_tool_runner_runs_its_tools(agents: Stage) -> None:
    with anthropic.Anthropic(base_url=agents.url, api_key="-", max_retries=0, timeout=60) as sdk:
        runner = sdk.beta.messages.tool_runner(model="tiny", max_tokens=300, messages=ADD, tools=[add, time])
        said = [message.content for message in runner]
        with pytest.raises(anthropic.BadRequestError, match="'thread' is not supported") as refused:
            sdk.beta.messages.create(model="tiny", max_tokens=9, messages=ADD, thread={"type": "create"})
    assert [[block.type for block in content] for content in said] == [["text", "tool_use", "tool_use"], ["text"]]
    assert said[1][0].text == "The sum is 2 and 2 and noon."  # type: ignore[union-attr]
    assert refused.value.error_code == "thread_unsupported_request"


def prompt_of(stage: Stage) -> str:
    return stage.gateway.tokenizer.decode(stage["d0"].received[-1].token_ids)
