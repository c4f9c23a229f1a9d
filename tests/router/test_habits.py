"""Tests fields that clients send by habit: ones without effect are accepted, others are honoured."""

import gzip
import json
import zlib
from typing import Any

import pytest
import zstandard

from router.http.json import encode
from tests.router.conftest import Stage

CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
HELLO = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO, "max_tokens": 3},
    TEXT: {"prompt": "hello", "max_tokens": 3},
    MESSAGES: {"messages": HELLO, "max_tokens": 3},
    RESPONSES: {"input": "hello", "max_output_tokens": 3},
}
TOOL = {"name": "f", "input_schema": {"type": "object"}, "input_examples": [{}]}
# An assistant's turn as gateways to several vendors give it.
GATEWAYS = {
    "role": "assistant",
    "content": None,
    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}],
    "provider_specific_fields": {"refusal": None},
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"},
         "provider_specific_fields": {"thought_signature": "s"}, "extra_content": {"google": {}}},
    ],
}  # fmt: skip
CITED = {"type": "text", "text": "x", "citations": [{"type": "char_location", "cited_text": "y"}]}
FUNCTION = {"type": "function", "name": "f", "defer_loading": False, "allowed_callers": ["direct"], "output_schema": {}}
PASSES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"verbosity": "low"}),
    (CHAT, {"store": True}),
    (CHAT, {"service_tier": "flex"}),
    (CHAT, {"best_of": 1}),
    (CHAT, {"skip_special_tokens": True, "spaces_between_special_tokens": True}),
    (CHAT, {"include_stop_str_in_output": False}),
    (CHAT, {"messages": [*HELLO, {"role": "assistant", "content": None, "refusal": "no"}, *HELLO]}),
    (CHAT, {"messages": [*HELLO, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, *HELLO]}),
    (
        CHAT,
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": "x", "annotations": [{"type": "url_citation"}]},
                *HELLO,
            ]
        },
    ),
    (CHAT, {"messages": [*HELLO, GATEWAYS, {"role": "tool", "tool_call_id": "1", "content": "x"}]}),
    (TEXT, {"store": True, "best_of": 1, "skip_special_tokens": True}),
    (MESSAGES, {"messages": [*HELLO, {"role": "assistant", "content": [CITED]}, *HELLO]}),
    (MESSAGES, {"tools": [TOOL]}),
    (MESSAGES, {"mcp_servers": [], "speed": "standard", "betas": ["x-2026-01-01"]}),
    (RESPONSES, {"client_metadata": {"a": "b"}}),
    (RESPONSES, {"text": {"verbosity": "low"}, "service_tier": "flex"}),
    (RESPONSES, {"include": ["web_search_call.action.sources", "file_search_call.results"]}),
    (RESPONSES, {"tools": [FUNCTION, {"type": "tool_search"}, {"type": "computer"}]}),
    (RESPONSES, {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}),
]


def post(stage: Stage, path: str, **more: Any) -> Any:
    answer = stage.http.post(stage.url + path, json={"model": "tiny"} | BODIES[path] | more)
    assert answer.status_code == 200, answer.text
    return answer


def prompt_of(stage: Stage) -> str:
    """The text of the last request's prompt at the workers."""
    tokens = stage["p0"].received[-1].token_ids
    return stage.gateway.tokenizer.decode(tokens, skip_special=False)


@pytest.mark.parametrize(("path", "habit"), PASSES, ids=[f"{p} {','.join(h)}" for p, h in PASSES])
def test_a_habit_passes(stage: Stage, path: str, habit: dict[str, Any]) -> None:
    post(stage, path, **habit)


@pytest.mark.parametrize("path", BODIES)
def test_no_mass_at_all_leaves_the_best_token(stage: Stage, path: str) -> None:
    post(stage, path, top_p=0)
    sampling = stage["p0"].received[-1].sampling
    assert (sampling.top_k, sampling.top_p) == (1, 1.0)


def test_the_name_that_requests_may_use_is_a_models_too(stage: Stage) -> None:
    assert stage.http.get(f"{stage.url}/v1/models/auto").json()["id"] == "tiny"


@pytest.mark.parametrize(
    ("path", "wrong", "told"),
    [
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "any"}},
         "'tool_choice.type' must be one of 'function', 'allowed_tools'"),
        (RESPONSES, {"tools": [{"type": "nonsense"}]},
         "'tools[0].type' must be one of 'function', 'custom', 'namespace', 'local_shell'"),
    ],
)  # fmt: skip
def test_a_refusal_lists_values_that_may_be_sent(stage: Stage, path: str, wrong: dict[str, Any], told: str) -> None:
    answer = stage.http.post(stage.url + path, json={"model": "tiny"} | BODIES[path] | wrong)
    assert answer.json()["error"]["message"] == told


