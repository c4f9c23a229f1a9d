"""Tests tools other than functions: namespaces, custom tools, clients' shells, and tools of the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.router.conftest import Stage
from tests.router.scripted import talking

PATCH = '*** Begin Patch\n+x = "é"\n*** End Patch'
FUNCTION = {"type": "function", "name": "read", "parameters": {"type": "object"}}
NAMESPACE = {"type": "namespace", "name": "files", "description": "d", "tools": [FUNCTION]}
CUSTOM = {"type": "custom", "name": "apply_patch", "description": "Patches files"}
GRAMMAR = CUSTOM | {"format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}}
SHELL = {"type": "local_shell"}
WEB = {"type": "web_search", "external_web_access": True}
CALLS = {
    "namespace": ("files__read", {"path": "a"}),
    "custom": ("apply_patch", {"input": PATCH}),
    "shell": ("local_shell", {"command": ["ls", "-l"], "timeout_ms": 9}),
}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def say(prompt: str) -> str:
    """The call that the user names, or its result."""
    if "<tool>" in prompt:
        return prompt.rsplit("<tool>", 1)[1].split("(", maxsplit=1)[0]
    name, arguments = CALLS[prompt.rsplit("<user>", 1)[1].split("<", maxsplit=1)[0]]
    content = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{content}\n</tool_call>"


@pytest.fixture(scope="module")
def stage(checkpoint: Path) -> Iterator[Stage]:
    with talking(checkpoint, say) as started:
        yield started


def ask(stage: Stage, said: Any, **more: Any) -> Any:
    body = {"model": "tiny", "input": said, "tools": [NAMESPACE, CUSTOM, SHELL]} | more
    answer = stage.http.post(f"{stage.url}/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def events(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line.startswith("data: ")]
    for event in found:
        EVENT.validate_python(event)
    return found


def item_of(stage: Stage, word: str, *, stream: bool) -> dict[str, Any]:
    answer = ask(stage, word, stream=stream)
    body = events(answer.text)[-1]["response"] if stream else answer.json()
    Response.model_validate(body)
    (item,) = body["output"]
    assert item["status"] == "completed"
    return item


@pytest.mark.parametrize("stream", [False, True])
def test_a_namespace_s_function_comes_back_with_its_namespace(stage: Stage, stream: bool) -> None:
    item = item_of(stage, "namespace", stream=stream)
    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "files", "read")
    assert json.loads(item["arguments"]) == {"path": "a"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_gets_free_text(stage: Stage, stream: bool) -> None:
    item = item_of(stage, "custom", stream=stream)
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", PATCH)


@pytest.mark.parametrize("stream", [False, True])
def test_a_local_shell_gets_a_command(stage: Stage, stream: bool) -> None:
    item = item_of(stage, "shell", stream=stream)
    assert item["type"] == "local_shell_call"
    action = item["action"]
    assert (action["type"], action["command"], action["timeout_ms"]) == ("exec", ["ls", "-l"], 9)


def test_a_custom_call_streams_its_input(stage: Stage) -> None:
    found = events(ask(stage, "custom", stream=True).text)
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "custom_tool_call_input.delta"),
        *("custom_tool_call_input.done", "output_item.done", "completed"),
    ]
    assert found[2]["item"]["input"] == ""
    assert "".join(event["delta"] for event in found if "delta" in event) == PATCH


@pytest.mark.parametrize("word", CALLS)
def test_a_call_and_its_output_come_back_as_history(stage: Stage, word: str) -> None:
    item = item_of(stage, word, stream=False)
    output = {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "done 7"}
    answer = ask(stage, [{"role": "user", "content": word}, item, output]).json()
    assert answer["output"][0]["content"][0]["text"] == "done 7"
    name, arguments = CALLS[word]
    prompt = stage.gateway.tokenizer.decode(stage["p0"].received[-1].token_ids)
    called = prompt.split("<assistant>", 1)[1]
    assert name in called
    assert json.dumps(arguments, ensure_ascii=False) in called
    kept = ask(stage, word).json()
    answered = output | {"call_id": kept["output"][0]["call_id"]}
    after = ask(stage, [answered], previous_response_id=kept["id"]).json()
    assert after["output"][0]["content"][0]["text"] == "done 7"


def test_the_model_sees_a_custom_tool_s_grammar(stage: Stage) -> None:
    ask(stage, "custom", tools=[GRAMMAR])
    prompt = stage.gateway.tokenizer.decode(stage["p0"].received[-1].token_ids)
    assert "must match this lark grammar" in prompt


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview", "file_search", "code_interpreter", "mcp"])
def test_a_tool_of_the_server_is_left_out_with_a_warning(stage: Stage, kind: str) -> None:
    answer = ask(stage, "custom", tools=[CUSTOM, {"type": kind, "more": 1}])
    assert f"tools[1] {kind}" in answer.headers["warning"]
    assert [tool["type"] for tool in answer.json()["tools"]] == ["custom"]
    assert "warning" not in ask(stage, "custom").headers


@pytest.mark.parametrize("choice", ["required", {"type": "web_search"}])
def test_a_tool_of_the_server_that_is_forced_is_refused(stage: Stage, choice: Any) -> None:
    body = {"model": "tiny", "input": "custom", "tools": [WEB], "tool_choice": choice}
    answer = stage.http.post(f"{stage.url}/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ({"type": "custom", "name": "apply_patch"}, "apply_patch"),
        ({"type": "function", "name": "read", "namespace": "files"}, "files__read"),
    ],
    ids=["custom", "namespace"],
)
def test_any_tool_of_the_client_may_be_forced(stage: Stage, choice: Any, name: str) -> None:
    ask(stage, "custom", tool_choice=choice)
    grammar = stage["d0"].received[-1].sampling.grammar
    assert grammar is not None
    assert name in grammar.text
