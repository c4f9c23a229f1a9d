"""Tests that bad input to the responses API gets a 4xx that names the field before a worker is asked."""

import json
import re
from typing import Any

import pytest

from tests.router.conftest import Stage

PATH = "/v1/responses"
F: dict[str, Any] = {"type": "function", "name": "f", "parameters": {}}
SAID = {"role": "user", "content": "x"}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "x"}
LOGPROBS = ["message.output_text.logprobs"]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [3]}, "input[0].type"),
    ({"input": [{"content": "x"}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
    ({"input": [{"type": "computer_call_output"}]}, "input[0].type"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"role": "user", "content": "x", "audio": {}}]}, "input[0].audio"),
    ({"input": [SAID, CALL]}, "input"),
    ({"input": [SAID, CALL, SAID]}, "input[2]"),
    ({"input": [SAID, CALL, CALL, RESULT]}, "input[2]"),
    ({"input": [SAID, RESULT]}, "input[1]"),
    ({"input": [SAID, CALL, {**CALL, "call_id": "2"}, RESULT, {**CALL, "call_id": "3"}]}, "input[4]"),
    ({"input": [SAID, {"type": "function_call", "call_id": "1", "name": "f"}, RESULT]}, "input[1].arguments"),
    ({"instructions": ["x"]}, "instructions"),
    ({"tools": [F, F]}, "tools"),
    ({"tools": [{"type": "teleport"}]}, "tools[0].type"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]}, "tools[0].tools[0].type"),
    ({"tools": [{**F, "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{**F, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [F], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"tools": [F], "tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
    ({"tools": [F], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{**F, "parameters": None,
                                                                                       "name": "g"}]}}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"text": {"verbosity": "none"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}}, "text.format.schema"),
    ({"tools": [{**F, "parameters": {"type": "array"}}], "tool_choice": "required"}, "tools[0].parameters.type"),
    ({"tools": [{**F, "strict": True, "parameters": {"properties": {"a": {"type": "nothing"}}}}]},
     "tools[0].parameters.properties.a"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 1024}, "max_output_tokens"),
    ({"input": "x" * 1024}, "input"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": 21, "include": LOGPROBS}, "top_logprobs"),
    ({"include": LOGPROBS, "tools": [F]}, "include"),
    ({"include": LOGPROBS, "reasoning": {"effort": "low"}}, "include"),
    ({"include": ["nonsense"]}, "include[0]"),
    ({"truncation": "middle"}, "truncation"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"background": True, "store": False}, "background"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
    ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"conversation": "x"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"messages": []}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), BAD, ids=[f"{i}-{p}" for i, (_, p) in enumerate(BAD)])
def test_bad_input_is_a_400_that_names_the_field(stage: Stage, change: dict[str, Any], param: str) -> None:
    asked = len(stage["p0"].received)
    body = {"model": "tiny", "input": "x", "max_output_tokens": 5} | change
    answer = stage.http.post(f"{stage.url}{PATH}", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"]
    named = re.split(r"[.\[]", param)[0] in error["message"]
    assert named or error["code"] == "context_length_exceeded"
    assert (stage.gateway.in_flight, len(stage["p0"].received)) == (0, asked)


QUERIES = [
    ("GET", "", "?x=1", "x"),
    ("GET", "", "?stream=maybe", "stream"),
    ("GET", "", "?stream=true", "stream"),
    ("GET", "", "?starting_after=3", "starting_after"),
    ("GET", "", "?stream=true&starting_after=-1", "starting_after"),
    ("GET", "", "?include[]=nonsense", "include"),
    ("GET", "", "?include_obfuscation=true", "include_obfuscation"),
    ("GET", "/input_items", "?limit=0", "limit"),
    ("GET", "/input_items", "?limit=101", "limit"),
    ("GET", "/input_items", "?order=up", "order"),
    ("GET", "/input_items", "?after=msg_none", "after"),
    ("DELETE", "", "?x=1", "x"),
    ("POST", "/cancel", "?x=1", "x"),
]


@pytest.fixture(scope="module")
def kept(stage: Stage) -> str:
    body = {"model": "tiny", "input": "x", "max_output_tokens": 5}
    response_id: str = stage.http.post(f"{stage.url}{PATH}", json=body).json()["id"]
    return response_id


@pytest.mark.parametrize(("method", "below", "query", "param"), QUERIES)
def test_a_bad_query_is_named(stage: Stage, kept: str, method: str, below: str, query: str, param: str) -> None:
    answer = stage.http.request(method, f"{stage.url}{PATH}/{kept}{below}{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert stage.http.get(f"{stage.url}{PATH}/{kept}").status_code == 200


def test_the_usual_errors(stage: Stage) -> None:
    url = f"{stage.url}{PATH}"
    assert stage.http.post(url, content=b"{").json()["error"]["code"] == "invalid_json"
    other = stage.http.post(url, content=json.dumps({"model": "gpt", "input": "x"}))
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    for method, path in (("GET", ""), ("PUT", ""), ("POST", "/resp_x"), ("GET", "/resp_x/cancel")):
        answer = stage.http.request(method, url + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert stage.http.get(f"{url}/resp_x").json()["error"]["code"] == "response_not_found"