@pytest.mark.parametrize(
    ("habit", "lark"),
    [
        ({"guided_json": {"type": "object"}}, '%json {"type": "object"'),
        ({"guided_json": '{"type": "object"}'}, '%json {"type": "object"'),
        ({"guided_regex": "a/b"}, "/a\\/b/"),
        ({"guided_choice": ["yes", "no"]}, '"yes" | "no"'),
        ({"guided_grammar": 'root ::= "x"'}, 'start: \\"x\\"'),
    ],
    ids=["json", "json as text", "regex", "choice", "grammar"],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_guided_fields_hold_the_answer_to_a_form(stage: Stage, path: str, habit: dict[str, Any], lark: str) -> None:
    post(stage, path, **habit)
    grammar = stage["d0"].received[-1].sampling.grammar
    assert grammar is not None
    assert lark in grammar.text


@pytest.mark.parametrize(
    "habit",
    [
        {"enable_thinking": True},
        {"thinking": {"type": "enabled", "budget_tokens": 9}},
        {"thinking": True},
        {"reasoning": {"effort": "high"}},
        {"reasoning": {"enabled": True, "max_tokens": 9}},
    ],
    ids=str,
)
def test_each_switch_of_reasoning_works(stage: Stage, habit: dict[str, Any]) -> None:
    post(stage, CHAT, **habit)
    assert prompt_of(stage).startswith("<system>detailed thinking on<user>")
    post(stage, CHAT)
    assert prompt_of(stage).startswith("<user>")


def test_the_last_message_is_continued(stage: Stage) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "It is <b>"}]
    post(stage, CHAT, messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert prompt_of(stage) == "<user>hello<assistant>It is <b>"
    body = {"messages": messages, "continue_final_message": True}
    counted = stage.http.post(f"{stage.url}/tokenize", json=body).json()
    assert counted["tokens"] == list(stage["p0"].received[-1].token_ids)


def test_a_prompt_may_end_after_the_last_message(stage: Stage) -> None:
    post(stage, CHAT, add_generation_prompt=False)
    assert prompt_of(stage) == "<user>hello"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_each_chunk_has_the_usage_so_far(stage: Stage, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    text = post(stage, path, stream=True, stream_options=options, max_tokens=5).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line.startswith("data: {")]
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert counts[-1] == 5
    assert {event["usage"]["prompt_tokens"] for event in events} == {events[-1]["usage"]["prompt_tokens"]}


COMPRESSED = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("encoding", COMPRESSED)
def test_an_encoded_body_is_read(stage: Stage, path: str, encoding: str) -> None:
    body = COMPRESSED[encoding](json.dumps({"model": "tiny"} | BODIES[path]).encode())
    answer = stage.http.post(stage.url + path, content=body, headers={"content-encoding": encoding})
    assert answer.status_code == 200, answer.text


def test_a_bare_deflate_is_read(stage: Stage) -> None:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(json.dumps({"model": "tiny"} | BODIES[CHAT]).encode()) + packer.flush()
    assert stage.http.post(stage.url + CHAT, content=body, headers={"content-encoding": "deflate"}).status_code == 200


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_decoded_body_is_bounded(stage: Stage, encoding: str) -> None:
    most = stage.gateway.config.max_body_bytes
    body = COMPRESSED[encoding](b'{"model": "' + b"x" * most)
    answer = stage.http.post(stage.url + CHAT, content=body, headers={"content-encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert len(body) < most // 100


@pytest.mark.parametrize("encoding", [*COMPRESSED, "br", "gzip, gzip"])
def test_a_body_not_in_its_encoding_is_refused(stage: Stage, encoding: str) -> None:
    answer = stage.http.post(stage.url + CHAT, content=b"{}", headers={"content-encoding": encoding})
    status, code = (400, "invalid_encoding") if encoding in COMPRESSED else (415, "unsupported_encoding")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert encoding in answer.json()["error"]["message"]


def test_no_answer_holds_a_line_end_of_unicode(stage: Stage) -> None:
    text = "a\u2028b\u2029c\x85d\u000be"
    sent = encode({"text": text})
    assert json.loads(sent) == {"text": text}
    assert len(sent.decode().splitlines()) == 1
    echoed = post(stage, TEXT, prompt=text, echo=True, max_tokens=0)
    assert echoed.json()["choices"][0]["text"] == text
    assert len(echoed.text.splitlines()) == 1
    refused = stage.http.post(stage.url + TEXT, json={"model": text, "prompt": "x"})
    assert len(refused.text.splitlines()) == 1
