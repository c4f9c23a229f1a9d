"""Tests requests as coding agents send them: each field works, or is refused by its name."""

import json
import typing
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import message_count_tokens_params, message_create_params

from router.endpoints import ENDPOINTS
from tests.router.conftest import Stage
from tests.router.scripted import agent, talking

pytestmark = pytest.mark.process

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
SHELL = {
    "name": "Bash",
    "description": "Executes a command",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
        "required": ["command"],
        "additionalProperties": False,
    },
}
# In the spirit of Claude Code's.
MESSAGES: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 300,
    "stream": True,
    "temperature": 1,
    "metadata": {"user_id": "user_0123_account_4567_session_89ab"},
    "thinking": {"type": "disabled"},
    "system": [
        {"type": "text", "text": "You write code.", **EPHEMERAL},
        {"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
    "tools": [SHELL, {**SHELL, "name": "Read", **EPHEMERAL}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>x</system-reminder>"}]},
        {"role": "user", "content": [{"type": "text", "text": "fix it", **EPHEMERAL}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "abc"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
                {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": {"command": "cat"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a.py"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True, **EPHEMERAL},
                {"type": "text", "text": "go on"},
            ],
        },
    ],
}
BETAS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
    "x-stainless-retry-count": "0",
    "x-app": "cli",
}
FUNCTION = {"name": "run", "description": "Runs", "parameters": SHELL["input_schema"]}
# In the spirit of Qwen Code's and OpenHands'.
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "You write code.", **EPHEMERAL}]},
        {"role": "user", "content": [{"type": "text", "text": "fix it", **EPHEMERAL}], "name": "me"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "audio": None,
            "function_call": None,
            "annotations": [],
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "index": 0, "function": {"name": "run", "arguments": '{"command":1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "run", "content": [{"type": "text", "text": "out"}]},
    ],
    "tools": [{"type": "function", "function": FUNCTION, **EPHEMERAL}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_completion_tokens": 200,
    "temperature": 0,
    "top_p": 0.95,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "n": 1,
    "stop": ["</s>"],
    "seed": 7,
    "store": False,
    "user": "u",
    "metadata": {"session": "1"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "service_tier": "auto",
    "reasoning_effort": "minimal",
    "response_format": {"type": "text"},
    "logit_bias": None,
}


@pytest.fixture(scope="module")
def agents(checkpoint: Path) -> Iterator[Stage]:
    with talking(checkpoint, agent, 7) as stage:
        yield stage


def prompt_of(stage: Stage) -> str:
    return stage.gateway.tokenizer.decode(stage["d0"].received[-1].token_ids)


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_messages_request_with_all_an_agent_sends(agents: Stage) -> None:
    answer = agents.http.post(f"{agents.url}/v1/messages?beta=true", json=MESSAGES, headers=BETAS)
    assert answer.status_code == 200, answer.text
    kinds = [e["type"] for e in events(answer.text)]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert prompt_of(agents).endswith(
        '<system>You write code.\nBe short.<user><system-reminder>x</system-reminder><user>fix it<assistant>I look.'
        '[Bash:{"command": "ls"}][Read:{"command": "cat"}]<tool>a.py(toolu_1)<tool>no(toolu_2)<user>go on<assistant>'
    )  # fmt: skip
    body = {name: MESSAGES[name] for name in ("model", "system", "tools", "messages", "thinking")}
    counted = agents.http.post(f"{agents.url}/v1/messages/count_tokens?beta=true", json=body, headers=BETAS)
    assert counted.json() == {"input_tokens": len(agents["d0"].received[-1].token_ids)}


def test_a_chat_request_with_all_an_agent_sends(agents: Stage) -> None:
    answer = agents.http.post(f"{agents.url}/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text
    chunks = events(answer.text)
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert chunks[-1]["choices"] == []
    said = '<system>You write code.<user>fix it<assistant>None[run:{"command":1}]<tool>out(c1)<assistant>'
    assert prompt_of(agents) == f"[{json.dumps({'type': 'function', 'function': FUNCTION})}]{said}"
    sampling = agents["d0"].received[-1].sampling
    assert (sampling.max_tokens, sampling.seed, sampling.temperature) == (200, 7, 0)


IMAGE = {"type": "base64", "media_type": "image/png", "data": "aGk="}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": IMAGE}]}]}, "[0].type"),
    (
        "/v1/messages",
        {"messages": [{"role": "user", "content": [{"type": "document", "source": IMAGE}]}]},
        "'messages[0].content[0].source.type'",
    ),
    (
        "/v1/messages",
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]},
        "web_search_20250305",
    ),
    ("/v1/messages", {"tools": [{"type": "text_editor_20250728", "name": "edit"}]}, "text_editor_20250728"),
    ("/v1/messages", {"mcp_servers": [{"type": "url", "url": "https://x"}]}, "'mcp_servers'"),
    ("/v1/messages", {"container": "c"}, "'container' is not supported"),
    (
        "/v1/messages",
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        "'context_management.edits[0].type'",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        "'messages[0].content[0].type'",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "'messages[0].content[0].type'",
    ),
    ("/v1/chat/completions", {"modalities": ["text", "audio"]}, "'modalities"),
    ("/v1/chat/completions", {"functions": [FUNCTION]}, "'functions' is not supported"),
    ("/v1/chat/completions", {"web_search_options": {}}, "'web_search_options' is not supported"),
    ("/v1/chat/completions", {"prediction": {"type": "content", "content": "x"}}, "'prediction' is not supported"),
    ("/v1/chat/completions", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "'tools[0].type'"),
    ("/v1/chat/completions", {"service_tier": "priority"}, "'service_tier'"),
]


