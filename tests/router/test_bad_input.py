"""Tests that bad input gets a 4xx in OpenAI's format that names the field, and that the router serves on."""

import json
import socket
from typing import Any

import httpx
import pytest

from tests.router.conftest import Stage

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
F = {"type": "function", "function": {"name": "f"}}
CALLS: dict[str, Any] = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "x"}


def chat(**body: Any) -> tuple[str, str]:
    return CHAT, json.dumps({"model": "tiny", "messages": HELLO} | body)


def text(**body: Any) -> tuple[str, str]:
    return TEXT, json.dumps({"model": "tiny", "prompt": "hello"} | body)


def said(**message: Any) -> tuple[str, str]:
    return chat(messages=[message])


BAD = [
    ((CHAT, ""), None),
    ((CHAT, "{"), None),
    ((CHAT, "[]"), None),
    ((CHAT, '{"model": "tiny", "messages": "\\ud800"}'), None),
    ((CHAT, "[" * 100_000), None),
    ((CHAT, "{}"), "model"),
    (chat(model=7), "model"),
    (chat(messages=None), "messages"),
    (chat(messages=[]), "messages"),
    (chat(messages="hi"), "messages"),
    (chat(messages=["hi"]), "messages[0]"),
    (said(content="x"), "messages[0].role"),
    (said(role="function", content="x"), "messages[0].role"),
    (said(role="user"), "messages[0].content"),
    (said(role="user", content=3), "messages[0].content"),
    (said(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content[0].type"),
    (said(role="user", content="x", audio={}), "messages[0].audio"),
    (said(role="assistant"), "messages[0]"),
    (said(role="assistant", tool_calls=[{"id": "1", "function": {"name": "f"}}]),
     "messages[0].tool_calls[0].function.arguments"),
    (said(role="tool", content="x"), "messages[0].tool_call_id"),
    (chat(temperature="1"), "temperature"),
    (chat(temperature=True), "temperature"),
    (chat(temperature=float("nan")), "temperature"),
    (chat(temperature=float("inf")), "temperature"),
    (chat(temperature=-0.1), "temperature"),
    (chat(temperature=2.1), "temperature"),
    (chat(top_p=-0.1), "top_p"),
    (chat(top_p=1.1), "top_p"),
    (chat(top_k=-2), "top_k"),
    (chat(top_k=1.5), "top_k"),
    (chat(min_p=-1), "min_p"),
    (chat(presence_penalty=3), "presence_penalty"),
    (chat(frequency_penalty=-3), "frequency_penalty"),
    (chat(repetition_penalty=0), "repetition_penalty"),
    (chat(seed=2**64), "seed"),
    (chat(seed="x"), "seed"),
    (chat(n=0), "n"),
    (chat(n=17), "n"),
    (chat(stop=""), "stop[0]"),
    (chat(stop=["a"] * 17), "stop"),
    (chat(stop=[1]), "stop[0]"),
    (chat(stop_token_ids=[256]), "stop_token_ids[0]"),
    (chat(stop_token_ids=[-1]), "stop_token_ids[0]"),
    (chat(logit_bias={"256": 1}), "logit_bias"),
    (chat(logit_bias={"x": 1}), "logit_bias"),
    (chat(logit_bias={"5": 101}), "logit_bias.5"),
    (chat(logit_bias=[1]), "logit_bias"),
    (chat(max_tokens=0), "max_tokens"),
    (chat(max_tokens=1024), "max_tokens"),
    (chat(max_tokens=10**30), "max_tokens"),
    (chat(max_tokens=3, max_completion_tokens=4), "max_completion_tokens"),
    (chat(min_tokens=6, max_tokens=5), "min_tokens"),
    (chat(logprobs=3), "logprobs"),
    (chat(top_logprobs=3), "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (chat(stream="yes"), "stream"),
    (chat(stream_options={"include_usage": True}), "stream_options"),
    (chat(stream=True, stream_options={"other": 1}), "stream_options.other"),
    (chat(user=5), "user"),
    (chat(store="yes"), "store"),
    (chat(service_tier="priority"), "service_tier"),
    (chat(skip_special_tokens=False), "skip_special_tokens"),
    (chat(best_of=2), "best_of"),
    (chat(guided_json={"type": "object"}, guided_regex="a"), "guided_json"),
    (chat(continue_final_message=True), "continue_final_message"),
    (chat(reasoning={"exclude": True}), "reasoning.exclude"),
    (chat(response_format={"type": "xml"}), "response_format.type"),
    (chat(response_format={}), "response_format.type"),
    (chat(response_format="json"), "response_format.type"),
    (chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}), "response_format.json_schema.schema"),
    (chat(response_format={"type": "json_schema", "json_schema": {"name": "", "schema": {}}}),
     "response_format.json_schema.name"),
    (chat(messages=[{"role": "user", "content": "x"}] * 16_385), "messages"),
    (chat(tools=[F, F]), "tools"),
    (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
    (chat(tools=[{"type": "function", "function": {"name": "f", "strict": 1}}]), "tools[0].function.strict"),
    (chat(tools=[{"type": "web_search"}]), "tools[0].type"),
    (chat(tools=[{"type": "function"}]), "tools[0].function"),
    (chat(tool_choice="required"), "tool_choice"),
    (chat(tools=[F], tool_choice="any"), "tool_choice"),
    (chat(tools=[F], tool_choice={"type": "function", "function": {"name": "g"}}), "tool_choice"),
    (chat(tools=[F], tool_choice={"type": "function", "function": {}}), "tool_choice.function.name"),
    (chat(tools=[F], tool_choice={"type": "custom"}), "tool_choice.type"),
    (chat(tools=[F], tool_choice="required", ignore_eos=True), "ignore_eos"),
    (chat(parallel_tool_calls="no"), "parallel_tool_calls"),
    (chat(reasoning_effort="huge"), "reasoning_effort"),
    (chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs"),
    (chat(messages=[*HELLO, CALLS]), "messages"),
    (chat(messages=[*HELLO, CALLS, *HELLO]), "messages[2]"),
    (chat(messages=[*HELLO, {**CALLS, "tool_calls": CALLS["tool_calls"] * 2}]), "messages[1].tool_calls"),
    (chat(messages=[*HELLO, CALLS, RESULT, RESULT]), "messages[3].tool_call_id"),
    (said(role="tool", content="x", tool_call_id="1"), "messages[0].tool_call_id"),
    (("/tokenize", "{}"), "prompt"),
    (("/tokenize", '{"prompt": "x", "tools": []}'), "tools"),
    (("/tokenize", '{"prompt": "x", "add_generation_prompt": false}'), "add_generation_prompt"),
    (("/tokenize", '{"prompt": "x", "messages": []}'), "messages"),
    (("/detokenize", '{"tokens": [-1]}'), "tokens[0]"),
    (chat(tool_choice="auto"), "tool_choice"),
    (chat(echo=True), "echo"),
    (chat(functions=[]), "functions"),
    (chat(whatever=1), "whatever"),
    (chat(priority=2**40), "priority"),
    (text(prompt=None), "prompt"),
    (text(prompt=""), "prompt"),
    (text(prompt=[]), "prompt"),
    (text(prompt=[[]]), "prompt"),
    (text(prompt=["a", ""]), "prompt[1]"),
    (text(prompt={}), "prompt"),
    (text(prompt=["a", 1]), "prompt[1]"),
    (text(prompt=[1, True]), "prompt[0]"),
    (text(prompt=[1.5]), "prompt[0]"),
    (text(prompt=[256]), "prompt"),
    (text(prompt=[[3], [-1]]), "prompt[1]"),
    (text(prompt=[10**30]), "prompt"),
    (text(prompt=[5] * 1024), "prompt"),
    (text(prompt="x" * 100_000), "prompt"),
    (text(prompt=[5] * 1000, max_tokens=25), "max_tokens"),
    (text(prompt=["a"] * 100, n=16), "n"),
    (text(max_tokens=0), "max_tokens"),
    (text(logprobs=True), "logprobs"),
    (text(logprobs=21), "logprobs"),
    (text(best_of=2), "best_of"),
    (text(suffix="x"), "suffix"),
    (text(top_logprobs=2), "top_logprobs"),
    (text(messages=[]), "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "param"), BAD, ids=[f"{i}-{p}" for i, (_, p) in enumerate(BAD)])
def test_bad_input_is_a_400_that_names_the_field(stage: Stage, request_: tuple[str, str], param: str | None) -> None:
    path, body = request_
    answer = stage.http.post(f"{stage.url}{path}", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"]
    assert error["message"]
    if param is not None:
        assert param.split("[")[0].split(".")[-1] in error["message"]


def test_bad_input_leaves_nothing_behind_and_the_router_serves_on(stage: Stage) -> None:
    stage.http.post(f"{stage.url}{TEXT}", json={"model": "tiny", "prompt": [256]})
    assert stage.gateway.in_flight == 0
    good = stage.http.post(f"{stage.url}{TEXT}", json={"model": "tiny", "prompt": "x", "max_tokens": 2})
    assert good.status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_10_mb_is_a_413(stage: Stage, declared: bool) -> None:
    megabyte = b"x" * 2**20
    content = megabyte * 10 if declared else (megabyte for _ in range(10))
    answer = stage.http.post(f"{stage.url}{CHAT}", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_declared_too_large_is_refused_before_it_is_sent(stage: Stage) -> None:
    host, port = httpx.URL(stage.url).host, httpx.URL(stage.url).port
    with socket.create_connection((host, port or 80), timeout=60) as connection:
        connection.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n" % CHAT.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_half_closed_connections_do_no_harm(stage: Stage) -> None:
    host, port = httpx.URL(stage.url).host, httpx.URL(stage.url).port
    for head in (b"", b"PO", b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{" % CHAT.encode()):
        with socket.create_connection((host, port or 80), timeout=60) as connection:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):  # the router ends the connection too
                pass
    assert stage.http.get(f"{stage.url}/ready").status_code == 200
    assert stage.gateway.in_flight == 0
