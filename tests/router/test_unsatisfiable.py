"""Tests that unsatisfiable answer formats, and ones that other fields contradict, get a 400."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from router.text.schema_endless import endless
from tests.router.conftest import Stage, pair, served

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
HELLO = [{"role": "user", "content": "hello"}]
ENDLESS: dict[str, Any] = {"$ref": "#/$defs/n", "$defs": {"n": {"$ref": "#/$defs/n"}}}
MUTUAL: dict[str, Any] = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}


NESTED: dict[str, Any] = {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}


def chat(schema: dict[str, Any]) -> dict[str, Any]:
    spec = {"name": "x", "schema": schema, "strict": True}
    return {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": spec}}


def messages(schema: dict[str, Any]) -> dict[str, Any]:
    return {"messages": HELLO, "max_tokens": 9, "output_config": {"format": {"type": "json_schema", "schema": schema}}}


def responses(schema: dict[str, Any]) -> dict[str, Any]:
    spec = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    return {"input": "hello", "text": {"format": spec}}


@pytest.mark.parametrize("schema", [ENDLESS, MUTUAL, NESTED], ids=["itself", "each other", "required"])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, chat, "response_format.json_schema.schema"),
        (MESSAGES, messages, "output_config.format.schema"),
        (RESPONSES, responses, "text.format.schema"),
    ],
)
def test_a_reference_that_never_ends_is_named(
    stage: Stage, path: str, body: Any, field: str, schema: dict[str, Any]
) -> None:
    asked = len(stage["d0"].received)
    answer = stage.http.post(stage.url + path, json={"model": "tiny"} | body(schema))
    assert answer.status_code == 400, answer.text
    assert f"'{field}" in answer.json()["error"]["message"]
    assert len(stage["d0"].received) == asked


def obj(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def many(items: Any, least: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


SELF, NODE, LEAF = {"$ref": "#"}, {"$ref": "#/$defs/node"}, {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (NESTED, "#"),
        (ENDLESS, "#/$defs/n"),
        (MUTUAL, "#/$defs/a"),
        (obj(["n"], n=many(SELF, 1)), "#"),
        (obj(["n"], n={"anyOf": [SELF, obj(["m"], m=SELF)]}), "#"),
        (obj(["n"], n={"allOf": [LEAF, SELF]}), "#"),
        (obj(["n"], n={"type": "array", "prefixItems": [LEAF, SELF], "minItems": 2}), "#"),
        (NODE | {"$defs": {"node": obj(["next"], value=LEAF, next=NODE)}}, "#/$defs/node"),
        # A value ends where the part may be left out, empty, or something else.
        (obj([], n=SELF), None),
        (obj(["n"], n=many(SELF, 0)), None),
        (obj(["n"], n={"type": "array", "prefixItems": [LEAF, SELF], "minItems": 1}), None),
        (obj(["n"], n={"anyOf": [SELF, {"type": "null"}]}), None),
        (NODE | {"$defs": {"node": obj(["next"], next={"oneOf": [NODE, {"const": 0}]})}}, None),
        (obj(["n"], n={"$ref": "https://elsewhere"}), None),
    ],
)
def test_a_recursively_required_schema_is_found(schema: dict[str, Any], found: str | None) -> None:
    assert endless(schema) == found


CHOICE = {"structured_outputs": {"choice": ["yes"]}, "min_tokens": 20, "max_tokens": 30}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": HELLO} | CHOICE, "structured_outputs.choice"),
        (CHAT, chat({"type": "boolean"}) | {"min_tokens": 50}, "response_format.json_schema.schema"),
        ("/v1/completions", {"prompt": "x", "stop_token_ids": [9], **CHOICE}, "structured_outputs.choice"),
        (MESSAGES, messages({"type": "boolean"}), "output_config.format.schema"),
        (RESPONSES, responses({"type": "boolean"}), "text.format.schema"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_a_worker_finds_unsatisfiable_is_a_400(
    checkpoint: Path, path: str, body: dict[str, Any], field: str, stream: bool
) -> None:
    async def act() -> None:
        workers = pair()
        for worker in workers:
            worker.refuse, worker.refusals, worker.unservable = "its text is whole, but it may not end", 1, True
        async with served(checkpoint, workers) as stage, stage.client() as client:
            answer = await client.post(path, json={"model": "tiny", "stream": stream} | body)
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert f"'{field}' can't be kept beside" in error["message"]
            assert error.get("code", error.get("details", {}).get("error_code")) == "unsatisfiable_form"

    asyncio.run(act())