@pytest.mark.parametrize(("path", "change", "words"), REFUSED, ids=[f"{p} {next(iter(c))}" for p, c, _ in REFUSED])
def test_an_impossible_field_is_refused_by_name(agents: Stage, path: str, change: dict[str, Any], words: str) -> None:
    before = len(agents["d0"].received)
    answer = agents.http.post(agents.url + path, json=(MESSAGES if "messages" in path else CHAT) | change)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]
    assert len(agents["d0"].received) == before


def test_thinking_turned_on_by_either_api_reaches_the_template(agents: Stage) -> None:
    on = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
    agents.http.post(f"{agents.url}/v1/messages", json=MESSAGES | on)
    assert "Be short.\ndetailed thinking on<user>" in prompt_of(agents)
    agents.http.post(f"{agents.url}/v1/chat/completions", json=CHAT | {"reasoning_effort": "high"})
    assert "You write code.\ndetailed thinking on<user>" in prompt_of(agents)


BLOCKS: list[Any] = [
    {"type": "text", "text": "I look.", "citations": None},
    {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"a": None}, "caller": None, "toolset_name": None},
    {"type": "tool_use", "id": "t2", "name": "Bash", "input": {}},
]
RESULTS: list[Any] = [
    {"type": "tool_result", "tool_use_id": "t1", "content": None, "is_error": None},
    {"type": "text", "text": "and"},
    {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "b", "citations": None}]},
]
AMID: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 9,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=0a1b2;"},
        {"type": "text", "text": "You write code.", "cache_control": None},
    ],
    "tools": [{**SHELL, "allowed_callers": ["direct"], "defer_loading": False, "strict": None, "type": None}],
    "tool_choice": {"type": "auto", "name": None, "disable_parallel_tool_use": None},
    "messages": [
        {"role": "user", "content": "fix"},
        {"role": "system", "content": [{"type": "text", "text": "The date changed."}]},
        {"role": "assistant", "content": BLOCKS},
        {"role": "user", "content": RESULTS},
        {"role": "system", "content": "Be quick."},
    ],
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "xhigh", "format": None},
}


def test_a_conversation_with_instructions_amid_and_nulls_anywhere(agents: Stage) -> None:
    answer = agents.http.post(f"{agents.url}/v1/messages?beta=true", json=AMID, headers=BETAS)
    assert answer.status_code == 200, answer.text
    assert prompt_of(agents).partition("]<")[2] == (
        "system>You write code.<user>fix<system>The date changed.<assistant>I look."
        '[Bash:{"a": null}][Bash:{}]<tool>(t1)<tool>b(t2)<user>and<system>Be quick.<assistant>'
    )
    named = ("model", "system", "tools", "tool_choice", "messages", "context_management", "output_config")
    counted = agents.http.post(f"{agents.url}/v1/messages/count_tokens", json={name: AMID[name] for name in named})
    assert counted.json() == {"input_tokens": len(agents["d0"].received[-1].token_ids)}


