"""Tests images, files and documents that tools return, and references to stored items."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.router.conftest import Stage, pair, served

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
USER = {"role": "user", "content": "x"}
PLAIN = {"type": "text", "media_type": "text/plain", "data": "seven"}
BYTES = {"type": "base64", "media_type": "image/png", "data": "aGk="}
NOTE = "[image left out: this model reads text alone]"
FILE = "[file left out: this model reads text alone]"


def chat(*parts: dict[str, Any]) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "c", "content": list(parts)}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, result], "max_tokens": 3}


def messages(*parts: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": list(parts)}
    said = [USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return {"messages": said, "max_tokens": 3}


def responses(*parts: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": list(parts)}
    return {"input": [USER, call, result], "max_output_tokens": 3}


TEXT = {"type": "text", "text": "see"}
LEFT_OUT: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, chat(TEXT, {"type": "image_url", "image_url": {"url": "data:,"}}), NOTE, "messages[2].content[1].type"),
    (MESSAGES, messages(TEXT, {"type": "image", "source": BYTES}), NOTE, "messages[2].content[0].content[1].type"),
    (MESSAGES, messages({"type": "document", "source": BYTES}), FILE, "messages[2].content[0].content[0].type"),
    (RESPONSES, responses({"type": "input_image", "image_url": "data:,"}), NOTE, "input[2].output[0].type"),
    (RESPONSES, responses({"type": "input_file", "file_data": "x"}), FILE, "input[2].output[0].type"),
]
READ: list[tuple[dict[str, Any], str]] = [
    ({"type": "document", "source": PLAIN, "title": "T", "context": "C"}, "T\nC\nseven"),
    ({"type": "document", "source": {"type": "content", "content": "seven"}}, "seven"),
    ({"type": "document", "source": {"type": "content", "content": [TEXT]}, "citations": {"enabled": True}}, "see"),
    ({"type": "search_result", "source": "https://x", "title": "T", "content": [TEXT]}, "T\nhttps://x\nsee"),
]


def prompt_of(stage: Stage) -> str:
    tokens = stage["p0"].received[-1].token_ids
    return stage.gateway.tokenizer.decode(tokens, skip_special=False)


@pytest.mark.parametrize(("path", "body", "note", "_"), LEFT_OUT, ids=range(len(LEFT_OUT)))
def test_an_attachment_that_is_not_text_becomes_a_note(
    stage: Stage, path: str, body: dict[str, Any], note: str, _: str
) -> None:
    answer = stage.http.post(stage.url + path, json={"model": "tiny"} | body)
    assert answer.status_code == 200, answer.text
    assert note in prompt_of(stage)


def test_attachments_are_refused_if_the_operator_says_so(checkpoint: Path) -> None:
    async def act() -> None:
        async with served(checkpoint, pair(), attachments="refuse") as stage, stage.client() as client:
            for path, body, _, field in LEFT_OUT:
                answer = await client.post(path, json={"model": "tiny"} | body)
                assert answer.status_code == 400, answer.text
                assert f"'{field}': the model reads text alone" in answer.json()["error"]["message"]
            assert (await client.post(CHAT, json={"model": "tiny"} | chat(TEXT))).status_code == 200

    asyncio.run(act())


@pytest.mark.parametrize(("block", "text"), READ, ids=range(len(READ)))
def test_documents_and_search_results_are_text(stage: Stage, block: dict[str, Any], text: str) -> None:
    for body in (messages(block), {"messages": [{"role": "user", "content": [block]}], "max_tokens": 3}):
        answer = stage.http.post(stage.url + MESSAGES, json={"model": "tiny"} | body)
        assert answer.status_code == 200, answer.text
        assert text in prompt_of(stage)


def test_an_item_that_is_kept_is_found_by_its_id(stage: Stage) -> None:
    def ask(said: Any) -> Any:
        body = {"model": "tiny", "input": said, "max_output_tokens": 3}
        return stage.http.post(stage.url + RESPONSES, json=body)

    first = ask("the first word").json()
    asked = stage.http.get(f"{stage.url}{RESPONSES}/{first['id']}/input_items").json()["data"][0]["id"]
    references = [{"type": "item_reference", "id": i} for i in (asked, first["output"][0]["id"])]
    again = ask([*references, USER])
    assert again.status_code == 200, again.text
    said = first["output"][0]["content"][0]["text"]
    assert prompt_of(stage) == f"<user>the first word<assistant>{said}<user>x<assistant>"
    # What was asked with them is kept by value.
    kept = stage.http.get(f"{stage.url}{RESPONSES}/{again.json()['id']}/input_items").json()["data"]
    assert [item["type"] for item in kept] == ["message"] * 3
    assert stage.http.delete(f"{stage.url}{RESPONSES}/{first['id']}").status_code == 200
    assert stage.http.delete(f"{stage.url}{RESPONSES}/{again.json()['id']}").status_code == 200
    gone = ask(references)
    assert (gone.status_code, gone.json()["error"]["code"]) == (400, "item_not_found")
