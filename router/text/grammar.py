"""What an answer's text must be, as a grammar that workers keep their sampling to (Lark as llguidance reads it)."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from router.text.schema_closed import closed
from wire.protocol import Grammar

# Without forcing: forced text is tokenized with markers in it as single tokens, which text may not hold.
OPTIONS = '%llguidance {"no_forcing": true}\n'
# JSON on one line, as models are trained to write calls: white space without a bound is where they get lost.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_THOUGHT = "thought"


class Marks:
    """A tokenizer's markers, such as `<tool_call>`, whose tokens no ordinary text contains."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = dict(ids)
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def literal(self, text: str) -> str:
        """Lark for exactly this text, markers in it by their tokens."""
        parts: list[str] = []
        at = 0
        for found in self._split.finditer(text) if self._split else ():
            parts += [quoted(text[at : found.start()]), f"<[{self._ids[found[0]]}]>"]
            at = found.end()
        parts.append(quoted(text[at:]))
        return " ".join(part for part in parts if part) or '""'

    def until(self, rule: str, end: str) -> str:
        """Lark rules: `rule` is any text up to and with the first `end`."""
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
    """A JSON Schema. param: where it stands in its request. strict: what the engine can't enforce of it is an error,
    else passed over."""

    content: dict[str, Any]
    param: str
    strict: bool = True

    @property
    def lark(self) -> str:
        """JSON text valid by it, of objects without properties that nobody named."""
        options = _LAYOUT if self.strict else {**_LAYOUT, "lenient": True}
        return "%json " + json.dumps({**closed(self.content), "x-guidance": options})


class Thinking(Enum):
    """Whether an answer may begin with reasoning, and whether its prompt has begun that already."""

    NONE = ""
    MAY = f"({_THOUGHT} GAP)? "
    BEGUN = "end_of_thought GAP "


@dataclass(frozen=True, slots=True)
class Form:
    """What the answer's text must be: what rule `start` is, of rules that depend on the tokenizer's markers.

    param: the request's field it comes from. schemas: those inside. given: the client's own grammar, `@given` to the
    rules.
    """

    start: str
    rules: Callable[[Marks], str]
    param: str
    schemas: tuple[Schema, ...] = ()
    given: str = ""

    def or_(self, other: "Form") -> "Form":
        """Either. Only one may have a grammar of the client's."""

        def rules(marks: Marks) -> str:
            return self.rules(marks) + other.rules(marks)

        start = f"{self.start} | {other.start}"
        return Form(start, rules, self.param, self.schemas + other.schemas, self.given or other.given)

    def grammar(self, marks: Marks, reasoning: Thinking = Thinking.NONE) -> Grammar:
        """For the workers."""
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
    """JSON text valid by a schema."""
    return Form("json", lambda marks: f"json: {schema.lark}\n", schema.param, (schema,))


def grammar_of(response_format: Mapping[str, Any], param: str) -> Form | None:
    """The form an OpenAI `response_format` asks for; None for free text.

    response_format: validated, `{"type": "text" | "json_object"}` or `{"type": "json_schema", "json_schema":
    {"schema": …, "strict": …}}`. param: the path of its schema in the request, which errors name.
    """
    match response_format["type"]:
        case "text":
            return None
        case "json_object":
            return json_form(Schema({"type": "object"}, param))
        case _:
            spec = response_format["json_schema"]
            return json_form(Schema(spec["schema"], param, strict=bool(spec.get("strict"))))
