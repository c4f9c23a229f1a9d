"""Messages and tools of a chat: their schema, the order they must stand in, and what a template reads of them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from router.api.schema import Strict, meaningless
from router.errors import ApiError, invalid

_ON, _OFF = "detailed thinking on", "detailed thinking off"
_NAME = r"^[a-zA-Z0-9_-]{1,128}$"


def _part_list(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of text parts")
    return value


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str
    # Prompts are not cached by mark.
    cache_control: dict[str, Any] | None = meaningless(None)
    prompt_cache_breakpoint: dict[str, Any] | None = meaningless(None)


class Function(Strict):
    """A function's name and its arguments as JSON text, as the model wrote them."""

    name: str
    arguments: str
    parsed_arguments: Any = meaningless(None, exclude=True)  # as an SDK adds them


class ToolCall(Strict):
    """A call the assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: Function
    index: int | None = meaningless(None, exclude=True)


Content = Annotated[list[TextPart], BeforeValidator(_part_list, json_schema_input_type=str | list[TextPart])]


class BaseMessage(Strict):
    """What messages share."""

    content: Content
    name: str | None = Field(None, description="shown to the model where its template has a place for it")
    cache_control: dict[str, Any] | None = meaningless(None)


class SystemMessage(BaseMessage):
    """Instructions; `developer` is the newer word for the same."""

    role: Literal["system", "developer"]


class UserMessage(BaseMessage):
    """What the user said."""

    role: Literal["user"]


class AssistantMessage(BaseMessage):
    """What the model said or called."""

    role: Literal["assistant"]
    content: Content = Field(default_factory=list)
    tool_calls: list[ToolCall] = Field(default_factory=list)
    # The family's templates leave earlier reasoning out, by whichever name a server gave it.
    reasoning_content: str | None = meaningless(None)
    reasoning: str | None = meaningless(None)
    reasoning_details: list[Any] | None = meaningless(None)
    annotations: list[Any] | None = meaningless(None, max_length=0)
    parsed: Any = meaningless(None)  # the content, as an SDK adds it

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        """An answer that ended before it said anything comes back so."""
        if isinstance(value, dict) and not value.get("tool_calls") and value.get("content", "") is None:
            return {**value, "content": ""}
        return value

    @model_validator(mode="after")
    def _says_something(self) -> "AssistantMessage":
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(BaseMessage):
    """What a called function returned."""

    role: Literal["tool"]
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionSpec(Strict):
    """A function the model may call. parameters: JSON Schema, shown to the model as it is."""

    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="true: calls are made of valid arguments alone")


class Tool(Strict):
    """A tool, and its JSON as the client sent it: the model was trained on that very text."""

    type: Literal["function"]
    function: FunctionSpec
    cache_control: dict[str, Any] | None = meaningless(None)
    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ModelWrapValidatorHandler["Tool"]) -> "Tool":
        tool = handler(value)
        if isinstance(value, dict):
            function = {k: v for k, v in value["function"].items() if v is not None and k != "strict"}
            tool._sent = {k: v for k, v in value.items() if k != "cache_control"} | {"function": function}
        return tool

    @property
    def sent(self) -> dict[str, Any]:
        """As a chat template reads it."""
        return self._sent


def check_calls(messages: Sequence[BaseMessage]) -> None:
    """Each call is answered by one tool message, before anything else is said; 400 naming the one at fault."""
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in waiting:
                raise _mismatch(
                    f"messages[{i}].tool_call_id", f"{message.tool_call_id[:80]!r} answers no open call before it"
                )
            waiting.remove(message.tool_call_id)
            continue
        if waiting:
            raise _mismatch(f"messages[{i}]", f"calls without a tool message before it: {_few(waiting)}")
        if isinstance(message, AssistantMessage):
            waiting = [call.id for call in message.tool_calls]
            if len(set(waiting)) < len(waiting):
                raise _mismatch(f"messages[{i}].tool_calls", "two calls have the same id")
    if waiting:
        raise _mismatch("messages", f"they end with calls without a tool message: {_few(waiting)}")


def _few(ids: list[str]) -> str:
    return ", ".join(repr(i[:80]) for i in ids[:4])


def _mismatch(param: str, reason: str) -> ApiError:
    return invalid(f"'{param}': {reason}", param, "tool_calls_mismatch")


def for_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """As a chat template reads them: content is text, unset fields are absent, results stand in their calls' order.

    The order matters because the family's format does not name the call a result belongs to.
    """
    out: list[dict[str, Any]] = []
    order: dict[str, int] = {}
    results: list[tuple[int, dict[str, Any]]] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            results.append((order[message.tool_call_id], _plain(message)))
            continue
        out += _in_order(results)
        results = []
        if isinstance(message, AssistantMessage):
            order = {call.id: n for n, call in enumerate(message.tool_calls)}
        out.append(_plain(message))
    return out + _in_order(results)


def _in_order(results: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [message for _, message in sorted(results, key=lambda r: r[0])]


def _plain(message: BaseMessage) -> dict[str, Any]:
    out = message.model_dump(exclude_unset=True, include={"role", "name", "tool_call_id", "tool_calls"})
    said = "content" in message.model_fields_set
    out["content"] = "\n".join(part.text for part in message.content) if said else None
    if out["role"] == "developer":
        out["role"] = "system"
    for call in out.get("tool_calls", ()):
        call["function"]["arguments"] = call["function"]["arguments"] or "{}"
    return out


def with_thinking(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the family's switch for reasoning in the system text, unless that text sets it itself."""
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": _ON}, *messages]
    if _ON in first["content"] or _OFF in first["content"]:
        return messages
    return [{**first, "content": f"{first['content']}\n{_ON}".lstrip("\n")}, *messages[1:]]
