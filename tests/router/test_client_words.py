"""Tests that errors quote a client's fields and values as it sent them, whatever our own names are."""

from typing import Any

import pytest

from tests.router.conftest import Stage

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
USER = {"role": "user", "content": "x"}
# Names of fields in one API or another, as a client might choose for ids of its own.
WORDS = ["my tool_call_id", "max_tokens", "messages[0]", "'messages'", "tools[0].function", "].tool_calls", "prompt"]


def chat(word: str) -> dict[str, Any]:
    return {"messages": [{"role": "tool", "tool_call_id": word, "content": "x"}]}


def messages(word: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": word}]}], "max_tokens": 5}


def responses(word: str) -> dict[str, Any]:
    return {"input": [{"type": "function_call_output", "call_id": word, "output": "x"}]}


def previous(word: str) -> dict[str, Any]:
    return {"input": "x", "previous_response_id": word}


CASES = [
    (CHAT, chat, "messages[0].tool_call_id"),
    (MESSAGES, messages, "messages[0].content[0].tool_use_id"),
    (RESPONSES, responses, "input[0]"),
    (RESPONSES, previous, "previous_response_id"),
]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(("path", "body", "field"), CASES, ids=[field for _, _, field in CASES])
def test_an_id_is_quoted_as_it_was_sent(stage: Stage, path: str, body: Any, field: str, word: str) -> None:
    answer = stage.http.post(stage.url + path, json={"model": "tiny"} | body(word))
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith(f"'{field}': ")
    assert repr(word) in message


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": [USER], "max_tokens": 5000}, "max_tokens"),
        (RESPONSES, {"input": "x", "max_output_tokens": 5000}, "max_output_tokens"),
    ],
)
def test_each_api_names_its_own_field(stage: Stage, path: str, body: dict[str, Any], field: str) -> None:
    error = stage.http.post(stage.url + path, json={"model": "tiny"} | body).json()["error"]
    assert (error["param"], error["code"]) == (field, "context_length_exceeded")
    assert f"`{field}`" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        (RESPONSES, {"input": "x" * 5000}, "input"),
        ("/v1/completions", {"prompt": "x" * 5000}, "prompt"),
    ],
)
def test_each_api_names_what_is_too_long(stage: Stage, path: str, body: dict[str, Any], field: str) -> None:
    error = stage.http.post(stage.url + path, json={"model": "tiny"} | body).json()["error"]
    assert (error["param"], error["code"]) == (field, "context_length_exceeded")
    assert error["message"].startswith("the prompt is too long: ")
