"""Tests that an answer that a client sends back unchanged has the generated tokens in the next turn."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.access.keys import hashed, make_key
from router.text.exact import ExactTurns, Said
from router.text.template import ChatTemplate
from router.text.tokenizer import Tokenizer
from tests.router.conftest import TEMPLATE, Stage, staged
from tests.router.fake_worker import Answer, FakeWorker, Request

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
TOKENIZER = Tokenizer(str(NANO))
KEYS = {"acme": make_key(), "other": make_key()}
# Neither as the template would write it nor as the tokenizer would cut it.
CALL = '<tool_call>\n{"name":"look","arguments":{"where":"here",  "n":1}}\n</tool_call>'
MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": TOOL}]


def spelled(text: str) -> list[int]:
    """A tokenizer with one token per character, and the markers."""
    ids: list[int] = []
    while text:
        marker = next((m for m in MARKERS if text.startswith(m)), text[0])
        ids += TOKENIZER.encode(marker, False)
        text = text[len(marker) :]
    return ids


def say(request: Request) -> Answer:
    """The tokens of the text after "say " in the last turn, and the end token."""
    asked = TOKENIZER.decode(request.token_ids, skip_special=False).rpartition("</role>say ")[2]
    ids = [*spelled(asked.partition("<|role_end|>")[0].replace("CALL", CALL)), TOKENIZER.eos_ids[-1]]
    return lambda offset: ids[min(offset, len(ids) - 1)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("".join(f"{tenant} sha256:{hashed(key)}\n" for tenant, key in KEYS.items()))
    options: dict[str, Any] = {"answer": say, "max_model_len": 4096}
    workers = [FakeWorker("p0", "prefill", **options), FakeWorker("d0", "decode", **options)]
    with staged(NANO, workers, api_keys=str(keys)) as started:
        yield started


def ask(stage: Stage, path: str, tenant: str = "acme", **body: Any) -> dict[str, Any]:
    """Send a request; returns its answer."""
    headers = {"authorization": f"Bearer {KEYS[tenant]}"}
    answer = stage.http.post(stage.url + path, json={"model": "auto", **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    out: dict[str, Any] = answer.json()
    return out


def chat(stage: Stage, *turns: dict[str, Any], tenant: str = "acme", **body: Any) -> dict[str, Any]:
    """Send a chat; returns the assistant's message."""
    answer = ask(stage, "/v1/chat/completions", tenant, messages=turns, tools=TOOLS, **body)
    message: dict[str, Any] = answer["choices"][0]["message"]
    return message


def prompt(stage: Stage) -> list[int]:
    """The tokens of the last prompt that the workers got."""
    return list(stage["d0"].received[-1].token_ids)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def results(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": c["id"], "content": "3"} for c in message.get("tool_calls") or ()]


SAID = ["Hello there.", "I look.\nCALL", "CALL", "CALL\nCALL", "a <role> of é 語 \U0001f600"]


@pytest.mark.parametrize("said", SAID)
def test_the_next_turn_has_the_generated_tokens(stage: Stage, said: str) -> None:
    asked = user(f"say {said}")
    message = chat(stage, asked)
    first = prompt(stage)
    chat(stage, asked, message, *results(message), user("go on"))
    second = prompt(stage)
    generated = spelled(said.replace("CALL", CALL))
    assert second[: len(first) + len(generated) + 1] == [*first, *generated, TOKENIZER.eos_ids[-1]]
    written = TOKENIZER.decode(second[len(first) + len(generated) :], skip_special=False)
    assert written.startswith("<|role_end|><role>")
    assert written.endswith("<role>HUMAN</role>go on<|role_end|><role>ASSISTANT</role>")


def rewritten(stage: Stage) -> int:
    """The worker's `Prefix.rewritten_tokens` of the last prompt."""
    return stage["p0"].received[-1].prefix.rewritten_tokens


def test_turns_rendered_to_other_tokens_than_before_are_noticed(stage: Stage) -> None:
    turns = [{"role": "system", "content": "Be short."}, user("say Hello again.")]
    message = chat(stage, *turns)
    first = prompt(stage)
    assert rewritten(stage) == 0
    turns += [message, user("go on")]
    chat(stage, *turns)
    assert rewritten(stage) == 0
    chat(stage, *turns)
    assert rewritten(stage) == 0
    chat(stage, *turns, enable_thinking=True)
    assert rewritten(stage) > len(first)
    # Instructions and tools are known by themselves: as thinking changed them, and as they were.
    chat(stage, turns[0], user("say Other words."))
    assert 0 < rewritten(stage) < len(first)
    chat(stage, turns[0], user("say Yet others."))
    assert rewritten(stage) == 0
    chat(stage, *turns, tenant="other")
    assert rewritten(stage) == 0


def test_a_stream_does_too(stage: Stage) -> None:
    asked = user("say I look.\nCALL")
    headers = {"authorization": f"Bearer {KEYS['acme']}"}
    body = {"model": "auto", "messages": [asked], "tools": TOOLS, "stream": True, "max_tokens": 500, "seed": 5}
    text = stage.http.post(f"{stage.url}/v1/chat/completions", json=body, headers=headers).text
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in text.split("\n") if line.startswith("data: {")]
    content = "".join(d.get("content") or "" for d in deltas)
    calls = [c for d in deltas for c in d.get("tool_calls", ())]
    arguments = "".join(c["function"].get("arguments", "") for c in calls)
    call = {"id": calls[0]["id"], "type": "function", "function": {"name": "look", "arguments": arguments}}
    first = prompt(stage)
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    chat(stage, asked, message, *results(message))
    generated = spelled(f"I look.\n{CALL}")
    assert prompt(stage)[: len(first) + len(generated)] == [*first, *generated]


