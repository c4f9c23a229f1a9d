"""Grammars that constrain an answer's text; workers sample by them (Lark as llguidance reads it)."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from router.text.schema_closed import closed
from wire.protocol import Grammar

# Without forcing, because forced text is tokenized with markers as single tokens, which text must not contain.
OPTIONS = '%llguidance {"no_forcing": true}\n'
# JSON on one line, as models are trained to write calls: with unlimited white space they may never end.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_THOUGHT = "thought"


class Marks:
    """A tokenizer's markers, such as `<tool_call>`, whose tokens no ordinary text contains."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = dict(ids)
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def literal(self, text: str) -> str:
        """Lark for exactly this text, with markers as their tokens."""
        parts: list[str] = []
        at = 0
        for found in self._split.finditer(text) if self._split else ():
            parts += [quoted(text[at : found.start()]), f"<[{self._ids[found[0]]}]>"]
            at = found.end()
        parts.append(quoted(text[at:]))
        return " ".join(part for part in parts if part) or '""'

    def until(self, rule: str, end: str) -> str:
        """Lark rules in which `rule` is any text up to and including the first `end`."""
        name = rule.upper()
        if end in self._ids:
            return f"{rule}: {name} <[{self._ids[end]}]>\n{without(name, (end,))}"
        return f"{rule}[lazy]: {name}\n{name}: /(?s:.*)/ {quoted(end)}\n"


def without(name: str, texts: tuple[str, ...]) -> str:
    """A Lark terminal: any text that contains none of these."""
    unwanted = " | ".join(map(quoted, texts))
    return f"{name}: /(?s:.*)/ & ~(/(?s:.*)/ ({unwanted}) /(?s:.*)/)\n"


def quoted(text: str) -> str:
    return json.dumps(text) if text else ""


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema. param: its path in the request.

    strict: a keyword that can't be enforced is an error, else ignored.
    """

    content: dict[str, Any]
    param: str
    strict: bool = True

    @property
    def lark(self) -> str:
        """Lark for JSON text that it validates, in which objects have no unnamed properties."""
        options = _LAYOUT if self.strict else {**_LAYOUT, "lenient": True}
        return "%json " + json.dumps({**closed(self.content), "x-guidance": options})


class Thinking(Enum):
    """Whether an answer may begin with reasoning, and whether its prompt has begun the reasoning already."""

    NONE = ""
    MAY = f"({_THOUGHT} GAP)? "
    BEGUN = "end_of_thought GAP "


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an answer's text: rules, of which `start` is the answer, made with the tokenizer's markers.

    param: the request's field that it comes from. schemas: the schemas in it. given: the client's own grammar, which
    rules refer to as `@given`.
    """

    start: str
    rules: Callable[[Marks], str]
    param: str
    schemas: tuple[Schema, ...] = ()
    given: str = ""

    def or_(self, other: "Form") -> "Form":
        """Make the form of either. Only one of the two may have a client's grammar."""

        def rules(marks: Marks) -> str:
            return self.rules(marks) + other.rules(marks)

        start = f"{self.start} | {other.start}"
        return Form(start, rules, self.param, self.schemas + other.schemas, self.given or other.given)

    def grammar(self, marks: Marks, reasoning: Thinking = Thinking.NONE) -> Grammar:
        """The grammar for workers."""
        lark = f"{OPTIONS}start: {reasoning.value}({self.start})\n{self.rules(marks)}"
        if reasoning is not Thinking.NONE:
            lark += "GAP: /\\n{0,2}/\n" + marks.until("end_of_thought", "</think>")
        if reasoning is Thinking.MAY:
            lark += f"{_THOUGHT}: {marks.literal('<think>')} end_of_thought\n"
        if not self.given:
            return Grammar(lark)
        given = {"name": "given", "lark_grammar": self.given}
        return Grammar(json.dumps({"grammars": [{"lark_grammar": lark}, given]}))


def json_form(schema: Schema) -> Form:
    """The form of JSON text that a schema validates."""
    return Form("json", lambda marks: f"json: {schema.lark}\n", schema.param, (schema,))


def grammar_of(response_format: Mapping[str, Any], param: str) -> Form | None:
    """The form that an OpenAI `response_format` asks for; None for free text.

    response_format: validated, `{"type": "text" | "json_object"}` or `{"type": "json_schema", "json_schema": {"schema":
    …, "strict": …}}`. param: the path of its schema in the request, for errors.
    """
    match response_format["type"]:
        case "text":
            return None
        case "json_object":
            return json_form(Schema({"type": "object"}, param))
        case _:
            spec = response_format["json_schema"]
            return json_form(Schema(spec["schema"], param, strict=bool(spec.get("strict"))))
