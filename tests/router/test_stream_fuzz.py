"""Tests that a stream gives the whole answer's message, however it is split into tokens, steps and chunks."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from router.api.answers.generated import Head
from router.api.anthropic.serializer import MessageSerializer
from router.api.chat import ChatSerializer
from router.api.chat_schema import ChatRequest
from router.api.generate import AnswerSerializer
from router.api.responses.resource import resource
from router.api.responses.schema import ResponseRequest
from router.api.responses.serializer import ResponseSerializer
from router.relay.choice import Choice, FinishReason, Prompt, ServedBy
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from router.text.tools import tool_parser
from wire.protocol import SamplingParams
from wire.tokens import TokenIds

pytestmark = pytest.mark.process

END = 1
NOWHERE = ServedBy(0, 0, 0, 0, 0, "p", 1, "d", 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.floats(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
CALL = st.builds(
    lambda name, arguments, ascii: (
        "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii) + "\n</tool_call>"
    ),
    st.sampled_from(("add", "time")),
    st.dictionaries(st.text(max_size=4), JSON, max_size=3),
    st.booleans(),
)
BROKEN = st.builds(lambda call, at, rest: call[: at % len(call)] + rest, CALL, st.integers(0), st.text(max_size=4))
PIECE = st.one_of(
    st.text(max_size=8),
    st.sampled_from(("\n", " ", "<tool", "<tool_call>", "</tool_call>", "<think>", "</think>", "{", "é😀", "\ufffd")),
    CALL,
    CALL,
    BROKEN,
)
# A call that breaks and is closed as if it were whole, with nothing behind it to show.
CLOSED = '<tool_call>\n{"name": "add", "arguments": {"a": tru}}\n</tool_call>\n'
OUTPUT = st.lists(PIECE, max_size=6).map("".join)
THINKING = st.builds(lambda thought, said: f"<think>\n{thought}\n</think>\n\n{said}", st.text(max_size=8), OUTPUT)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)
PAUSES = st.lists(st.booleans(), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def small(checkpoint: Path) -> Tokenizer:
    """A tokenizer with one token per byte; 1 is the end token."""
    return Tokenizer(str(checkpoint))


@dataclass(frozen=True)
class Api:
    """An API's format, how its clients assemble a stream, and which parts of the answers must be equal."""

    make: Callable[[Choice], AnswerSerializer]
    join: Callable[[bytes], Any]
    seen: Callable[[Any], Any]


def chat_api(tokenizer: Tokenizer) -> Api:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    request = ChatRequest.model_validate(body).lower()
    head: Head = {"id": "id", "created": 1, "model": "tiny"}

    def join(stream: bytes) -> Any:
        state = ChatCompletionStreamState()
        for event in events(stream):
            state.handle_chunk(ChatCompletionChunk.model_validate(event))
        return state.current_completion_snapshot.model_dump()

    def seen(answer: Any) -> Any:
        choice = answer["choices"][0]
        message = choice["message"]
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or []]
        texts = message.get("content") or "", message.get("reasoning_content") or ""
        return *texts, calls, choice["finish_reason"]

    return Api(lambda c: ChatSerializer(head, request, [c], tokenizer), join, seen)


def messages_api(_: Tokenizer) -> Api:
    def join(stream: bytes) -> Any:
        message: dict[str, Any] = {}
        parts: list[str] = []
        for event in events(stream):
            match event:
                case {"type": "message_start"}:
                    message = event["message"]
                case {"type": "content_block_start"}:
                    assert event["index"] == len(message["content"])
                    message["content"].append(event["content_block"])
                case {"type": "content_block_delta", "delta": {"partial_json": part}}:
                    parts.append(part)
                case {"type": "content_block_stop", "index": index} if message["content"][index]["type"] == "tool_use":
                    message["content"][index]["input"] = json.loads("".join(parts))
                    parts = []
                case {"type": "content_block_delta", "delta": {"type": kind, **more}}:
                    name = kind.removesuffix("_delta")
                    message["content"][event["index"]][name] += more[name]
                case {"type": "message_delta"}:
                    message |= event["delta"] | {"usage": event["usage"]}
        return message

    def seen(answer: Any) -> Any:
        kept = ("type", "text", "thinking", "name", "input")
        blocks = [{name: block[name] for name in kept if name in block} for block in answer["content"]]
        return blocks, answer["stop_reason"], answer["stop_sequence"], answer["usage"]["output_tokens"]

    return Api(lambda c: MessageSerializer("id", "tiny", c, shows_thinking=True), join, seen)


