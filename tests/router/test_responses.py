"""Tests the responses API by the openai SDK, with a worker that answers with given texts."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.router.conftest import Stage, served
from tests.router.scripted import agent, scripted, talking

TOOLS: list[Any] = [
    {"type": "function", "name": "add", "description": "adds", "parameters": {"type": "object"}, "strict": False},
    {"type": "function", "name": "time", "parameters": {"type": "object"}, "strict": False},
]
SENT = [
    {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}},
]
SCRIPTS = {
    "reason": "<think>\nhm\n</think>\n\nyes",
    "plain": "hello there",
    "again": "and again",
    "broken": '<tool_call>\n{"name": "add", "arguments": {"a": tru}}\n</tool_call>',
    "cut": '<tool_call>\n{"name": "add", "arguments": {"a": 12345678',
    "empty": "",
    "json": '{"name": "Ling", "size": 7}',
    "call": '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    "both": 'One.\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\nTwo.',
}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGE = [
    *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
    *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
]
REASONING = [name.replace("output_text", "reasoning_text") for name in MESSAGE]
CALL = [
    *("response.output_item.added", "response.function_call_arguments.delta"),
    *("response.function_call_arguments.done", "response.output_item.done"),
]
BEGIN = ["response.created", "response.in_progress"]


def say(prompt: str) -> str:
    """The answer that the last user's message asks for, else an agent's next turn."""
    for word, text in SCRIPTS.items():
        if prompt.endswith(f"<user>{word}<assistant>"):
            return text
    return agent(prompt)


@pytest.fixture(scope="module", params=[1, 7], ids=["bytewise", "seven at once"])
def agents(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    with talking(checkpoint, say, request.param) as stage:
        yield stage


@pytest.fixture(scope="module")
def sdk(agents: Stage) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{agents.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


def ask(sdk: openai.OpenAI, given: Any, *, stream: bool, **options: Any) -> Any:
    """Send a request; returns the answer, which the SDK assembles if it is streamed."""
    options = {"model": "tiny", "input": given} | options
    if not stream:
        return sdk.responses.create(**options)
    with sdk.responses.stream(**options) as events:
        return events.get_final_response()


def raw_events(stage: Stage, **body: Any) -> list[dict[str, Any]]:
    """A stream's events; checks that each is valid, and numbered and named as its data says."""
    answer = stage.http.post(f"{stage.url}/v1/responses", json={"model": "tiny", "stream": True} | body)
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return checked(answer.text)


def checked(text: str, first: int = 0) -> list[dict[str, Any]]:
    out = []
    for number, block in enumerate(text.split("\n\n")[:-1], first):
        name, data = block.split("\n")
        EVENT.validate_json(data.removeprefix("data: "), strict=True)
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
        assert out[-1]["sequence_number"] == number
    return out


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The events' types, where a run of the same type counts once."""
    found = [e["type"] for e in events]
    return [kind for i, kind in enumerate(found) if i == 0 or found[i - 1] != kind]


def prompt_of(stage: Stage) -> str:
    return stage.gateway.tokenizer.decode(stage["d0"].received[-1].token_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_text(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    answer = ask(sdk, "plain", stream=stream, instructions="Be brief", metadata={"a": "b"}, temperature=0.5, top_p=0.9,
                 max_output_tokens=100, user="u", safety_identifier="s", prompt_cache_key="k")  # fmt: skip
    assert (answer.output_text, answer.status, answer.error) == ("hello there", "completed", None)
    assert (answer.instructions, answer.metadata) == ("Be brief", {"a": "b"})
    assert (answer.temperature, answer.top_p) == (0.5, 0.9)
    assert (answer.user, answer.safety_identifier, answer.prompt_cache_key) == ("u", "s", "k")
    assert (answer.max_output_tokens, answer.incomplete_details, answer.parallel_tool_calls) == (100, None, True)
    assert answer.completed_at >= answer.created_at
    assert prompt_of(agents) == "<system>Be brief<user>plain<assistant>"
    usage = answer.usage
    assert usage.input_tokens == len(agents["d0"].received[-1].token_ids)
    assert (usage.output_tokens, usage.total_tokens) == (12, usage.input_tokens + 12)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (3, 0)
    sampling = agents["d0"].received[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 100)
    Response.model_validate(answer.model_dump(exclude={"output": {"__all__": {"content": {"__all__": {"parsed"}}}}}))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_loop_of_calls_and_results(agents: Stage, sdk: openai.OpenAI, stream: bool, kept: bool) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "instructions": "Add", "tool_choice": "auto", "stream": stream}
    answer = ask(sdk, "add them", **options, store=kept)
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    assert answer.output_text == "I look."
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [(c.name, c.arguments) for c in calls] == [("add", '{"a": 2, "b": [1, "x</tool_call>y"]}'), ("time", "{}")]
    assert prompt_of(agents) == f"[{''.join(json.dumps(t) for t in SENT)}]<system>Add<user>add them<assistant>"
    results: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": result}
        for call, result in zip(reversed(calls), ("noon", "3"), strict=True)
    ]
    if kept:
        answer = ask(sdk, results, **options, previous_response_id=answer.id)
    else:
        said = [item.model_dump(exclude={"parsed_arguments": True, "content": {"__all__": {"parsed"}}})
                for item in answer.output]  # fmt: skip
        answer = ask(sdk, [{"role": "user", "content": "add them"}, *said, *results], **options)
    assert (answer.status, answer.output_text) == ("completed", "The sum is 3 and noon.")
    add, time = (c.call_id for c in calls)
    assert prompt_of(agents).partition("<user>")[2] == (
        f"add them<assistant>{agent('')}<tool>3({add})<tool>noon({time})<assistant>"
    )


