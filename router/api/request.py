"""The neutral request. Each API lowers its own requests to this one, and everything after that reads nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import msgspec

from router.errors import Path, fault, invalid
from router.text.grammar import Form
from router.text.tools.form import OfferedFunction

RawPrompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Names:
    """An API's names for fields of the neutral request, for error messages.

    turns: the conversation. result: a tool's answer. values: whether the API has calls' arguments as JSON values
    instead of text.
    """

    turns: str = "messages"
    max_tokens: str = "max_tokens"
    result: str = "a tool message"
    values: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the assistant made in an earlier turn. arguments: JSON text. at: its path in the client's request."""

    id: str
    name: str
    arguments: str
    at: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    at: its path in the client's request. text: None if an assistant only made calls. call_id: the call that a tool's
    turn answers. left_out: the path of an image or file that a note in the text replaces.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str | None
    at: Path
    name: str | None = None
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    left_out: Path | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    shown: its JSON as the template renders it, in the form the model was trained on.
    """

    function: OfferedFunction
    shown: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that the model may call. must_call: the answer must be a call. single: it may hold at most one call."""

    offered: tuple[Tool, ...] = ()
    must_call: bool = False
    single: bool = False


class Ending(Enum):
    """How a prompt ends: before a new answer, within the last turn (to be continued), or after the last turn."""

    ANSWER = "answer"
    CONTINUE = "continue"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns to answer.

    thinking: whether to reason first; None if the request leaves it open. variables: further variables for the
    template. shorten: a conversation that is too long may lose its oldest turns.
    """

    turns: tuple[Turn, ...]
    tools: Tools = Tools()
    thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    ending: Ending = Ending.ANSWER
    shorten: bool = False

    @property
    def characters(self) -> int:
        """About how many characters there are to render. A tool's JSON is not measured, and counts as long."""
        said = sum(64 + len(t.text or "") + sum(len(c.arguments) for c in t.calls) for t in self.turns)
        return said + 2048 * len(self.tools.offered)


@dataclass(frozen=True, slots=True)
class RawPrompts:
    """Prompts to continue, as texts or token ids."""

    prompts: tuple[RawPrompt, ...]


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are sampled and where an answer ends. max_tokens: None for all that the context has left."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[str, float] = msgspec.field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """A neutral request.

    form: the form of the content; None if it is free. token_ids: whether the answer lists token ids. cache_salt:
    requests share cached prefixes only if their salts are equal. session: the name of the session that it continues.
    """

    source: Conversation | RawPrompts
    sampling: Sampling
    form: Form | None = None
    stream: bool = False
    cache_salt: str | None = None
    session: str | None = None
    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    priority: int = 0
    names: Names = Names()

    @property
    def choices(self) -> int:
        """The number of sequences that answer it."""
        prompts = len(self.source.prompts) if isinstance(self.source, RawPrompts) else 1
        return prompts * self.sampling.n


def note(kind: str) -> str:
    """The note that the model reads instead of an image or a file in a tool's result."""
    return f"[{kind} left out: this model reads text alone]"


def shown_tool(function: OfferedFunction, description: str | None) -> Tool:
    """Make a tool in the chat API's JSON, on which the model was trained, for an API with another format."""
    shown: dict[str, Any] = {"name": function.name}
    if description is not None:
        shown["description"] = description
    if function.parameters is not None:
        shown["parameters"] = function.parameters
    return Tool(function, {"type": "function", "function": shown})


def choose_tools(
    tools: Sequence[Tool],
    mode: Literal["auto", "none", "required"] | None,
    chosen: Sequence[str] | None,
    *,
    single: bool,
) -> Tools:
    """Select the tools that may be called.

    mode: None if the request leaves it open. chosen: names; None for all tools. The 400 names `tools` or `tool_choice`,
    as these fields are called in all APIs.
    """
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("'tools': two functions have the same name; give each a name of its own", "tools")
    for name in chosen or ():
        if name not in names:
            raise invalid(f"'tool_choice': no function in 'tools' is called {name[:128]!r}", "tool_choice")
    if mode not in (None, "none") and not tools:
        raise invalid("'tool_choice' needs tools", "tool_choice")
    offered = () if mode == "none" else tuple(t for t in tools if chosen is None or t.function.name in chosen)
    return Tools(offered, mode == "required", single)


def check_calls(turns: Sequence[Turn], names: Names) -> None:
    """Check that one tool turn answers each call before the next other turn; the 400 names the turn at fault."""
    waiting: list[str] = []
    for turn in turns:
        if turn.role == "tool":
            if turn.call_id not in waiting:
                raise _mismatch(turn.at, f"{turn.call_id[:80]!r} answers no open call before it")
            waiting.remove(turn.call_id)
            continue
        if waiting:
            raise _mismatch(turn.at, f"calls without {names.result} before it: {_few(waiting)}")
        for call in turn.calls:
            if call.id in waiting:
                raise _mismatch(call.at, f"two calls have the same id: {call.id[:80]!r}")
            waiting.append(call.id)
    if waiting:
        raise _mismatch((names.turns,), f"calls without {names.result} at the end: {_few(waiting)}")


def _few(ids: Sequence[str]) -> str:
    return ", ".join(repr(i[:80]) for i in ids[:4])


def _mismatch(at: Path, reason: str) -> Exception:
    return fault(at, reason, "tool_calls_mismatch")
