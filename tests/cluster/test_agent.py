"""Tests agents on a whole cluster, with the embedded checkpoint and each vendor's SDK."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.cluster.serving import Serving, serving

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {
        "type": "object", "properties": properties, "required": list(parameters), "additionalProperties": False,
    }  # fmt: skip
    function = {"name": name, "description": description, "parameters": schema, "strict": True}
    return {"type": "function", "function": function}


WEATHER = tool("get_weather", "Get the weather in a city.", city="the city")
PRICE = tool("find_price", "Find the price of an item.", item="the item")
# Strict, as whoever relies on a tool asks: how often the checkpoint keeps to a schema by itself is in its card.
OFFERED = [WEATHER, PRICE]
# What the user says, the tool to be chosen, the arguments it must be called with, its result, and what the answer must
# contain of it.
TURNS = [
    ("What is the weather in Lisbon?", WEATHER, {"city": "Lisbon"}, {"temperature": 17, "sky": "cloudy"}, "17"),
    ("Can you find the price for lamp?", PRICE, {"item": "lamp"}, {"price": 42}, "42"),
    ("What is the weather in Oslo?", WEATHER, {"city": "Oslo"}, {"temperature": 8, "sky": "clear"}, "8"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("state")  # files and batches need one
    with serving("--tp", "2", "--set", f"router.data_dir={folder}") as started:
        yield started


@pytest.fixture(scope="module")
def without_cache() -> Iterator[Serving]:
    with serving("--prefill", "0", "--tp", "1", "--cache", "off") as started:
        yield started


def whole(client: openai.OpenAI, messages: list[Any]) -> dict[str, Any]:
    """Ask without a stream; returns the assistant's message."""
    answer = client.chat.completions.create(
        model="auto", messages=messages, tools=OFFERED, temperature=0, max_tokens=200
    )  # type: ignore[call-overload]
    message: dict[str, Any] = answer.choices[0].message.model_dump(exclude_none=True)
    return message


def streamed(client: openai.OpenAI, messages: list[Any]) -> dict[str, Any]:
    """Ask with a stream; returns the message that the SDK assembles."""
    with client.chat.completions.stream(
        model="auto", messages=messages, tools=OFFERED, temperature=0, max_tokens=200
    ) as events:
        for _ in events:
            pass
        message: dict[str, Any] = events.get_final_completion().choices[0].message.model_dump(exclude_none=True)
    message.pop("parsed", None)
    for call in message.get("tool_calls", []):
        call["function"].pop("parsed_arguments", None)
    return message


@pytest.mark.parametrize("ask", [whole, streamed])
def test_an_agent_gets_three_turns_with_two_tools_right(cluster: Serving, ask: Any) -> None:
    messages: list[Any] = []
    with openai.OpenAI(base_url=cluster.url + "/v1", api_key="-", max_retries=0) as client:
        for said, chosen, arguments, result, wanted in TURNS:
            messages.append({"role": "user", "content": said})
            message = ask(client, messages)
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == chosen["function"]["name"]
            assert json.loads(call["function"]["arguments"]) == arguments
            messages.append(message)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})
            message = ask(client, messages)
            assert wanted in message["content"]
            messages.append(message)
    cluster.until(cluster.all_free)


def own_tool(offered: dict[str, Any]) -> dict[str, Any]:
    """The tool in Anthropic's format."""
    function = offered["function"]
    return {
        "name": function["name"],
        "description": function["description"],
        "input_schema": function["parameters"],
        "strict": True,
        "cache_control": {"type": "ephemeral"},
    }


def whole_message(client: anthropic.Anthropic, **request: Any) -> Any:
    return client.messages.create(**request)


def streamed_message(client: anthropic.Anthropic, **request: Any) -> Any:
    with client.messages.stream(**request) as events:
        return events.get_final_message()


@pytest.mark.parametrize("ask", [whole_message, streamed_message])
def test_an_agent_gets_the_same_turns_right_by_anthropic_s_api(cluster: Serving, ask: Any) -> None:
    messages: list[Any] = []
    with anthropic.Anthropic(base_url=cluster.url, api_key="-", max_retries=0) as client:
        for said, chosen, arguments, result, wanted in TURNS:
            request: dict[str, Any] = {"model": "auto", "max_tokens": 200, "extra_body": {"temperature": 0}}
            request["tools"] = [own_tool(offered) for offered in OFFERED]
            messages.append({"role": "user", "content": said})
            answer = ask(client, messages=messages, **request)
            (call,) = [block for block in answer.content if block.type == "tool_use"]
            assert (call.name, call.input, answer.stop_reason) == (chosen["function"]["name"], arguments, "tool_use")
            messages.append({"role": "assistant", "content": answer.content})
            block = {"type": "tool_result", "tool_use_id": call.id, "content": json.dumps(result)}
            messages.append({"role": "user", "content": [block]})
            answer = ask(client, messages=messages, **request)
            assert answer.stop_reason == "end_turn"
            assert wanted in answer.content[-1].text
            messages.append({"role": "assistant", "content": answer.content})
    cluster.until(cluster.all_free)