@pytest.mark.parametrize("word", ["plain", "empty"])
def test_events_of_text_come_in_order(agents: Stage, word: str) -> None:
    events = raw_events(agents, input=word)
    message = [kind for kind in MESSAGE if SCRIPTS[word] or not kind.endswith("delta")]
    assert kinds(events) == [*BEGIN, *message, "response.completed"]
    body = events[-1]["response"]
    assert "".join(e["delta"] for e in events if "delta" in e) == body["output"][0]["content"][0]["text"]
    assert body["output"][0]["content"][0]["text"] == SCRIPTS[word]
    assert events[0]["response"]["id"] == body["id"]
    assert (events[0]["response"]["status"], events[0]["response"]["usage"]) == ("in_progress", None)


def test_events_of_calls_come_in_order(agents: Stage) -> None:
    events = raw_events(agents, input="add", tools=TOOLS)
    assert kinds(events) == [*BEGIN, *MESSAGE, *CALL, *CALL, "response.completed"]
    body = events[-1]["response"]
    for item in body["output"]:
        own = [e for e in events if e.get("item_id") == item["id"] or e.get("item", {}).get("id") == item["id"]]
        assert {e["output_index"] for e in own} == {body["output"].index(item)}
        assert own[-1]["item"] == item
        deltas = "".join(e["delta"] for e in own if "delta" in e)
        assert deltas == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


