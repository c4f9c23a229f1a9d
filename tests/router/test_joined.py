"""Tests that stop strings and log-probabilities apply to the content only, not to reasoning, calls or markers."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api.answers.generated import Head
from router.api.chat import ChatSerializer
from router.api.chat_schema import ChatRequest
from router.api.logprobs import CompletionLogprobs
from router.api.responses.resource import resource
from router.api.responses.schema import ResponseRequest
from router.api.responses.serializer import ResponseSerializer
from router.relay.choice import Choice, FinishReason, Prompt
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from router.text.tools import tool_parser
from tests.router.test_stream_fuzz import NOWHERE, OUTPUT, SIZES, THINKING
from wire.protocol import SamplingParams, TokenLogprob
from wire.tokens import TokenIds

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "a stop b\\n"}}\n</tool_call>'


@pytest.fixture(scope="module")
def nano() -> Tokenizer:
    """A tokenizer with tokens of several characters and of parts of one."""
    return Tokenizer(str(NANO))


def fed(
    tokenizer: Tokenizer, ids: tuple[int, ...], sizes: list[int], finish: FinishReason, stop: tuple[str, ...] = (),
    min_tokens: int = 0, logprobs: bool = True,
) -> Choice:  # fmt: skip
    """A choice that has received these tokens, a few per step."""
    reader = Reader(tool_parser("qwen25")())
    sampling = SamplingParams(9999, 1, min_tokens=min_tokens, logprobs=0 if logprobs else None)
    choice = Choice(0, Prompt(TokenIds.of((5,))), sampling, tokenizer, stop=stop, reader=reader)
    at = step = 0
    while choice.finish is None:
        size = sizes[step % len(sizes)]
        step, at, chunk = step + 1, at + size, ids[at : at + size]
        figures = tuple(TokenLogprob(i, -i / 1000) for i in chunk) if logprobs else ()
        choice.feed(chunk, figures, finish if at >= len(ids) else None)
    choice.served_by = NOWHERE
    return choice


def chat(tokenizer: Tokenizer, choice: Choice) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    head: Head = {"id": "id", "created": 1, "model": "tiny"}
    shape = ChatSerializer(head, ChatRequest.model_validate(body).lower(), [choice], tokenizer)
    return json.loads(shape.whole())["choices"][0]


def response(tokenizer: Tokenizer, choice: Choice) -> Any:
    body = resource(ResponseRequest.model_validate({"model": "tiny", "input": "x"}), "resp_1", 1, "tiny")
    shape = ResponseSerializer(body, choice, tokenizer, None)
    asyncio.run(shape.settle(None))
    return json.loads(shape.whole())


def joined(entries: list[Any]) -> bytes:
    return b"".join(bytes(entry["bytes"]) for entry in entries)


@pytest.mark.parametrize(
    ("text", "stop", "content", "reasoning", "arguments", "found"),
    [
        ("<think>First\nSecond</think>\n\nThe answer is 4.", "\n", "The answer is 4.", "First\nSecond", None, None),
        ("<think>Question: why?</think>yes Question: no", "Question:", "yes ", "Question: why?", None, "Question:"),
        (f"a{CALL}", "stop", "a", None, '{"x": "a stop b\\n"}', None),
        (f"a{CALL}", "a", None, None, None, "a"),
        (f"{CALL}\nthen stop", "stop", "then ", None, '{"x": "a stop b\\n"}', "stop"),
        (f"sto{CALL}p", "stop", "stop", None, '{"x": "a stop b\\n"}', None),
        ("one\ntwo", "\n", "one", None, None, "\n"),
    ],
)  # fmt: skip
def test_stop_strings_count_in_the_content(
    nano: Tokenizer, text: str, stop: str, content: str | None, reasoning: str | None, arguments: str | None,
    found: str | None,
) -> None:  # fmt: skip
    ids = (*nano.encode(text, False), nano.eos_ids[0])
    for sizes in ([1], [3], [len(ids)]):
        choice = fed(nano, ids, sizes, "stop", (stop,))
        message = chat(nano, choice)["message"]
        assert (message["content"] or None) == content
        assert message.get("reasoning_content") == reasoning
        assert [c["function"]["arguments"] for c in message.get("tool_calls", ())] == ([arguments] if arguments else [])
        assert choice.stop_string == found


def test_no_stop_string_ends_it_before_min_tokens(nano: Tokenizer) -> None:
    (b,) = nano.encode("b", False)
    assert chat(nano, fed(nano, (b,) * 6, [4], "length", ("b",), min_tokens=3))["message"]["content"] == "bb"


@pytest.mark.parametrize(
    ("text", "stop", "content"),
    [
        ("Paris.", (), "Paris."),
        ("ABCDEFGHIJK", ("DEFGHIJ",), "ABC"),
        ("<think>Paris</think>\n\nParis, é😀", (), "Paris, é😀"),
        (f"so\n{CALL}\n", (), "so"),
    ],
)
def test_log_probabilities_are_the_content_s(nano: Tokenizer, text: str, stop: tuple[str, ...], content: str) -> None:
    ids = (*nano.encode(text, False), nano.eos_ids[0])
    answer = chat(nano, fed(nano, ids, [2], "stop", stop))
    assert answer["message"]["content"] == content
    assert joined(answer["logprobs"]["content"]) == content.encode()
    items = response(nano, fed(nano, ids, [2], "stop", stop))["output"]
    (part,) = [item["content"][0] for item in items if item["type"] == "message"]
    assert (part["text"], joined(part["logprobs"])) == (content, content.encode())


@settings(max_examples=200, derandomize=True, database=None)
@given(
    pieces=st.lists(OUTPUT | THINKING, max_size=3),
    sizes=SIZES,
    stop=st.sampled_from(((), (), ("a",), ("\n</", "}}"), ("é",))),
    ends=st.booleans(),
)
def test_the_bytes_of_log_probabilities_join_to_the_content(
    nano: Tokenizer, pieces: list[str], sizes: list[int], stop: tuple[str, ...], ends: bool
) -> None:
    # Encoded apart, so that tokens end where one text would not end them.
    ids = tuple(i for piece in pieces for i in nano.encode(piece.replace("\ufffd", ""), False))
    ids = (*ids, nano.eos_ids[0]) if ends or not ids else ids
    finish: FinishReason = "stop" if ids[-1] in nano.eos_ids else "length"
    answer = chat(nano, fed(nano, ids, sizes, finish, stop))
    assert joined(answer["logprobs"]["content"]) == (answer["message"]["content"] or "").encode()
    plain = chat(nano, fed(nano, ids, sizes, finish, stop, logprobs=False))
    assert plain["message"]["content"] == answer["message"]["content"]
    for item in response(nano, fed(nano, ids, sizes, finish, stop))["output"]:
        if item["type"] == "message":
            part = item["content"][0]
            assert joined(part["logprobs"]) == part["text"].encode()


def test_offsets_of_an_echoed_prompt_point_at_its_tokens(nano: Tokenizer) -> None:
    text = "<role>HUMAN</role>hi"
    ids = nano.encode(text, False)
    choice = Choice(0, Prompt(ids, text), SamplingParams(1, 1, logprobs=0, prompt_logprobs=0), nano)
    choice.prompt_logprobs = (None, *(TokenLogprob(i, -1.0) for i in ids[1:]))
    (token,) = nano.encode("!", False)
    choice.feed((token,), (TokenLogprob(token, -1.0),), "length")
    shape = CompletionLogprobs()
    shape.add_prompt(choice, nano)
    shape.add(choice.take(), nano, len(text))
    got = shape.json()
    whole = f"{text}!"
    assert "".join(got["tokens"]) == whole
    assert got["text_offset"][-1] == len(text)
    assert all(whole[at:].startswith(name) for name, at in zip(got["tokens"], got["text_offset"], strict=True))
