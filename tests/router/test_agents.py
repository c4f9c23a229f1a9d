"""Tests agent loops of the openai SDK, with a worker that answers with given texts."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.router.conftest import Stage
from tests.router.scripted import agent, talking

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "description": "adds"}},
    {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}, "name": "time"}},
]
SCRIPTS = {
    "reason": "<think>\nhm\n</think>\n\nyes",
    "broken": '<tool_call>\n{"name": "add", "arguments": [}\n</tool_call>',
    "cut": '<tool_call>\n{"name": "add", "arguments": {"a": 12345678',
}


def say(prompt: str) -> str:
    """The answer that the last user's message asks for, else an agent's next turn."""
    for word, text in SCRIPTS.items():
        if f"<user>{word}<assistant>" in prompt:
            return text
    return agent(prompt)


@pytest.fixture(scope="module", params=[1, 7], ids=["bytewise", "seven at once"])
def agents(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    with talking(checkpoint, say, request.param) as stage:
        yield stage


@pytest.fixture(scope="module")
def sdk(agents: Stage) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{agents.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


def ask(sdk: openai.OpenAI, messages: list[Any], *, stream: bool, **options: Any) -> Any:
    """The first choice of the answer; the SDK assembles it if it is streamed."""
    options = {"model": "tiny", "messages": messages, "tools": TOOLS} | options
    if not stream:
        return sdk.chat.completions.create(**options).choices[0]
    with sdk.chat.completions.stream(**options) as events:
        return events.get_final_completion().choices[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_calls_and_results(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "add them"}]
    choice = ask(sdk, messages, stream=stream)
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    calls = choice.message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in calls] == [
        ("add", '{"a": 2, "b": [1, "x</tool_call>y"]}'), ("time", "{}")
    ]  # fmt: skip
    assert len({c.id for c in calls}) == 2
    messages.append(choice.message.model_dump(exclude={"parsed": True, "tool_calls": {"__all__": {"function": {
        "parsed_arguments"}}}}))  # fmt: skip
    # Results in another order than the calls: the template sees them in the calls'.
    for call, result in zip(reversed(calls), ("noon", "3"), strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    choice = ask(sdk, messages, stream=stream)
    assert (choice.finish_reason, choice.message.content) == ("stop", "The sum is 3 and noon.")
    assert not choice.message.tool_calls
    prompt = agents.gateway.tokenizer.decode(agents["d0"].received[-1].token_ids)
    # The very tokens the model generated, not the template's words for them.
    assert prompt.startswith(
        f"[{json.dumps(TOOLS[0])}{json.dumps(TOOLS[1])}]<user>add them<assistant>{agent('')}<tool>3"
    )


def test_a_stream_names_each_call_once_and_leaks_no_marker(sdk: openai.OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "add"}], tools=TOOLS, stream=True
        )
    )
    deltas = [c.choices[0].delta for c in chunks]
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(p.index, p.function.name) for p in pieces if p.function and p.function.name] == [(0, "add"), (1, "time")]
    assert all(bool(p.id) == bool(p.function and p.function.name) for p in pieces)
    assert "".join(d.content or "" for d in deltas) == "I look."
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize("stream", [False, True])
def test_no_parallel_calls_ends_with_the_first(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    choice = ask(sdk, [{"role": "user", "content": "add"}], stream=stream, parallel_tool_calls=False)
    assert [c.function.name for c in choice.message.tool_calls] == ["add"]
    assert choice.finish_reason == "tool_calls"
    worker = agents["d0"]
    asyncio.run(agents.until(lambda: worker.received[-1].request_id in worker.aborted))
    asyncio.run(agents.until(lambda: agents.gateway.in_flight == 0))


def test_tokens_after_a_single_call_are_not_counted(agents: Stage) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "add"}], "tools": TOOLS, "return_token_ids": True}
    answer = agents.http.post(f"{agents.url}/v1/chat/completions", json=body | {"parallel_tool_calls": False}).json()
    ids = answer["choices"][0]["token_ids"]
    assert agents.gateway.tokenizer.decode(ids) == agent("").split("}")[0] + "}"
    assert answer["usage"]["completion_tokens"] == len(ids)


@pytest.mark.parametrize("stream", [False, True])
def test_without_tools_no_tool_is_offered_and_calls_are_text(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    choice = ask(sdk, [{"role": "user", "content": "add"}], stream=stream, tool_choice="none")
    assert choice.message.content == agent("")
    assert (choice.finish_reason, choice.message.tool_calls or None) == ("stop", None)
    assert agents.gateway.tokenizer.decode(agents["d0"].received[-1].token_ids) == "<user>add<assistant>"


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_call_is_text(sdk: openai.OpenAI, stream: bool) -> None:
    choice = ask(sdk, [{"role": "user", "content": "broken"}], stream=stream)
    assert (choice.message.content, choice.finish_reason) == ('\n{"name": "add", "arguments": [}\n', "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_cut_by_the_limit_says_so(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    # Not through the SDK's own stream helper: that one raises at the length limit.
    options: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "cut"}], "tools": TOOLS}
    options["max_tokens"] = len(SCRIPTS["cut"]) - 2
    if stream:
        chunks = [c.choices[0] for c in sdk.chat.completions.create(**options, stream=True)]
        pieces = [call for c in chunks for call in c.delta.tool_calls or []]
        arguments, finish = "".join(p.function.arguments for p in pieces if p.function), chunks[-1].finish_reason
    else:
        choice = sdk.chat.completions.create(**options).choices[0]
        arguments, finish = choice.message.tool_calls[0].function.arguments, choice.finish_reason
    assert (arguments, finish) == ('{"a": 123456', "length")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "system"),
    [
        ({}, ""),
        ({"reasoning_effort": "none"}, ""),
        ({"reasoning_effort": "high"}, "<system>detailed thinking on"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}, "<system>detailed thinking on"),
        ({"reasoning_effort": "high", "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, ""),
    ],
)
def test_reasoning(agents: Stage, sdk: openai.OpenAI, stream: bool, options: dict[str, Any], system: str) -> None:
    request: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "reason"}], **options}
    if stream:
        deltas = [c.choices[0].delta for c in sdk.chat.completions.create(**request, stream=True)]
        thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
        said = "".join(d.content or "" for d in deltas)
    else:
        message: Any = sdk.chat.completions.create(**request).choices[0].message
        thought, said = message.reasoning_content, message.content
    assert (thought, said) == ("hm", "yes")
    prompt = agents.gateway.tokenizer.decode(agents["d0"].received[-1].token_ids)
    assert prompt == f"{system}<user>reason<assistant>"


def test_the_system_text_keeps_its_own_switch(agents: Stage, sdk: openai.OpenAI) -> None:
    for given, rendered in (("Hi", "Hi\ndetailed thinking on"), ("detailed thinking off", "detailed thinking off")):
        messages: list[Any] = [{"role": "system", "content": given}, {"role": "user", "content": "reason"}]
        sdk.chat.completions.create(model="tiny", messages=messages, reasoning_effort="low")
        prompt = agents.gateway.tokenizer.decode(agents["d0"].received[-1].token_ids)
        assert prompt == f"<system>{rendered}<user>reason<assistant>"


def test_tokens_of_a_text_and_of_a_conversation(agents: Stage) -> None:
    def post(path: str, **body: Any) -> Any:
        answer = agents.http.post(f"{agents.url}{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    text = post("/tokenize", model="tiny", prompt="hé", return_token_strs=True)
    assert (text["count"], text["max_model_len"], text["token_strs"][0]) == (3, 4096, "h")
    assert post("/detokenize", tokens=text["tokens"]) == {"prompt": "hé"}
    chat = post("/tokenize", messages=[{"role": "user", "content": "x"}], tools=TOOLS[:1])
    assert post("/detokenize", tokens=chat["tokens"])["prompt"] == f"[{json.dumps(TOOLS[0])}]<user>x<assistant>"
