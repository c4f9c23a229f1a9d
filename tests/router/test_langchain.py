"""Tests LangChain's ChatOpenAI: tools, streams, usage and batches."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.router.conftest import Stage
from tests.router.scripted import agent, talking


@tool
def add(a: int, b: list[Any]) -> str:
    """Adds."""
    return f"{a}{b}"


@tool
def time() -> str:
    """Tells the time."""
    return "noon"


def say(prompt: str) -> str:
    word = prompt.rpartition("<user>")[2]
    if word.startswith("weather"):
        said = '{"city": "Oslo", "degrees": 7}'
        call = f'<tool_call>\n{{"name": "Weather", "arguments": {said}}}\n</tool_call>'
        return call if '"name": "Weather"' in prompt else said
    return f"héllo {word[:1]}" if word[:1] in "123" else agent(prompt)


@pytest.fixture(scope="module")
def agents(checkpoint: Path) -> Iterator[Stage]:
    with talking(checkpoint, say, 3) as stage:
        yield stage


@pytest.fixture(scope="module")
def model(agents: Stage) -> ChatOpenAI:
    options: dict[str, Any] = {"base_url": f"{agents.url}/v1", "api_key": "-", "max_retries": 0, "timeout": 10}
    return ChatOpenAI(model="tiny", temperature=0, max_completion_tokens=500, stream_usage=True, **options)


def streamed(model: Any, messages: list[Any]) -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    for chunk in model.stream(messages):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_loop_of_bound_tools(agents: Stage, model: ChatOpenAI, stream: bool) -> None:
    bound = model.bind_tools([add, time], tool_choice="auto", parallel_tool_calls=True)
    messages: list[Any] = [SystemMessage("Be brief"), HumanMessage("add")]
    answer: Any = streamed(bound, messages) if stream else bound.invoke(messages)
    assert isinstance(answer, AIMessage)
    assert answer.content == "I look."
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [
        ("add", {"a": 2, "b": [1, "x</tool_call>y"]}),
        ("time", {}),
    ]
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == len(agents["d0"].received[-1].token_ids)
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    messages.append(AIMessage(content=answer.content, tool_calls=answer.tool_calls))
    chosen = {"add": add, "time": time}
    messages += [ToolMessage(str(chosen[c["name"]].invoke(c["args"])), tool_call_id=c["id"]) for c in answer.tool_calls]
    answer = streamed(bound, messages) if stream else bound.invoke(messages)
    assert answer.content.startswith("The sum is 2")
    assert answer.content.endswith("and noon.")


def test_a_batch_and_its_usage(model: ChatOpenAI) -> None:
    answers = model.batch([[HumanMessage(n)] for n in "123"], config={"max_concurrency": 3})
    assert [a.content for a in answers] == ["héllo 1", "héllo 2", "héllo 3"]
    for answer in answers:
        assert isinstance(answer, AIMessage)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == len("héllo 1".encode()) + 1


def test_an_asynchronous_stream(model: ChatOpenAI) -> None:
    async def act() -> list[str]:
        async with asyncio.timeout(60):
            return [str(chunk.content) async for chunk in model.astream([HumanMessage("1")])]

    pieces = asyncio.run(act())
    assert "".join(pieces) == "héllo 1"
    assert len(pieces) > 2


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


ASKED = [HumanMessage("weather")]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("include_raw", [False, True])
def test_structured_output(agents: Stage, model: ChatOpenAI, method: Any, include_raw: bool) -> None:
    chain = model.with_structured_output(Weather, method=method, include_raw=include_raw)
    answer: Any = chain.invoke(ASKED)
    if include_raw:
        assert answer["parsing_error"] is None
        assert answer["raw"].usage_metadata["output_tokens"] > 0
        answer = answer["parsed"]
    assert answer == Weather(city="Oslo", degrees=7)
    # The schema has become a grammar that the workers keep to.
    assert agents["d0"].received[-1].sampling.grammar is not None


def test_a_tool_that_must_be_called_is_enforced(agents: Stage, model: ChatOpenAI) -> None:
    for choice in ("any", "add"):
        answer: Any = model.bind_tools([add, time], tool_choice=choice).invoke([HumanMessage("add")])
        assert answer.tool_calls[0]["name"] == "add"
        assert agents["d0"].received[-1].sampling.grammar is not None
    model.bind_tools([add]).invoke([HumanMessage("add")])
    assert agents["d0"].received[-1].sampling.grammar is None