def test_a_conversation_that_ends_with_the_assistant_is_counted(agents: Stage) -> None:
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]
    counted = agents.http.post(f"{agents.url}/v1/messages/count_tokens", json={"model": "tiny", "messages": said})
    assert counted.json() == {"input_tokens": len("<user>x<assistant>yes<assistant>")}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([AMID["messages"][2], {"role": "user", "content": RESULTS[:2]}], "'messages[1]': calls without a tool_result"),
        ([AMID["messages"][2], {"role": "user", "content": "x"}], "'messages[1]': calls without a tool_result"),
        ([{"role": "user", "content": RESULTS[1:]}], "'messages[0].content[1].tool_use_id': 't2'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": BLOCKS[1:2] * 2}, *AMID["messages"][3:]],
         "'messages[1].content': two calls have the same id"),
        ([{"role": "user", "content": [RESULTS[0] | {"tool_use_id": "messages[7]"}]}],
         "'messages[0].content[0].tool_use_id': 'messages[7]' answers no open call"),
    ],
)  # fmt: skip
def test_calls_and_results_that_do_not_match_are_named_as_sent(agents: Stage, messages: Any, words: str) -> None:
    answer = agents.http.post(f"{agents.url}/v1/messages", json={**AMID, "messages": messages})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_the_error_for_a_long_prompt_has_the_words_that_agents_look_for(agents: Stage, path: str) -> None:
    def told(text: str, max_tokens: int) -> str:
        body = {"model": "tiny", "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}
        answer = agents.http.post(agents.url + path, json=body)
        assert answer.status_code == 400
        return str(answer.json()["error"]["message"])

    assert "prompt is too long: 5017 tokens > 4095 maximum" in told("x" * 5000, 1)
    assert "input length and `max_tokens` exceed context limit: 18 + 4090 > 4096" in told("x", 4090)


def test_the_anthropic_sdk_lists_the_model(agents: Stage) -> None:
    with anthropic.Anthropic(base_url=agents.url, api_key="-", max_retries=0, timeout=60) as sdk:
        (model,) = sdk.models.list(limit=1000)
        assert model == sdk.models.retrieve("tiny")
    assert (model.id, model.type, model.display_name, model.max_input_tokens) == ("tiny", "model", "tiny", 4096)
    assert model.created_at == datetime.fromtimestamp(agents.gateway.created, UTC)
    assert agents.http.get(f"{agents.url}/v1/models").json()["object"] == "list"


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/status", "/metrics", "/v1/models", "/openapi.json"])
def test_requests_that_only_probe_the_server_are_answered(agents: Stage, path: str) -> None:
    answer = agents.http.head(agents.url + path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/messages", message_create_params.MessageCreateParamsBase),
        ("/v1/messages/count_tokens", message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_field_of_the_betas_is_honoured_or_refused_by_name(path: str, params: Any) -> None:
    (endpoint,) = [e for e in ENDPOINTS if e.path == path]
    known = set(endpoint.body.model_fields) | set(endpoint.refused)
    assert set(typing.get_type_hints(params)) <= known


# What servers of other models added to messages comes back with a conversation.
HISTORY: list[Any] = [
    {"role": "system", "content": "Be", "cache_control": {"type": "ephemeral"}},
    {"role": "user", "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": None, "reasoning": "hm", "reasoning_details": [{"type": "reasoning.text"}]},
    {"role": "user", "content": "y", "name": None},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c", "type": "function", "index": None, "function": {"name": "run", "arguments": ""}}]},
    {"role": "tool", "tool_call_id": "c", "content": "z", "cache_control": {"type": "ephemeral"}},
]  # fmt: skip


def test_a_conversation_begun_at_another_server_continues(agents: Stage) -> None:
    body = CHAT | {
        "messages": HISTORY,
        "tools": None,
        "tool_choice": None,
        "stream_options": {"include_usage": None, "include_obfuscation": False},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": None}},
        "reasoning_effort": "max",
    }
    answer = agents.http.post(f"{agents.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert prompt_of(agents) == (
        "<system>Be\ndetailed thinking on<user>x<assistant><user>y<assistant>None[run:{}]<tool>z(c)<assistant>"
    )