def responses_api(tokenizer: Tokenizer) -> Api:
    body = resource(ResponseRequest.model_validate({"model": "tiny", "input": "x"}), "resp_1", 1, "tiny")

    def join(stream: bytes) -> Any:
        """The last event's response; checks that the earlier events' items and deltas add up to it."""
        items: list[dict[str, Any]] = []
        whole: list[dict[str, Any]] = []
        for number, event in enumerate(events(stream)):
            assert event["sequence_number"] == number
            match event:
                case {"type": "response.output_item.added", "item": item}:
                    assert event["output_index"] == len(items) == len(whole)
                    items.append(item)
                case {"type": "response.content_part.added", "part": part}:
                    items[-1]["content"].append(part)
                case {"type": "response.function_call_arguments.delta", "delta": delta}:
                    items[-1]["arguments"] += delta
                case {"type": "response.output_text.delta" | "response.reasoning_text.delta", "delta": delta}:
                    items[-1]["content"][event["content_index"]]["text"] += delta
                case {"type": "response.output_text.done" | "response.reasoning_text.done", "text": text}:
                    assert items[-1]["content"][0]["text"] == text
                case {"type": "response.function_call_arguments.done", "arguments": arguments}:
                    assert items[-1]["arguments"] == arguments
                case {"type": "response.content_part.done", "part": part}:
                    assert items[-1]["content"] == [part]
                case {"type": "response.output_item.done", "item": item}:
                    whole.append(item)
                    items[-1]["status"] = item["status"]  # which nothing before tells
            if "item_id" in event:
                assert (event["item_id"], event["output_index"]) == (items[-1]["id"], len(items) - 1)
        assert event["type"] == f"response.{event['response']['status']}"
        assert items == whole == event["response"]["output"]
        return event["response"]

    def seen(answer: Any) -> Any:
        items = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in answer["output"]]
        return items, answer["status"], answer["incomplete_details"], answer["usage"]

    return Api(lambda c: ResponseSerializer(body, c, tokenizer, None), join, seen)


def events(stream: bytes) -> Iterator[dict[str, Any]]:
    for line in stream.split(b"\n"):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield json.loads(line.removeprefix(b"data: "))


def a_choice(tokenizer: Tokenizer, stop: tuple[str, ...], single: bool) -> Choice:
    reader = Reader(tool_parser("qwen25")(), single=single)
    return Choice(
        0, Prompt(TokenIds.of((5,))), SamplingParams(max_tokens=9999, seed=1), tokenizer, stop=stop, reader=reader
    )


def the_whole(shape: AnswerSerializer) -> Any:
    asyncio.run(shape.settle(None))
    return json.loads(shape.whole())


def fed(choice: Choice, ids: tuple[int, ...], sizes: list[int], finish: FinishReason) -> Iterator[None]:
    """Feed a choice the tokens in steps of these sizes, until it ends."""
    at = 0
    for size in cycle(sizes):
        step, at = ids[at : at + size], at + size
        choice.feed(step, (), finish if at >= len(ids) else None)
        if choice.finish is not None:
            choice.served_by = NOWHERE
            return
        yield


@pytest.mark.parametrize("api", [chat_api, messages_api, responses_api], ids=["chat", "messages", "responses"])
@settings(max_examples=150, derandomize=True, database=None)
@given(
    text=OUTPUT | THINKING,
    cut=st.none() | st.integers(0, 200),
    sizes=SIZES,
    pauses=PAUSES,
    stop=st.sampled_from(((), (), ("a",), ("\n</", "}}"))),
    single=st.booleans(),
)
@example(text=CLOSED, cut=len(CLOSED) - 1, sizes=[1], pauses=[False], stop=(), single=False)
@example(text=CLOSED, cut=len(CLOSED) - 4, sizes=[1], pauses=[False], stop=(), single=False)
def test_any_split_of_a_stream_gives_the_whole_message(
    small: Tokenizer,
    api: Callable[[Tokenizer], Api],
    text: str,
    cut: int | None,
    sizes: list[int],
    pauses: list[bool],
    stop: tuple[str, ...],
    single: bool,
) -> None:
    one = api(small)
    # Cut by the token limit, be it within a character, or ended by the model.
    ids = small.encode(text, False)
    ids, finish = ((*ids, END), "stop") if cut is None or cut >= len(ids) else (ids[: cut + 1], "length")
    whole = a_choice(small, stop, single)
    for _ in fed(whole, ids, [len(ids)], finish):
        pass
    expected = one.seen(the_whole(one.make(whole)))
    choice = a_choice(small, stop, single)
    shape = one.make(choice)
    stream, pause = [], cycle(pauses)
    for _ in fed(choice, ids, sizes, finish):
        if not next(pause):
            stream.append(shape.chunk(choice, choice.take(), over=False))
    stream.append(shape.chunk(choice, choice.take(), over=True))
    asyncio.run(shape.settle(None))
    stream.append(shape.last())
    assert one.seen(one.join(b"".join(stream))) == expected


def test_a_broken_call_cut_by_the_limit_is_only_cut(small: Tokenizer) -> None:
    one, text = messages_api(small), CLOSED[:-4]
    choice = a_choice(small, (), False)
    for _ in fed(choice, small.encode(text, False), [3], "length"):
        pass
    written = '{"name": "add", "arguments": {"a": tru}}'
    assert the_whole(one.make(choice))["content"] == [{"type": "text", "text": written}]