def test_messages_give_back_values_and_count_the_same(stage: Stage) -> None:
    tools = [{"name": "look", "input_schema": TOOL["parameters"]}]
    asked: list[dict[str, Any]] = [user("say I look.\nCALL")]
    answer = ask(stage, "/v1/messages", messages=asked, tools=tools, max_tokens=500)
    first, generated = prompt(stage), spelled(f"I look.\n{CALL}")
    use = next(block for block in answer["content"] if block["type"] == "tool_use")
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "3"}
    asked += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
    ask(stage, "/v1/messages", messages=asked, tools=tools, max_tokens=5)
    assert prompt(stage)[: len(first) + len(generated)] == [*first, *generated]
    counted = ask(stage, "/v1/messages/count_tokens", messages=asked, tools=tools)
    assert counted == {"input_tokens": len(prompt(stage))}


def test_responses_continue_by_id_and_by_items(stage: Stage) -> None:
    tools = [{"type": "function", **TOOL}]
    answer = ask(stage, "/v1/responses", input="say I look.\nCALL", tools=tools)
    first, generated = prompt(stage), spelled(f"I look.\n{CALL}")
    call = next(item for item in answer["output"] if item["type"] == "function_call")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
    ask(stage, "/v1/responses", input=[output], tools=tools, previous_response_id=answer["id"])
    assert prompt(stage)[: len(first) + len(generated)] == [*first, *generated]
    ask(stage, "/v1/responses", input=[user("say I look.\nCALL"), *answer["output"], output], tools=tools)
    assert prompt(stage)[: len(first) + len(generated)] == [*first, *generated]


def changed_text(message: dict[str, Any]) -> None:
    message["content"] += " "


def changed_arguments(message: dict[str, Any]) -> None:
    function = message["tool_calls"][0]["function"]
    function["arguments"] = function["arguments"].replace("  ", " ")


def changed_name(message: dict[str, Any]) -> None:
    message["tool_calls"][0]["function"]["name"] = "Look"


@pytest.mark.parametrize("change", [changed_text, changed_arguments, changed_name])
def test_a_changed_byte_gets_the_templates_tokens(stage: Stage, change: Any) -> None:
    asked = user("say I look.\nCALL")
    message = chat(stage, asked)
    change(message)
    turns = [asked, message, *results(message)]
    chat(stage, *turns)
    assert prompt(stage) == by_template(turns)


def test_another_tenants_answers_are_not_known(stage: Stage) -> None:
    asked = user("say Only for acme.")
    turns = [asked, chat(stage, asked), user("say x")]
    chat(stage, *turns, tenant="other")
    assert prompt(stage) == by_template(turns)


@pytest.mark.parametrize(
    ("said", "options"), [("one STOP two", {"stop": "STOP"}), ("<think>Hm.</think>\n\nYes, thought.", {})]
)
def test_a_partial_answer_is_not_remembered(stage: Stage, said: str, options: dict[str, Any]) -> None:
    """Neither is a text that a stop string ended, nor one that followed reasoning."""
    asked = user(f"say {said}")
    message = {k: v for k, v in chat(stage, asked, **options).items() if k in ("role", "content")}
    turns = [asked, message, user("say x")]
    chat(stage, *turns)
    assert prompt(stage) == by_template(turns)


def by_template(turns: list[dict[str, Any]]) -> list[int]:
    """The tokens of a prompt, rendered without remembered answers."""
    kept = ("role", "content", "tool_calls", "tool_call_id")
    plain = [{k: v for k, v in turn.items() if k in kept and v is not None} for turn in turns]
    plain = [{"content": None, **turn} for turn in plain]
    assert TOKENIZER.template is not None
    return list(TOKENIZER.encode_chat(TOKENIZER.template.render(plain, TOOLS)).token_ids)


def test_which_templates_keep_turns() -> None:
    assert TOKENIZER.template is not None
    assert TOKENIZER.template.keeps_turns
    assert ChatTemplate(TEMPLATE, {}).keeps_turns
    begun = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant><think>"
    assert not ChatTemplate(begun, {}).keeps_turns
    left_out = "{% for m in messages if m.role == 'user' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert not ChatTemplate(left_out, {}).keeps_turns
    assert not ChatTemplate("{{ raise_exception('no') }}", {}).keeps_turns


def test_the_least_recently_used_answers_are_forgotten() -> None:
    known = ExactTurns(3000)
    for n in range(3):
        known.keep("t", Said(str(n)), bytes(700))
    assert known.recall("t", Said("0")) == bytes(700)
    known.keep("t", Said("3"), bytes(700))
    assert [known.recall("t", Said(str(n))) is not None for n in range(4)] == [True, False, True, True]
    known.keep("t", Said("3"), bytes(8))
    assert known.recall("t", Said("3")) == bytes(8)
    assert known.recall("u", Said("3")) is None
    known.keep("t", Said("huge"), bytes(4000))
    assert known.recall("t", Said("huge")) is None
