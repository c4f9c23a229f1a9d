"""Tests which grammar each API's answer format sends to the workers, and which formats are refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from llguidance import LLMatcher

from router.api.chat_schema import ChatRequest
from router.api.formats import StructuredOutputs
from router.text.grammar import Schema
from router.text.schema_closed import closed
from router.text.schema_fault import SchemaFault, fault_of
from tests.router.conftest import Stage
from wire.protocol import Grammar

CHAT, TEXT, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
HELLO = [{"role": "user", "content": "hello"}]
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
BAD = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "strin"}}}}
TAG = {"begin": "<fn=a>", "schema": OBJECT, "end": "</fn>"}
Ask = Callable[..., Any]


def function(name: str = "f", parameters: Any = OBJECT, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def post(stage: Stage, path: str, **body: Any) -> Any:
    said = {"prompt": "x"} if path == TEXT else {"messages": HELLO}
    answer = stage.http.post(f"{stage.url}{path}", json={"model": "tiny", "max_tokens": 2, **said, **body})
    return answer


def sent(stage: Stage, path: str, **body: Any) -> Grammar | None:
    """The grammar that both workers get, which must compile; None for none."""
    for worker in stage.workers.values():
        worker.received.clear()
    answer = post(stage, path, **body)
    assert answer.status_code == 200, answer.text
    grammars = {worker.received[-1].sampling.grammar for worker in stage.workers.values()}
    assert len(grammars) == 1
    grammar = grammars.pop()
    assert grammar is None or LLMatcher.validate_grammar(grammar.text) == ""
    return grammar


def schema_format(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


FORMATS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"response_format": {"type": "json_object"}}, '%json {"type": "object"'),
    (TEXT, {"response_format": schema_format(OBJECT, strict=True)}, '"additionalProperties": false'),
    (CHAT, {"response_format": schema_format(OBJECT, description="d")}, '"lenient": true'),
    (CHAT, {"structured_outputs": {"json": json.dumps(OBJECT)}}, '"required": ["a"]'),
    (TEXT, {"structured_outputs": {"regex": "a/b"}}, "/a\\/b/"),
    (CHAT, {"structured_outputs": {"choice": ["yes", "no"]}}, '"yes" | "no"'),
    (CHAT, {"structured_outputs": {"grammar": 'root ::= "x"'}}, 'start: \\"x\\"'),
    (CHAT, {"structured_outputs": {"grammar": 'start: "x"'}}, "@given"),
    (CHAT, {"structured_outputs": {"structural_tag": {
        "type": "structural_tag", "structures": [TAG], "triggers": ["<fn="]}}}, 'until_0 "a>"'),
    (CHAT, {"tools": [function()], "tool_choice": "required"}, 'calls: "<tool_call>" call ("\\n"'),
    (CHAT, {"tools": [function()], "tool_choice": "required", "parallel_tool_calls": False},
     'calls: "<tool_call>" call\n'),
    (CHAT, {"tools": [function(), function("g")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
     '"name\\": \\"g\\"'),
    (CHAT, {"tools": [function(strict=True)]}, "until_call call"),
    (CHAT, {"tools": [function(strict=True)], "parallel_tool_calls": False}, "(until_call call)? REST"),
    (CHAT, {"tools": [function()], "response_format": {"type": "json_object"}}, "start: (json | calls)"),
    (CHAT, {"response_format": {"type": "json_object"}, "reasoning_effort": "high"}, "thought"),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": OBJECT}], "tool_choice": {"type": "any"}}, "calls:"),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": OBJECT}], "tool_choice": {"type": "tool", "name": "f"}},
     'calls: "<tool_call>" call\n'),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": OBJECT, "strict": True}]}, "until_call call"),
    (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": OBJECT}}}, "json: %json"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "words"), FORMATS, ids=range(len(FORMATS)))
def test_the_grammar_goes_to_both_workers(stage: Stage, path: str, body: dict[str, Any], words: str) -> None:
    grammar = sent(stage, path, **body)
    assert grammar is not None
    assert words in grammar.text


def test_free_text_has_no_grammar(stage: Stage) -> None:
    assert sent(stage, CHAT) is None
    assert sent(stage, CHAT, response_format={"type": "text"}) is None
    assert sent(stage, CHAT, tools=[function()]) is None
    assert sent(stage, CHAT, tools=[function(strict=True)], tool_choice="none") is None


def test_only_the_allowed_tools_are_offered(stage: Stage) -> None:
    named = {"type": "function", "function": {"name": "g"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    grammar = sent(stage, CHAT, tools=[function(), function("g")], tool_choice=choice)
    assert grammar is not None
    assert '\\"f\\"' not in grammar.text
    prompt = stage.gateway.tokenizer.decode(stage["d0"].received[-1].token_ids)
    assert '"name": "g"' in prompt
    assert '"name": "f"' not in prompt


def test_fields_for_the_server_are_not_shown_to_the_model(stage: Stage) -> None:
    sent(stage, CHAT, tools=[function(strict=True)])
    assert "strict" not in stage.gateway.tokenizer.decode(stage["d0"].received[-1].token_ids)


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"response_format": schema_format(BAD)},
     "response_format.json_schema.schema.properties.a.items", "Invalid type: strin"),
    (TEXT, {"response_format": schema_format({"properties": {"x": {"not": {}}}}, strict=True)},
     "response_format.json_schema.schema.properties.x", "not"),
    (CHAT, {"structured_outputs": {"json": {"$ref": "#/$defs/x"}}}, "structured_outputs.json", "does not exist"),
    (CHAT, {"structured_outputs": {"json": "{"}}, "structured_outputs.json", "no JSON"),
    (CHAT, {"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex", "look-around"),
    (CHAT, {"structured_outputs": {"regex": "a{"}}, "structured_outputs.regex", "regex"),
    (CHAT, {"structured_outputs": {"choice": []}}, "structured_outputs.choice", "1 item"),
    (CHAT, {"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]", "1 character"),
    (CHAT, {"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar", "line 1"),
    (CHAT, {"structured_outputs": {"grammar": "start: nope"}}, "structured_outputs.grammar", "nope"),
    (CHAT, {"structured_outputs": {"grammar": "start: <nope>"}}, "structured_outputs.grammar", "at 1(8)"),
    (CHAT, {"structured_outputs": {"grammar": "root ::= " + "(" * 5000}}, "structured_outputs.grammar", "recursion"),
    (CHAT, {"structured_outputs": {}}, "structured_outputs", "exactly one"),
    (CHAT, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one"),
    (CHAT, {"structured_outputs": {"backend": "x"}}, "structured_outputs.backend", "not supported"),
    (CHAT, {"guided_json": BAD}, "guided_json.properties.a.items", "strin"),
    (CHAT, {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
     "structured_outputs", "one of them"),
    (CHAT, {"structured_outputs": {"structural_tag": {
        "type": "structural_tag", "structures": [TAG], "triggers": ["<x"]}}},
     "structured_outputs.structural_tag", "none of the triggers"),
    (CHAT, {"structured_outputs": {"structural_tag": {
        "type": "structural_tag", "structures": [{**TAG, "schema": BAD}], "triggers": ["<fn="]}}},
     "structured_outputs.structural_tag.structures[0].schema.properties.a.items", "strin"),
    (CHAT, {"structured_outputs": {"structural_tag": {"type": "structural_tag", "format": {}}}},
     "structured_outputs.structural_tag.structures", "required"),
    (CHAT, {"structured_outputs": {"choice": ["x" * 200_000, "y" * 200_000]}}, "structured_outputs.choice", "400"),
    (CHAT, {"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "ends when"),
    (CHAT, {"tools": [function(), function("g", BAD, strict=True)]},
     "tools[1].function.parameters.properties.a.items", "strin"),
    (CHAT, {"tools": [function("g", BAD)], "tool_choice": "required"},
     "tools[0].function.parameters.properties.a.items", "strin"),
    (CHAT, {"tools": [function("g", {"type": "string"}, strict=True)]},
     "tools[0].function.parameters.type", "'object'"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_format_that_can_not_be_enforced_is_refused_by_its_path(
    stage: Stage, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    for worker in stage.workers.values():
        worker.received.clear()
    for _ in range(2):  # remembered, it is refused alike
        answer = post(stage, path, **body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param
        assert words in error["message"]
        assert "llguidance" not in error["message"]
    assert not any(worker.received for worker in stage.workers.values())


def test_messages_name_the_path_in_their_own_words(stage: Stage) -> None:
    for body, path in (
        ({"tools": [{"name": "f", "input_schema": BAD, "strict": True}]}, "tools[0].input_schema.properties.a.items"),
        ({"output_config": {"format": {"type": "json_schema", "schema": BAD}}},
         "output_config.format.schema.properties.a.items"),
    ):  # fmt: skip
        answer = post(stage, MESSAGES, **body)
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"'{path}': Invalid type: strin")


def test_a_schema_wrong_in_one_request_is_named_by_the_path_in_another(stage: Stage) -> None:
    first = post(stage, CHAT, structured_outputs={"json": BAD}).json()["error"]["param"]
    second = post(stage, CHAT, response_format=schema_format(BAD, strict=True)).json()["error"]["param"]
    assert (first, second) == (
        "structured_outputs.json.properties.a.items",
        "response_format.json_schema.schema.properties.a.items",
    )


RECURSIVE = {
    "$ref": "#/$defs/n",
    "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}, "v": {"format": "zip"}}}},
}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, ""),
        (BAD, ".properties.a.items"),
        ({"properties": 5}, ""),
        ({"properties": {"x": {"$ref": "#/$defs/t"}}, "$defs": {"t": {"anyOf": [{}, {"type": "x"}]}}},
         ".$defs.t.anyOf[1]"),
        ({"properties": {"x": {"$ref": "#/$defs/nope"}}}, ".properties.x"),
        ({"properties": {"a/b~c": {"type": "x"}}}, ".properties.a/b~c"),
        ({"additionalProperties": {"oneOf": [{"type": "string"}, {"minLength": 3}]}}, ".additionalProperties"),
        (RECURSIVE, ".$defs.n.properties.v"),
    ],
)  # fmt: skip
def test_the_innermost_part_at_fault_is_found(schema: dict[str, Any], path: str) -> None:
    fault = fault_of(Schema(schema, "s"))
    assert fault is not None
    assert fault.param == f"s{path}"
    assert "root" not in fault.reason


def test_sound_schemas_have_no_fault() -> None:
    assert fault_of(Schema(OBJECT, "s")) is None
    assert fault_of(Schema({"not": {}}, "s", strict=False)) is None
    assert isinstance(fault_of(Schema({"not": {}}, "s")), SchemaFault)


def test_the_search_in_a_large_schema_has_an_end() -> None:
    wide = {"properties": {f"p{i}": {"type": "string"} for i in range(400)} | {"last": {"type": "x"}}}
    assert fault_of(Schema(wide, "s")) == SchemaFault("s", "Invalid type: x")


CLOSED = {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"a": {}}}, {"properties": {"a": {}}, **CLOSED}),
        ({"type": "object"}, {"type": "object"}),
        ({"properties": {"a": {}}, "additionalProperties": True}, None),
        ({"properties": {"a": {}}, "patternProperties": {"b": {}}}, None),
        ({"properties": {"a": {}}, "required": ["b"]}, None),
        ({"properties": 5}, None),
        ({"properties": {"properties": {"const": {"properties": {"a": 1}}}}},
         {"properties": {"properties": {"const": {"properties": {"a": 1}}}}, **CLOSED}),
        ({"items": {"anyOf": [{"properties": {"a": {}}}, True]}},
         {"items": {"anyOf": [{"properties": {"a": {}}, **CLOSED}, True]}}),
        ({"$ref": "#/$defs/a", "description": "d", "$defs": {"a": {"properties": {"a": {}}}}},
         {"$ref": "#/$defs/a", "description": "d", "$defs": {"a": {"properties": {"a": {}}, **CLOSED}}}),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, None),
        ({"$defs": {"a": {"properties": {"a": {}}}},
          "items": {"$ref": "#/$defs/a", "properties": {"b": {}}, "required": ["b"]}}, None),
    ],
)  # fmt: skip
def test_objects_are_closed_where_none_is_lost(schema: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert closed(schema) == (schema if expected is None else expected)


def test_the_bodies_are_published_with_the_names_clients_use() -> None:
    assert set(StructuredOutputs.model_json_schema()["properties"]) == {
        "json", "regex", "choice", "grammar", "structural_tag",
    }  # fmt: skip
    assert {"response_format", "structured_outputs", "tool_choice"} <= set(ChatRequest.model_fields)
