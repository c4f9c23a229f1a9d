"""Tests LangChain's ChatOpenAI on /v1/responses: what it makes of an answer can be sent back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.router.conftest import Stage
from tests.router.scripted import agent, talking

pytestmark = pytest.mark.process

WEATHER = '{"city": "Oslo", "degrees": 7}'
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": "does", "parameters": {"type": "object"}}}
    for name in ("add", "time")
]


class Weather(BaseModel):
    """The weather."""

    city: str
    degrees: int


def say(prompt: str) -> str:
    if prompt.endswith("<user>weather<assistant>"):
        return WEATHER
    if prompt.endswith("<user>reason<assistant>"):
        return "<think>\nhm\n</think>\n\nyes"
    return agent(prompt)


@pytest.fixture(scope="module")
def agents(checkpoint: Path) -> Iterator[Stage]:
    with talking(checkpoint, say, 3) as stage:
        yield stage


@pytest.fixture(
    params=[{}, {"output_version": "v1"}, {"store": False, "include": ["reasoning.encrypted_content"]},
            {"use_previous_response_id": True}],
    ids=["plain", "v1", "stateless", "kept"],
)  # fmt: skip
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    given: dict[str, Any] = request.param
    return given


@pytest.mark.parametrize("stream", [False, True])
def test_calls_reasoning_and_parsed_text_can_be_sent_back(agents: Stage, options: dict[str, Any], stream: bool) -> None:
    model = ChatOpenAI(
        model="tiny", base_url=f"{agents.url}/v1", api_key=SecretStr("-"), max_retries=0, streaming=stream,
        use_responses_api=True, **options,
    )  # fmt: skip
    said: list[Any] = [SystemMessage("Be brief"), HumanMessage("add")]
    answer = model.bind_tools(TOOLS).invoke(said)
    assert isinstance(answer, AIMessage)
    assert [call["name"] for call in answer.tool_calls] == ["add", "time"]
    results = [ToolMessage("3", tool_call_id=call["id"]) for call in answer.tool_calls]
    said += [answer, *results]
    said += [model.bind_tools(TOOLS).invoke(said), HumanMessage("reason")]
    said += [model.invoke(said), HumanMessage("weather")]
    parsed: Any = model.with_structured_output(Weather, include_raw=True).invoke(said)
    assert parsed["parsed"] == Weather(city="Oslo", degrees=7)
    model.invoke([*said, parsed["raw"], HumanMessage("x")])
    prompt = agents.gateway.tokenizer.decode(agents["d0"].received[-1].token_ids)
    assert prompt.endswith(
        f"The sum is 3 and 3.<user>reason<assistant>yes<user>weather<assistant>{WEATHER}<user>x<assistant>"
    )