@dataclass
class Transcript:
    """What an agent received over several requests: texts, calls, and each request's token counts."""

    told: list[tuple[str, list[tuple[str, Any]]]] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)  # tokens of each request's prompt
    cached: list[int] = field(default_factory=list)  # of them, those that were not computed
    whole: list[int] = field(default_factory=list)  # tokens up to each answer's end

    def take(self, text: str | None, calls: list[tuple[str, Any]], prompt: int, cached: int, answer: int) -> None:
        self.told.append((text or "", calls))
        self.prompt.append(prompt)
        self.cached.append(cached)
        self.whole.append(prompt + answer)

    @property
    def computed_beyond_new(self) -> list[int]:
        """For each request after the first: its computed prompt tokens less those that it added."""
        return [
            prompt - cached - (prompt - before)
            for prompt, cached, before in zip(self.prompt[1:], self.cached[1:], self.whole, strict=False)
        ]


def agent_of_openai(url: str) -> Transcript:
    """Send twelve requests through OpenAI's SDK: each user turn leads to a call, and its result to an answer."""
    found = Transcript()
    messages: list[Any] = [{"role": "system", "content": "You are a careful assistant."}]
    with openai.OpenAI(base_url=url + "/v1", api_key="-", max_retries=0) as client:
        for said, _, _, result, _ in TURNS * 2:
            messages.append({"role": "user", "content": said})
            for _ in range(2):
                answer = client.chat.completions.create(
                    model="auto", messages=messages, tools=OFFERED, temperature=0, max_tokens=200
                )  # type: ignore[call-overload]
                message = answer.choices[0].message
                calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
                usage = answer.usage
                cached = usage.prompt_tokens_details.cached_tokens
                found.take(message.content, calls, usage.prompt_tokens, cached, usage.completion_tokens)
                messages.append(message.model_dump(exclude_none=True))
                for call in message.tool_calls or []:
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
    return found


def agent_of_anthropic(url: str) -> Transcript:
    """Send the same twelve requests through Anthropic's SDK."""
    found = Transcript()
    messages: list[Any] = []
    with anthropic.Anthropic(base_url=url, api_key="-", max_retries=0) as client:
        for said, _, _, result, _ in TURNS * 2:
            messages.append({"role": "user", "content": said})
            for _ in range(2):
                answer = client.messages.create(
                    model="auto", max_tokens=200, system="You are a helpful agent.", messages=messages,
                    tools=[own_tool(offered) for offered in OFFERED], extra_body={"temperature": 0},
                )  # type: ignore[call-overload]  # fmt: skip
                text = "".join(block.text for block in answer.content if block.type == "text")
                uses = [block for block in answer.content if block.type == "tool_use"]
                usage, cached = answer.usage, answer.usage.cache_read_input_tokens
                calls = [(use.name, use.input) for use in uses]
                found.take(text, calls, usage.input_tokens + cached, cached, usage.output_tokens)
                messages.append({"role": "assistant", "content": answer.content})
                if uses:
                    blocks = [
                        {"type": "tool_result", "tool_use_id": use.id, "content": json.dumps(result)} for use in uses
                    ]
                    messages.append({"role": "user", "content": blocks})
    return found


def counted(cluster: Serving) -> tuple[int, dict[str, int], int, int]:
    """Counts over all workers: prompts that began from a snapshot, misses by reason, and their tokens."""
    workers = [worker for role in ("prefill", "decode") for worker in cluster.live(role)]
    misses: Counter[str] = Counter()
    for worker in workers:
        misses.update(worker["misses"])
    figures = (sum(worker[name] for worker in workers) for name in ("hits", "hit_tokens", "missed_tokens"))
    hits, kept, computed = figures
    return hits, dict(misses), kept, computed


@pytest.mark.parametrize("agent", [agent_of_openai, agent_of_anthropic])
def test_twelve_requests_compute_only_new_tokens_and_answer_as_without_a_cache(
    cluster: Serving, without_cache: Serving, agent: Callable[[str], Transcript]
) -> None:
    before = counted(cluster)
    cached, plain = agent(cluster.url), agent(without_cache.url)
    assert len(plain.told) == 12
    assert cached.told == plain.told
    assert cached.prompt == plain.prompt
    assert plain.cached == [0] * 12
    assert max(cached.computed_beyond_new) <= 32
    after = counted(cluster)
    assert after[0] - before[0] >= 11
    assert sum(after[1].values()) - sum(before[1].values()) == 12
    assert (after[1]["weights"], after[1]["template"]) == (before[1]["weights"], before[1]["template"])
    assert after[2] + after[3] - before[2] - before[3] == sum(cached.prompt)
    cluster.until(cluster.all_free)


@pytest.mark.parametrize(
    ("example", "wanted"),
    [
        ("agent", ["get_weather(", "17"]),
        ("messages", ["tokens in, "]),
        ("batch", ["Lisbon -> ", "Oslo -> ", "Quito -> "]),
    ],
)
def test_the_examples_run_as_they_are(cluster: Serving, example: str, wanted: list[str]) -> None:
    file = EXAMPLES / f"{example}.py"
    environment = os.environ | {"LING_URL": cluster.url}
    said = subprocess.run(
        [sys.executable, str(file)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stderr
    for text in wanted:
        assert text in said.stdout
