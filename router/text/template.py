"""A checkpoint's chat template.

It is rendered in a sandbox, because it comes with the weights and must not reach the machine.
"""

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from router.text.shield import STAND_INS, Shield

_FOREIGN = re.compile(f"[^\\x00-\\x7f{STAND_INS}]+")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation, in which clients' texts are shielded, and numbers replace `exact` ids."""

    text: str
    shield: Shield
    exact: list[bytes]

    @property
    def thinking(self) -> bool:
        """Whether the prompt ends within reasoning that the template has begun."""
        return self.text.rstrip().endswith("<think>")

    def pieces(self, text: str) -> Iterator[str | bytes]:
        """Split a part of `text` into texts to encode and ids that are encoded already."""
        for i, piece in enumerate(self.shield.split(text)):
            yield self.exact[int(piece)] if i % 2 else self.shield.plain(piece)


class ChatTemplate:
    """One compiled template and the special tokens that it may name.

    markers: the markers that only it may write. takes_tools: whether it renders tools. switches_thinking: whether it
    knows the model family's switch for reasoning. keeps_turns: whether later prompts contain an assistant's turn
    unchanged, after the end of the turn's own prompt.
    """

    def __init__(self, source: str, special: dict[str, str], markers: Sequence[str] = ()) -> None:
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        env.filters["tojson"] = _to_json
        env.globals["raise_exception"] = _raise
        env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._template = env.from_string(source)
        self.takes_tools = "tools" in meta.find_undeclared_variables(env.parse(source))
        self.switches_thinking = "detailed thinking" in source
        self._special = special
        self._shield = Shield(markers, avoid=source)
        self.keeps_turns = self._keeps_turns()

    @classmethod
    def load(cls, folder: Path, markers: Sequence[str] = ()) -> "ChatTemplate | None":
        """The template of chat_template.jinja, else of tokenizer_config.json; None if there is none."""
        config_file = folder / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(config_file.read_text()) if config_file.is_file() else {}
        file = folder / "chat_template.jinja"
        source = file.read_text() if file.is_file() else config.get("chat_template")
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
        if not source:
            return None
        special = {}
        for name in _SPECIAL:
            token = config.get(name)
            if token:
                special[name] = token["content"] if isinstance(token, dict) else token
        return cls(source, special, markers)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        variables: dict[str, Any] | None = None,
        *,
        answer: bool = True,
        end: str = "",
    ) -> Rendered:
        """A prompt; ValueError with the template's own words if it refuses.

        variables: further variables, which the template's own override. answer: the prompt ends where the assistant's
        answer begins, else after the last message. end: a text in the messages, before whose last occurrence the prompt
        ends.
        """
        over = self._shield.over(messages, tools, variables or {})
        given = {**over.variables, **self._special, "messages": over.messages, "tools": over.tools}
        try:
            text = self._template.render(given, add_generation_prompt=answer)
        except (TemplateError, TypeError, ValueError, KeyError, OverflowError) as error:
            reason = over.shield.plain(str(error))
            raise ValueError(f"the chat template refuses these messages: {reason}") from error
        if end not in text:
            raise ValueError("the chat template leaves out the last message, so it can't be continued")
        return Rendered(text.rpartition(end)[0] if end else text, over.shield, over.exact)

    def _keeps_turns(self) -> bool:
        def written(*turns: dict[str, Any]) -> str:
            return self.render([_USER, *turns]).text

        try:
            before, _, after = written({"role": "assistant", "content": _MADE_UP}, _USER).partition(_MADE_UP)
            said, _, answered = written({"role": "assistant", "content": _MADE_UP}, _RESULT, _USER).partition(_MADE_UP)
            called = written({"role": "assistant", "content": "", "tool_calls": [_CALL]}, _RESULT, _USER)
            return before == said == written() and bool(after) and called.startswith(said) and called.endswith(answered)
        except ValueError:
            return False


_MADE_UP = "made up"
_USER = {"role": "user", "content": "u"}
_RESULT = {"role": "tool", "tool_call_id": "c", "content": "r"}
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encode JSON as templates expect it, without the HTML escapes of Jinja's own filter.

    The shield's stand-ins are never escaped, because they are letters.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _FOREIGN.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
