"""Tests that calls and text are told apart, in whatever steps the text arrives, without loss."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.relay.choice import Choice, Prompt
from router.text.parts import CallEnd, CallPart, CallStart, Part, Reasoning, Text
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from router.text.tools import PARSERS, tool_parser
from router.text.tools.json_scan import JsonScan
from wire.protocol import SamplingParams
from wire.tokens import TokenIds

END = (1,)
ONE = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "g", "arguments": {"b": {"c": [1, "</tool_call>"]}}}\n</tool_call>'


@pytest.fixture(scope="module")
def small(checkpoint: Path) -> Tokenizer:
    """A tokenizer with one token per byte; 1 is the end token."""
    return Tokenizer(str(checkpoint))


class Message:
    """The message that parts add up to."""

    def __init__(self, parts: list[Part]) -> None:
        self.text = self.reasoning = ""
        self.calls: list[list[object]] = []
        for part in parts:
            match part:
                case Text(text):
                    self.text += text
                case Reasoning(text):
                    self.reasoning += text
                case CallStart(name):
                    self.calls.append([name, "", None])
                case CallPart(arguments):
                    assert self.calls[-1][2] is None
                    self.calls[-1][1] = str(self.calls[-1][1]) + arguments
                case CallEnd(valid):
                    self.calls[-1][2] = valid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(vars(self))


def read(pieces: list[str], *, single: bool = False, tools: bool = True) -> Message:
    reader = Reader(tool_parser("qwen25")() if tools else None, single=single)
    parts: list[Part] = []
    for piece in pieces:
        if not reader.ended:
            parts += reader.push(piece)
    return Message(parts if reader.ended else parts + reader.flush())


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("hello\n", "hello\n", []),
        (ONE, "", [["f", '{"a": 1}', True]]),
        (f"Look:\n{ONE}\n{TWO}\n", "Look:",
         [["f", '{"a": 1}', True], ["g", '{"b": {"c": [1, "</tool_call>"]}}', True]]),
        (f"a {ONE} b\n{ONE}\n\nc ", "a  b\n\n\nc", [["f", '{"a": 1}', True]] * 2),
        (f"\n{ONE}\nb", "b", [["f", '{"a": 1}', True]]),
        ('<tool_call>{"arguments": {"é": 2}, "name": "f"}</tool_call>', "", [["f", '{"\\u00e9": 2}', True]]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [["f", "{}", True]]),
        ('<tool_call>{"name":"f","arguments":{},"id":7}</tool_call>x', "x", [["f", "{}", True]]),
        ('<tool_call>{"name": "f", "arguments": {}\n</tool_call>', "", [["f", "{}", True]]),
        ('<tool_call>{"name": "f", "arguments": {}}', "", [["f", "{}", True]]),
        ('<tool_call>{"name": "f", "arguments": {}} and', "and", [["f", "{}", True]]),
        ('<tool_call>{"name": "f", "arguments": {"a": "b\n</tool_call>' + ONE, "",
         [["f", '{"a": "b', False], ["f", '{"a": 1}', True]]),
        ('<tool_call>{"name": "f", "arguments": {"a": ', "", [["f", '{"a": ', False]]),
        ("<tool_call>\nnot json\n</tool_call>!", "\nnot json\n!", []),
        ('<tool_call>{"name": "", "arguments": {}}</tool_call>', '{"name": "", "arguments": {}}', []),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '{"name": "f", "arguments": [1]}', []),
        ('<tool_call>{"nam', '{"nam', []),
        ("a <tool_ca", "a <tool_ca", []),
        ("5 < 6 <tool> </tool_call>", "5 < 6 <tool> ", []),
        # What models get wrong, and can mean one thing only.
        ('<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>', "", [["f", '{"x": 1}', True]]),
        ('<tool_call>{"parameters": {"x": 1}, "name": "f"}</tool_call>', "", [["f", '{"x": 1}', True]]),
        ('<tool_call>\n{"name": "f", "arguments": {"x": "a\nb"}}\n</tool_call>!', "!",
         [["f", '{"x": "a\\nb"}', True]]),
        ('<tool_call>{"arguments": {"x": "a\tb"}, "name": "f"}</tool_call>', "", [["f", '{"x": "a\\tb"}', True]]),
        ('<tool_call>\n{"name": "f", "arguments": null}\n</tool_call>', "", [["f", "{}", True]]),
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [["f", '{"x": 1}', True]]),
        ('<tool_call>{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}</tool_call>', "",
         [["f", '{"x": 1}', True]]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}}</tool_call>y', "y", [["f", '{"x": 1}', True]]),
        # What can't be read loses nothing.
        ('<tool_call>{"arguments": {"x": 1}, "parameters": {"x": 2}, "name": "f"}</tool_call>',
         '{"arguments": {"x": 1}, "parameters": {"x": 2}, "name": "f"}', []),
        ('<tool_call>{"name": "f", "arguments": {"x": tru}}\n</tool_call>', "", [["f", '{"x": tru}', False]]),
        ('<tool_call>{"name": "f", "arguments": {"x": "say "hi""}}\n</tool_call>', "",
         [["f", '{"x": "say "hi""}', False]]),
        # The output ends within.
        ('<tool_call>{"name": "f", "argu', "", [["f", "", False]]),
        ('<tool_call>{"name": "get_wea', '{"name": "get_wea', []),
    ],
)  # fmt: skip
def test_calls_reasoning_and_text_are_told_apart(text: str, said: str, calls: list[list[object]]) -> None:
    for pieces in ([text], list(text)):
        message = read(pieces)
        assert (message.text, message.calls) == (said, calls)


def test_without_tools_markers_are_text() -> None:
    assert read(list(ONE), tools=False).text == ONE


def test_call_names_are_sent_first_and_arguments_as_they_arrive() -> None:
    reader = Reader(PARSERS["hermes"]())
    seen = [reader.push(c) for c in 'x<tool_call>{"name": "f", "arguments": {"a": "bc"}}</tool_call>']
    flat = [p for parts in seen for p in parts]
    assert flat[:3] == [Text("x"), CallStart("f"), CallPart("{")]
    assert [p.arguments for p in flat if isinstance(p, CallPart)] == list('{"a": "bc"}')
    assert isinstance(flat[-1], CallEnd)


def test_a_single_call_ends_it() -> None:
    reader = Reader(tool_parser("qwen25")(), single=True)
    parts = reader.push(f"a{ONE}{TWO}b")
    assert reader.ended
    assert Message(parts).calls == [["f", '{"a": 1}', True]]
    assert read(list(f"a{ONE}{TWO}b"), single=True).text == "a"


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>\nhm\n</think>\n\nyes\n", "hm", "yes\n"),
        ("\n<think></think>yes", "", "yes"),
        ("<think>hm <b> </thin", "hm <b> </thin", ""),
        ("a <think>b</think>", "", "a <think>b</think>"),
        (" <thin", "", " <thin"),
        (f"<think>{ONE}</think>x", ONE, "x"),
    ],
)
def test_reasoning_is_apart(text: str, thought: str, said: str) -> None:
    for pieces, tools in itertools.product(([text], list(text)), (True, False)):
        message = read(pieces, tools=tools)
        assert (message.reasoning, message.text, message.calls) == (thought, said, [])


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    reader = Reader(None, thinking=True)
    message = Message(reader.push("\nhm</think>") + reader.push("\nyes") + reader.flush())
    assert (message.reasoning, message.text) == ("hm", "yes")


FRAGMENTS = st.sampled_from(
    [*'{}[]",: \n\\ax0-', "<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "f", "arguments": {', ONE,
     TWO, "true", "nul", "1.5", "\\u00e9", '"a": ', "é"]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=14).map("".join), st.lists(st.integers(0, 500), max_size=8), st.booleans())
@example(f"<think>a</think>x\n{ONE}\n{TWO}", list(range(300)), False)
def test_any_split_of_any_output_is_the_same_message(text: str, cuts: list[int], single: bool) -> None:
    bounds = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    assert read(pieces, single=single) == read([text], single=single)


@given(
    st.lists(
        st.tuples(st.text("ab <>é\n", max_size=5), st.from_regex(r"\A[a-z_]{1,8}\Z"),
                  st.dictionaries(st.text(max_size=5), st.recursive(st.integers() | st.text(max_size=9) | st.none(),
                  lambda inner: st.lists(inner, max_size=3), max_leaves=4), max_size=3)), max_size=4),
)  # fmt: skip
def test_calls_come_back_with_their_arguments(turns: list[tuple[str, str, dict[str, object]]]) -> None:
    written = ""
    for text, name, arguments in turns:
        body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=len(written) % 2 == 0)
        written += f"{text}\n<tool_call>\n{body}\n</tool_call>\n"
    message = read(list(written))
    assert [(c[0], json.loads(str(c[1])), c[2]) for c in message.calls] == [(n, a, True) for _, n, a in turns]
    assert message.text.split() == " ".join(t for t, _, _ in turns).split()


@given(
    st.dictionaries(st.text(max_size=3), st.text('ab\n\t"\\é', max_size=9), max_size=3),
    st.sampled_from(("arguments", "parameters")),
    st.booleans(),
)
def test_line_breaks_and_names_of_arguments_lose_nothing(arguments: dict[str, str], key: str, name_first: bool) -> None:
    written = json.dumps(arguments).replace("\\n", "\n").replace("\\t", "\t")
    if json.loads(written, strict=False) != arguments:
        return  # the replacement met an escaped backslash
    members = ['"name": "f"', f'"{key}": {written}'][:: 1 if name_first else -1]
    message = read(list("<tool_call>\n{" + ", ".join(members) + "}\n</tool_call>"))
    assert [(name, json.loads(str(given)), valid) for name, given, valid in message.calls] == [("f", arguments, True)]
    assert message.text == ""


@given(st.lists(FRAGMENTS, max_size=10).map("".join))
def test_markers_never_show(text: str) -> None:
    message = read([text])
    assert not any(marker in message.text for marker in ("<tool_call>", "</tool_call>"))


@given(st.lists(FRAGMENTS, max_size=8).map("".join) | st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
).map(json.dumps))  # fmt: skip
def test_the_scan_agrees_with_the_library(text: str) -> None:
    scan, at = JsonScan(), 0
    while at < len(text) and not (scan.done or scan.broken):
        at = scan.step(text, at)
    try:
        whole = isinstance(json.loads(text, strict=False), dict)
    except ValueError:
        whole = False
    assert (scan.done and not text[at:].strip(" \t\r\n")) == whole


def test_an_unknown_parser_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="qwen25"):
        tool_parser("other")


@given(
    st.lists(FRAGMENTS, max_size=10).map("".join),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.sampled_from([(), ("x</tool",), ("}",), ("a", "nul")]),
    st.booleans(),
)
def test_any_steps_of_tokens_are_the_same_message(
    small: Tokenizer, text: str, sizes: list[int], stop: tuple[str, ...], single: bool
) -> None:
    ids = small.encode(text, False)

    def said(steps: Iterator[int]) -> tuple[Message, str | None]:
        reader = Reader(tool_parser("qwen25")(), single=single)
        choice = Choice(0, Prompt(TokenIds.of((2,))), SamplingParams(10**6, 0), small, stop=stop, reader=reader)
        parts: list[Part] = []
        at = 0
        while choice.finish is None:
            size = next(steps)
            last = at + size >= len(ids)
            choice.feed((*ids[at : at + size], *(END if last else ())), (), "stop" if last else None)
            at += size
            delta = choice.take()
            parts += [Text(delta.text), *delta.events]
        return Message(parts), choice.stop_string

    assert said(itertools.cycle(sizes)) == said(itertools.repeat(10**6))