def test_events_of_reasoning_come_in_order(agents: Stage) -> None:
    events = raw_events(agents, input="reason", reasoning={"effort": "high", "summary": "auto"})
    assert kinds(events) == [*BEGIN, *REASONING, *MESSAGE, "response.completed"]
    assert prompt_of(agents) == "<system>detailed thinking on<user>reason<assistant>"
    body = events[-1]["response"]
    thought, said = body["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert said["content"][0]["text"] == "yes"
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    assert body["reasoning"] == {"effort": "high", "summary": None}


@pytest.mark.parametrize(
    ("effort", "system"), [(None, ""), ("none", ""), ("minimal", ""), ("max", "<system>detailed thinking on")]
)
def test_reasoning_can_be_switched_and_is_left_out_of_later_turns(
    agents: Stage, sdk: openai.OpenAI, effort: Any, system: str
) -> None:
    given = {} if effort is None else {"reasoning": {"effort": effort}}
    answer = sdk.responses.create(model="tiny", input="reason", **given)
    assert prompt_of(agents) == f"{system}<user>reason<assistant>"
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    sdk.responses.create(model="tiny", input="plain", previous_response_id=answer.id)
    assert prompt_of(agents) == "<user>reason<assistant>yes<user>plain<assistant>"
    said: list[Any] = [item.model_dump() for item in answer.output]
    items = [{"role": "user", "content": "reason"}, *said, {"role": "user", "content": "plain"}]
    sdk.responses.create(model="tiny", input=items, store=False, include=["reasoning.encrypted_content"])
    assert prompt_of(agents) == "<user>reason<assistant>yes<user>plain<assistant>"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_amid_text(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    answer = ask(sdk, "both", stream=stream, tools=TOOLS)
    assert [item.type for item in answer.output] == ["message", "function_call", "message"]
    assert [item.content[0].text for item in answer.output[::2]] == ["One.", "Two."]
    output: Any = {"type": "function_call_output", "call_id": answer.output[1].call_id, "output": "noon"}
    ask(sdk, [output], stream=stream, previous_response_id=answer.id)
    assert prompt_of(agents).startswith("<user>both<assistant>One.\nTwo.[time:{}]<tool>noon(")


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_most(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    answer = ask(sdk, "add", stream=stream, tools=TOOLS, parallel_tool_calls=False)
    assert [item.type for item in answer.output] == ["message", "function_call"]
    asyncio.run(agents.until(lambda: agents.gateway.in_flight == 0))


@pytest.mark.parametrize("stream", [False, True])
def test_only_allowed_tools_are_offered(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    choice: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "time"}]}
    answer = ask(sdk, "add", stream=stream, tools=TOOLS, tool_choice=choice)
    assert prompt_of(agents) == f"[{json.dumps(SENT[1])}]<user>add<assistant>"
    assert answer.tool_choice.model_dump() == choice
    assert [tool.name for tool in answer.tools] == ["add", "time"]
    answer = ask(sdk, "add", stream=stream, tools=TOOLS, tool_choice="none")
    assert (prompt_of(agents), [item.type for item in answer.output]) == ("<user>add<assistant>", ["message"])


def test_a_broken_call_is_whole_as_written(agents: Stage) -> None:
    events = raw_events(agents, input="broken", tools=TOOLS)
    (call,) = events[-1]["response"]["output"]
    assert (call["status"], call["arguments"]) == ("completed", '{"a": tru}')


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_by_the_limit_is_incomplete(agents: Stage, stream: bool) -> None:
    def cut(word: str, limit: int) -> dict[str, Any]:
        body = {"input": word, "tools": TOOLS, "max_output_tokens": limit}
        if not stream:
            answer = agents.http.post(f"{agents.url}/v1/responses", json={"model": "tiny"} | body).json()
        else:
            last = raw_events(agents, **body)[-1]
            assert last["type"] == "response.incomplete"
            answer = last["response"]
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert answer["usage"]["output_tokens"] == limit
        return dict(answer)

    (text,) = cut("plain", 4)["output"]
    assert (text["content"][0]["text"], text["status"]) == ("hell", "incomplete")
    answer = cut("cut", len(SCRIPTS["cut"]) - 2)
    (call,) = answer["output"]
    assert (call["arguments"], call["status"]) == ('{"a": 123456', "incomplete")
    # A call that was cut off was never made: the conversation goes on without it.
    raw_events(agents, input="plain", previous_response_id=answer["id"])
    assert prompt_of(agents) == "<user>cut<user>plain<assistant>"


class Thing(BaseModel):
    """The schema of an answer."""

    name: str
    size: int


@pytest.mark.parametrize("stream", [False, True])
def test_text_of_a_schema_is_parsed(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    if stream:
        answer: Any = ask(sdk, "json", stream=True, text_format=Thing)
    else:
        answer = sdk.responses.parse(model="tiny", input="json", text_format=Thing)
    assert answer.output_parsed == Thing(name="Ling", size=7)
    assert (answer.text.format.name, answer.text.format.strict) == ("Thing", True)
    assert agents["d0"].received[-1].sampling.grammar is not None
    sdk.responses.create(model="tiny", input="json", text={"format": {"type": "json_object"}})
    assert agents["d0"].received[-1].sampling.grammar is not None
    sdk.responses.create(model="tiny", input="json", text={"format": {"type": "text"}})
    assert agents["d0"].received[-1].sampling.grammar is None


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        ("required", ["add", "time"]),
        ({"type": "function", "name": "time"}, ["time"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}, ["time"]),
    ],
)
def test_a_call_can_be_required(agents: Stage, sdk: openai.OpenAI, choice: Any, offered: list[str]) -> None:
    answer = sdk.responses.create(model="tiny", input="call", tools=TOOLS, tool_choice=choice)
    assert [item.type for item in answer.output] == ["function_call"]
    assert agents["d0"].received[-1].sampling.grammar is not None
    prompt = prompt_of(agents)
    assert [name for name in ("add", "time") if f'"name": "{name}"' in prompt] == offered


def test_a_strict_tool_constrains_its_calls(agents: Stage, sdk: openai.OpenAI) -> None:
    tools: list[Any] = [{**TOOLS[0], "strict": True}, TOOLS[1]]
    answer = sdk.responses.create(model="tiny", input="add", tools=tools)
    assert agents["d0"].received[-1].sampling.grammar is not None
    assert [tool.strict for tool in answer.tools] == [True, False]  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(agents: Stage, sdk: openai.OpenAI, stream: bool) -> None:
    answer = ask(sdk, "plain", stream=stream, include=["message.output_text.logprobs"], top_logprobs=2)
    part = answer.output[0].content[0]
    assert "".join(p.token for p in part.logprobs) == part.text == "hello there"
    assert [len(p.top_logprobs) for p in part.logprobs] == [2] * 11
    assert answer.top_logprobs == 2
    events = raw_events(agents, input="plain", include=["message.output_text.logprobs"])
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(p["token"] for e in deltas for p in e["logprobs"]) == "hello there"
    assert len(next(e for e in events if e["type"] == "response.output_text.done")["logprobs"]) == 11


