"""The neutral request: each API lowers its own to this one, and everything after that reads nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from router.errors import Path, fault, invalid
from router.text.grammar import Form
from router.text.tools.form import OfferedFunction

RawPrompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Names:
    """How an API spells the fields that checks of a neutral request name. turns: what is to be answered or continued.

    result: what it calls a tool's answer. values: it gives calls' arguments as JSON values, not as text.
    """

    turns: str = "messages"
    max_tokens: str = "max_tokens"
    result: str = "a tool message"
    values: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call the assistant made in an earlier turn. arguments: JSON text. at: its place in the client's request."""

    id: str
    name: str
    arguments: str
    at: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. at: its place in the client's request.

    text: None where an assistant only called. call_id: of the call that a tool's turn answers. left_out: the place of
    what is no text, in whose stead the text holds a note.
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
    """A function that may be called. shown: its JSON as templates read it, on which the model was trained."""

    function: OfferedFunction
    shown: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tools:
    """must_call: the answer is a call of these. single: it holds one call at most."""

    offered: tuple[Tool, ...] = ()
    must_call: bool = False
    single: bool = False


class Ending(Enum):
    """How a prompt ends: where the assistant's answer begins, with its last turn to be continued, or with neither."""

    ANSWER = "answer"
    CONTINUE = "continue"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns to answer. thinking: whether to reason first; None where the request leaves it open.

    variables: more names for the template. shorten: what is too long may lose its oldest turns.
    """

    turns: tuple[Turn, ...]
    tools: Tools = Tools()
    thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    ending: Ending = Ending.ANSWER
    shorten: bool = False

    @property
    def characters(self) -> int:
        """About how many there are to render. A tool's JSON is not measured, and counts as long."""
        said = sum(64 + len(t.text or "") + sum(len(c.arguments) for c in t.calls) for t in self.turns)
        return said + 2048 * len(self.tools.offered)


@dataclass(frozen=True, slots=True)
class RawPrompts:
    """Texts and token ids to continue."""

    prompts: tuple[RawPrompt, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and where an answer ends. max_tokens: None for what the context has left."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[str, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. form: what the content must be. token_ids: the answer lists them.

    cache_salt: only requests with the same one share prefixes that workers keep. session: the name of the session that
    it continues."""

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
        """How many sequences it comes to."""
        prompts = len(self.source.prompts) if isinstance(self.source, RawPrompts) else 1
        return prompts * self.sampling.n


def note(kind: str) -> str:
    """What the model reads in place of an image or a file in a tool's result."""
    return f"[{kind} left out: this model reads text alone]"


def shown_tool(function: OfferedFunction, description: str | None) -> Tool:
    """A tool of an API whose own JSON the model was not trained on: shown as the chat API has it."""
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
    """What may be called of `tools`. mode: None where the request does not say. chosen: names; None for all of them.

    400 naming `tools` or `tool_choice`, which all APIs call so.
    """
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("'tools': two functions have the same name", "tools")
    for name in chosen or ():
        if name not in names:
            raise invalid(f"'tool_choice': no function in 'tools' is called {name[:128]!r}", "tool_choice")
    if mode not in (None, "none") and not tools:
        raise invalid("'tool_choice' needs tools", "tool_choice")
    offered = () if mode == "none" else tuple(t for t in tools if chosen is None or t.function.name in chosen)
    return Tools(offered, mode == "required", single)


def check_calls(turns: Sequence[Turn], names: Names) -> None:
    """Each call is answered by one tool turn before anything else is said; 400 naming the turn at fault."""
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
