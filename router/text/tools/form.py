"""The form of answers with tool calls, in which calls are complete and name only offered functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.errors import invalid
from router.text.grammar import Form, Marks, Schema, without
from router.text.tool_parser import ToolParser

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class OfferedFunction:
    """A function that the model may call. parameters: None if it has none. param: their path in the request."""

    name: str
    parameters: dict[str, Any] | None
    param: str
    strict: bool

    def schema(self) -> Schema:
        """The schema of its arguments; 400 if they are no object."""
        content = self.parameters if self.parameters is not None else _NO_ARGUMENTS
        if content.get("type", "object") != "object":
            raise invalid(f"'{self.param}.type': a function's arguments are an 'object'", f"{self.param}.type")
        return Schema({"type": "object", **content}, self.param, self.strict)


def answer_form(
    parser: type[ToolParser],
    functions: Sequence[OfferedFunction],
    content: Form | None,
    *,
    must_call: bool,
    single: bool,
) -> Form | None:
    """The form of an answer to which these functions are offered; None if it is free.

    content: the form of an answer without calls. single: at most one call. If text is free and a function is strict,
    text stays free up to the beginning of a call.
    """
    if not functions:
        return content
    if must_call:
        return _calls(parser, functions, single=single)
    if content is not None:
        return content.or_(_calls(parser, functions, single=single))
    if any(f.strict for f in functions):
        return _calls_amid_text(parser, functions, single=single)
    return None


def _calls(parser: type[ToolParser], functions: Sequence[OfferedFunction], *, single: bool) -> Form:
    """Rules for calls and nothing else."""
    schemas = tuple(f.schema() for f in functions)

    def rules(marks: Marks) -> str:
        one = f"{marks.literal(parser.trigger)} call"
        more = "" if single else f" ({marks.literal(parser.between)} {one})*"
        return f"calls: {one}{more}\n{_bodies(parser, functions, schemas, marks)}"

    return Form("calls", rules, "tools", schemas)


def _calls_amid_text(parser: type[ToolParser], functions: Sequence[OfferedFunction], *, single: bool) -> Form:
    """Rules for free text with calls in it."""
    schemas = tuple(f.schema() for f in functions)

    def rules(marks: Marks) -> str:
        lark = f"calls: (until_call call){'?' if single else '*'} REST\n{_bodies(parser, functions, schemas, marks)}"
        return lark + marks.until("until_call", parser.trigger) + without("REST", (parser.trigger,))

    return Form("calls", rules, "tools", schemas)


def _bodies(
    parser: type[ToolParser], functions: Sequence[OfferedFunction], schemas: Sequence[Schema], marks: Marks
) -> str:
    """Rule `call`: a call of any of the functions, after the trigger."""
    bodies = [parser.call(f.name, s.lark, marks) for f, s in zip(functions, schemas, strict=True)]
    options = " | ".join(f"call_{i}" for i in range(len(bodies)))
    return "".join([f"call: {options}\n", *(f"call_{i}: {body}\n" for i, body in enumerate(bodies))])