@pytest.mark.parametrize("background", [False, True])
def test_a_stored_response_can_be_read_and_deleted(agents: Stage, sdk: openai.OpenAI, background: bool) -> None:
    first = sdk.responses.create(model="tiny", input="plain", instructions="x", background=background)
    if background:
        first = until_over(sdk, first.id)
    assert sdk.responses.retrieve(first.id).model_dump() == first.model_dump()
    second = sdk.responses.create(model="tiny", input="again", previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == ("and again", first.id)
    assert prompt_of(agents) == "<user>plain<assistant>hello there<user>again<assistant>"
    pages = list(sdk.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [(item.role, item.content[0].text) for item in pages] == [
        ("user", "plain"), ("assistant", "hello there"), ("user", "again")
    ]  # fmt: skip
    assert [i.id for i in sdk.responses.input_items.list(second.id)] == [i.id for i in reversed(pages)]
    page = agents.http.get(f"{agents.url}/v1/responses/{second.id}/input_items").json()
    ResponseItemList.model_validate(page, strict=True)
    sdk.responses.delete(first.id)
    for gone in (sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel, sdk.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="is kept here"):
            gone(first.id)
    with pytest.raises(openai.BadRequestError) as missing:
        sdk.responses.create(model="tiny", input="again", previous_response_id=first.id)
    assert missing.value.code == "previous_response_not_found"
    # The later response still has all that went before it.
    sdk.responses.create(model="tiny", input="plain", previous_response_id=second.id)
    assert prompt_of(agents).startswith("<user>plain<assistant>hello there<user>again<assistant>and again<user>plain")


def until_over(sdk: openai.OpenAI, response_id: str) -> Response:
    """Poll a response until it is over, and return it."""
    for _ in range(2000):
        answer = sdk.responses.retrieve(response_id)
        if answer.status not in ("queued", "in_progress"):
            return answer
    raise AssertionError("it did not end")


def test_nothing_is_stored_without_being_asked(sdk: openai.OpenAI) -> None:
    answer = sdk.responses.create(model="tiny", input="plain", store=False)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.id)
    kept = sdk.responses.create(model="tiny", input="plain")
    with pytest.raises(openai.BadRequestError, match="background"):
        sdk.responses.cancel(kept.id)


def test_truncation_drops_the_oldest_turns(agents: Stage, sdk: openai.OpenAI) -> None:
    turns: list[Any] = []
    for i in range(50):
        turns += [{"role": "user", "content": f"{i:02}" + "x" * 98}, {"role": "assistant", "content": "y" * 100}]
    turns.append({"role": "user", "content": "plain"})
    with pytest.raises(openai.BadRequestError, match="context"):
        sdk.responses.create(model="tiny", input=turns, instructions="I")
    answer = sdk.responses.create(model="tiny", input=turns, instructions="I", truncation="auto", max_output_tokens=50)
    assert answer.output_text == "hello there"
    prompt = prompt_of(agents)
    assert prompt.startswith("<system>I<user>")
    kept = (len(prompt) - len("<system>I<user>plain<assistant>")) // len(turns[0]["content"] * 2 + "<user><assistant>")
    assert prompt.startswith(f"<system>I<user>{50 - kept:02}x")
    assert 4096 - 50 - 217 < len(prompt) <= 4096 - 50
    with pytest.raises(openai.BadRequestError, match="context"):
        sdk.responses.create(model="tiny", input="x" * 5000, truncation="auto")


def test_async_clients(checkpoint: Path) -> None:
    async def act() -> None:
        async with (
            asyncio.timeout(120),
            served(checkpoint, scripted(checkpoint, say)) as stage,
            openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key="-", max_retries=0) as sdk,
        ):
            answers = await asyncio.gather(*(sdk.responses.create(model="tiny", input="plain") for _ in range(4)))
            assert {a.output_text for a in answers} == {"hello there"}
            assert len({a.id for a in answers}) == 4
            async with sdk.responses.stream(model="tiny", input="plain") as stream:
                text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
            assert text == "hello there"

    asyncio.run(act())
