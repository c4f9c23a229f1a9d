"""Forms other than JSON: regular expressions, choices, the client's own grammars, tags within free text."""

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from router.errors import invalid
from router.text.grammar import OPTIONS, Form, Marks, Schema, quoted, without


def regex_form(pattern: str, param: str) -> Form:
    """The form of text that matches a regular expression as a whole."""
    return Form("TEXT", lambda marks: f"TEXT: /{regex_to_lark(pattern)}/\n", param)


def choice_form(options: Sequence[str], param: str) -> Form:
    """The form of exactly one of these texts."""
    return Form("choice", lambda marks: f"choice: {' | '.join(map(quoted, options))}\n", param)


def client_form(text: str, param: str) -> Form:
    """The form of a client's grammar: Lark, or llama.cpp's EBNF, recognized by its `::=`. 400 if it can't be read."""
    if "::=" in text:
        try:
            text = gbnf_to_lark(text)
        except (GbnfToLarkError, RecursionError) as error:
            raise invalid(f"'{param}': {error}", param, "invalid_grammar") from None
    return Form("given", lambda marks: "given: @given\n", param, given=f"{text}\n{OPTIONS}")


@dataclass(frozen=True, slots=True)
class Tagged:
    """JSON between a beginning and an end."""

    begin: str
    schema: Schema
    end: str


def tagged_form(tags: Sequence[Tagged], triggers: Sequence[str], param: str) -> Form:
    """The form of free text in which each trigger must continue as one of the tags that begin with it.

    Each tag begins with a trigger.
    """
    # The longest first, because another trigger may be a part of it.
    of = [max((t for t in triggers if tag.begin.startswith(t)), key=len) for tag in tags]
    used = tuple(dict.fromkeys(of))

    def rules(marks: Marks) -> str:
        lark = "tagged: (" + " | ".join(f"tag_{i}" for i in range(len(tags))) + ")* REST\n"
        lark += "".join(marks.until(f"until_{n}", trigger) for n, trigger in enumerate(used)) + without("REST", used)
        for i, (tag, trigger) in enumerate(zip(tags, of, strict=True)):
            begin = marks.literal(tag.begin[len(trigger) :])
            end = marks.literal(tag.end)
            lark += f"tag_{i}: until_{used.index(trigger)} {begin} {tag.schema.lark} {end}\n"
        return lark

    return Form("tagged", rules, param, tuple(tag.schema for tag in tags))
