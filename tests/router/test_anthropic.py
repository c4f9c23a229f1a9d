"""Tests the messages API by the anthropic SDK and plain HTTP, with a worker that answers with given texts."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.router.conftest import Stage, served
from tests.router.scripted import agent, scripted, talking

TOOLS: list[Any] = [
    {"name": "add", "description": "adds", "input_schema": {"type": "object"}},
    {"name": "time", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
]
SENT = [
    {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}},
]
SCRIPTS = {
    "reason": "<think>\nhm\n</think>\n\nyes",
    "broken": '<tool_call>\n{"name": "add", "arguments": {"a": tru}}\n</tool_call>',
    "plain": "hello there",
}
HELLO: Any = {"role": "user", "content": "plain"}


def say(prompt: str) -> str:
    """The answer that the last user's message asks for, else an agent's next turn."""
    for word, text in SCRIPTS.items():
        if prompt.endswith(f"<user>{word}<assistant>"):
            return text
    return agent(prompt)


@pytest.fixture(scope="module", params=[1, 7], ids=["bytewise", "seven at once"])
def agents(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    with talking(checkpoint, say, request.param) as stage:
        yield stage


@pytest.fixture(scope="module")
def sdk(agents: Stage) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=agents.url, api_key="-", max_retries=0, timeout=60) as client:
        yield client


def ask(sdk: anthropic.Anthropic, messages: list[Any], *, stream: bool, **options: Any) -> Any:
    options = {"model": "tiny", "max_tokens": 500, "messages": messages} | options
    if not stream:
        return sdk.messages.create(**options)
    with sdk.messages.stream(**options) as events:
        return events.get_final_message()


def prompt_of(stage: Stage) -> str:
    return stage.gateway.tokenizer.decode(stage["d0"].received[-1].token_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_calls_and_results(agents: Stage, sdk: anthropic.Anthropic, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "add"}]}]
    system = [{"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "brief"}]
    options: dict[str, Any] = {"tools": TOOLS, "system": system, "tool_choice": {"type": "auto"}}
    answer = ask(sdk, messages, stream=stream, **options)
    assert answer.stop_reason == "tool_use"
    assert [b.type for b in answer.content] == ["text", "tool_use", "tool_use"]
    text, add, time = answer.content
    assert text.text == "I look."
    assert (add.name, add.input, time.name, time.input) == ("add", {"a": 2, "b": [1, "x</tool_call>y"]}, "time", {})
    assert prompt_of(agents) == f"[{''.join(json.dumps(t) for t in SENT)}]<system>Be\nbrief<user>add<assistant>"
    counted = sdk.messages.count_tokens(model="tiny", messages=messages, **options)
    assert counted.input_tokens == len(agents["d0"].received[-1].token_ids)
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    messages.append({"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in answer.content]})
    results = [
        {"type": "tool_result", "tool_use_id": time.id, "content": [{"type": "text", "text": "noon"}]},
        {"type": "tool_result", "tool_use_id": add.id, "content": "3", "is_error": False},
    ]
    messages.append({"role": "user", "content": results})
    answer = ask(sdk, messages, stream=stream, **options)
    assert answer.stop_reason == "end_turn"
    assert [b.text for b in answer.content] == ["The sum is 3 and noon."]


def test_events_come_in_order(agents: Stage) -> None:
    body = {"model": "tiny", "max_tokens": 500, "messages": [{"role": "user", "content": "add"}], "tools": TOOLS}
    answer = agents.http.post(f"{agents.url}/v1/messages", json=body | {"stream": True})
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    events: list[dict[str, Any]] = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    kinds = [e["type"] for e in events if e["type"] != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", "ping", *block * 3, "message_delta", "message_stop"]
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == [0, 1, 2]
    parts = [e["delta"]["partial_json"] for e in events if e.get("delta", {}).get("type") == "input_json_delta"]
    assert [json.loads(p) for p in parts] == [{"a": 2, "b": [1, "x</tool_call>y"]}, {}]
    assert "tool_call>" not in "".join(e["delta"].get("text", "") for e in events if "delta" in e)


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_most(sdk: anthropic.Anthropic, stream: bool) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    answer = ask(sdk, [{"role": "user", "content": "add"}], stream=stream, tools=TOOLS, tool_choice=choice)
    assert [b.type for b in answer.content] == ["text", "tool_use"]
    assert answer.stop_reason == "tool_use"


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_call_is_text(sdk: anthropic.Anthropic, stream: bool) -> None:
    answer = ask(sdk, [{"role": "user", "content": "broken"}], stream=stream, tools=TOOLS)
    assert [b.text for b in answer.content] == ['{"name": "add", "arguments": {"a": tru}}']
    assert answer.stop_reason == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("written", "given"),
    [('{"name": "add", "arguments": {"a": 2, "b": [1, "x</to', {"a": 2, "b": [1, "x</to"]}), ('{"name": "add", ', {})],
)
def test_a_call_cut_off_by_the_limit_has_its_partial_arguments(
    sdk: anthropic.Anthropic, stream: bool, written: str, given: object
) -> None:
    limit = agent("add").index("{") + len(written)
    answer = ask(sdk, [{"role": "user", "content": "add"}], stream=stream, tools=TOOLS, max_tokens=limit)
    assert [b.type for b in answer.content] == ["text", "tool_use"]
    assert (answer.content[1].name, answer.content[1].input, answer.stop_reason) == ("add", given, "max_tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_why_it_ended(sdk: anthropic.Anthropic, stream: bool) -> None:
    answer = ask(sdk, [HELLO], stream=stream, stop_sequences=["zz", "o t"])
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == ("hell", "stop_sequence", "o t")
    answer = ask(sdk, [HELLO], stream=stream, max_tokens=4)
    assert (answer.content[0].text, answer.stop_reason, answer.usage.output_tokens) == ("hell", "max_tokens", 4)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("thinking", "blocks", "system"),
    [
        (None, ["text"], ""),
        ({"type": "disabled"}, ["text"], ""),
        ({"type": "enabled", "budget_tokens": 1024}, ["thinking", "text"], "<system>detailed thinking on"),
        ({"type": "adaptive", "display": "omitted"}, ["text"], "<system>detailed thinking on"),
    ],
)
def test_reasoning(
    agents: Stage, sdk: anthropic.Anthropic, stream: bool, thinking: Any, blocks: list[str], system: str
) -> None:
    given = {} if thinking is None else {"thinking": thinking}
    answer = ask(sdk, [{"role": "user", "content": "reason"}], stream=stream, **given)
    assert [b.type for b in answer.content] == blocks
    assert answer.content[-1].text == "yes"
    if "thinking" in blocks:
        assert answer.content[0].thinking == "hm"
    assert prompt_of(agents) == f"{system}<user>reason<assistant>"
    again = [{"role": "user", "content": "reason"}, {"role": "assistant", "content": answer.content}, HELLO]
    ask(sdk, again, stream=stream)
    assert prompt_of(agents) == "<user>reason<assistant>yes<user>plain<assistant>"


def test_settings_reach_the_workers(agents: Stage) -> None:
    body = {"model": "auto", "max_tokens": 9, "messages": [HELLO], "temperature": 0.5, "top_p": 0.9, "top_k": 7,
            "metadata": {"user_id": "u"}, "service_tier": "auto", "output_config": {"effort": "low"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "tool_choice": {"type": "none"}, "tools": TOOLS}  # fmt: skip
    assert agents.http.post(f"{agents.url}/v1/messages?beta=true", json=body).status_code == 200
    sampling = agents["d0"].received[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (9, 0.5, 0.9, 7)
    assert prompt_of(agents) == "<user>plain<assistant>"


GOOD: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": [HELLO]}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "'max_tokens' is required"),
    ({"max_tokens": 10**6}, "context"),
    ({"temperature": 1.5}, "'temperature'"),
    ({"n": 2}, "'n' is not supported"),
    ({"messages": []}, "'messages'"),
    ({"messages": [{"role": "developer", "content": "x"}]}, "'messages[0].role'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'messages[0].content[0].type'"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "'messages[0].content[0].type' is required"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'messages[0].content[0].text' is required"),
    ({"messages": [HELLO, {"role": "assistant", "content": "I"}]}, "must end with a user message"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "7"}]}]},
        "'messages[0].content[0].tool_use_id': '7'",
    ),
    ({"tool_choice": {"type": "any"}}, "'tool_choice' needs tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "no function in 'tools' is called 'x'"),
    ({"tools": TOOLS, "tool_choice": {"type": "any", "name": "add"}}, "a name is needed with type 'tool'"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search", "input_schema": {}}]}, "web_search_20250305"),
    ({"thinking": {"type": "between"}}, "'thinking.type'"),
    ({"output_config": {"format": {}}}, "'output_config.format.type' is required"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "'context_management.edits[0].type'"),
    ({"mcp_servers": [{"type": "url"}]}, "'mcp_servers'"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[w for _, w in BAD])
def test_bad_input_is_named_in_this_dialect(agents: Stage, change: dict[str, Any], words: str) -> None:
    answer = agents.http.post(f"{agents.url}/v1/messages", json=GOOD | change)
    assert answer.status_code == 400, answer.text
    content = answer.json()
    assert (content["type"], content["error"]["type"]) == ("error", "invalid_request_error")
    assert words in content["error"]["message"]
    assert content["request_id"] == answer.headers["request-id"]


def test_errors_reach_the_sdk_as_its_own(agents: Stage, sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        sdk.messages.create(model="claude", max_tokens=5, messages=[{"role": "user", "content": "x"}])
    body: Any = missing.value.body
    assert body["error"]["type"] == "not_found_error"
    assert missing.value.request_id
    assert agents.http.get(f"{agents.url}/v1/messages").json()["type"] == "error"
    assert agents.http.post(f"{agents.url}/v1/messages/nothing").json()["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        sdk.messages.count_tokens(model="tiny", messages=[])


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_s_failure_has_anthropic_s_error_format(checkpoint: Path, stream: bool) -> None:
    with talking(checkpoint, say) as stage:
        for worker in stage.workers.values():
            worker.refuse = "no luck"
        answer = stage.http.post(f"{stage.url}/v1/messages", json=GOOD | {"stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
        assert "no luck" in answer.json()["error"]["message"]


async def read_until_it_fails(stage: Stage, sdk: anthropic.AsyncAnthropic, got: list[str]) -> None:
    async with sdk.messages.stream(model="tiny", max_tokens=900, messages=[HELLO]) as stream:
        async for text in stream.text_stream:
            if not got:
                await stage.until(lambda: stage.gateway.table.link("p0").in_flight == 0)
                stage["d0"].fail("no luck")
            got.append(text)


def test_a_stream_that_fails_says_so_in_band(checkpoint: Path) -> None:
    async def act() -> None:
        async with asyncio.timeout(120), served(checkpoint, scripted(checkpoint, lambda _: "x" * 900)) as stage:
            for worker in stage.workers.values():
                worker.pace_s = 0.005
            async with anthropic.AsyncAnthropic(base_url=stage.url, api_key="-", max_retries=0, timeout=60) as sdk:
                got: list[str] = []
                with pytest.raises(anthropic.APIStatusError, match="d0 failed the request: no luck") as caught:
                    await read_until_it_fails(stage, sdk, got)
                assert set("".join(got)) == {"x"}
                body: Any = caught.value.body
                assert body["error"]["type"] == "api_error"

    asyncio.run(act())
