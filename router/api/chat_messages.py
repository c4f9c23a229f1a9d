"""Messages and tools of a chat request, and their lowering to the turns and tools of a neutral request."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from router.api.request import Call, Tool, Turn, note
from router.api.schema import Strict, meaningless
from router.text.tools.form import OfferedFunction

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
    # Prefixes are cached without marks.
    cache_control: dict[str, Any] | None = meaningless(None)
    prompt_cache_breakpoint: dict[str, Any] | None = meaningless(None)


class RefusalPart(Strict):
    """A part in which the model refused to answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The refusal's text."""
        return self.refusal


class Attachment(BaseModel):
    """An image, a sound or a file that a tool returned. The model gets a note that it was left out."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["image_url", "input_audio", "file"]

    @property
    def text(self) -> str:
        """The note."""
        return note({"image_url": "image", "input_audio": "sound"}.get(self.type, "file"))


class Function(Strict):
    """A called function: its name, and its arguments as the JSON text that the model wrote."""

    name: str
    arguments: str
    parsed_arguments: Any = meaningless(None, exclude=True)  # added by an SDK


class ToolCall(Strict):
    """A tool call that the assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: Function
    index: int | None = meaningless(None, exclude=True)
    # What other vendors' servers and gateways add to a call and want back.
    provider_specific_fields: dict[str, Any] | None = meaningless(None, exclude=True)
    extra_content: dict[str, Any] | None = meaningless(None, exclude=True)


Content = Annotated[list[TextPart], BeforeValidator(_part_list, json_schema_input_type=str | list[TextPart])]


ReturnedPart = Annotated[TextPart | Attachment, Field(discriminator="type")]
ReturnedContent = Annotated[
    list[ReturnedPart], BeforeValidator(_part_list, json_schema_input_type=str | list[ReturnedPart])
]
AnswerPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
AnswerContent = Annotated[list[AnswerPart], BeforeValidator(_part_list, json_schema_input_type=str | list[AnswerPart])]


class BaseMessage(Strict):
    """The fields that all messages have."""

    content: Content
    name: str | None = Field(None, description="the model sees it if its chat template uses it")
    cache_control: dict[str, Any] | None = meaningless(None)

    @property
    def text(self) -> str:
        """Join the content's texts."""
        return "\n".join(part.text for part in self.content)

    @abstractmethod
    def lower(self, place: int) -> Turn:
        """Lower to a neutral turn. place: the message's index in the request."""


class SystemMessage(BaseMessage):
    """Instructions to the model; the role `developer` means the same as `system`."""

    role: Literal["system", "developer"]

    def lower(self, place: int) -> Turn:
        """Lower to a neutral turn."""
        return Turn("system", self.text, ("messages", place), self.name)


class UserMessage(BaseMessage):
    """A message from the user."""

    role: Literal["user"]

    def lower(self, place: int) -> Turn:
        """Lower to a neutral turn."""
        return Turn("user", self.text, ("messages", place), self.name)


class AssistantMessage(BaseMessage):
    """An earlier answer of the model, with text, tool calls or both."""

    role: Literal["assistant"]
    content: AnswerContent = Field(default_factory=list)  # type: ignore[assignment]
    refusal: str | None = Field(None, description="used as the content if there is none")
    tool_calls: list[ToolCall] = Field(default_factory=list)
    # The model family's templates leave earlier reasoning out. Servers send it under either of these names.
    reasoning_content: str | None = meaningless(None)
    reasoning: str | None = meaningless(None)
    reasoning_details: list[Any] | None = meaningless(None)
    annotations: list[Any] | None = meaningless(None)
    thinking_blocks: list[Any] | None = meaningless(None)
    provider_specific_fields: dict[str, Any] | None = meaningless(None)
    parsed: Any = meaningless(None)  # the parsed content, added by an SDK

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        """Read null content as empty: clients send back an empty answer this way."""
        said = isinstance(value, dict) and (value.get("tool_calls") or value.get("refusal"))
        if isinstance(value, dict) and not said and value.get("content", "") is None:
            return {**value, "content": ""}
        return value

    @model_validator(mode="after")
    def _says_something(self) -> "AssistantMessage":
        if not {"content", "refusal"} & self.model_fields_set and not self.tool_calls:
            raise ValueError("an assistant message needs content or tool_calls")
        return self

    def lower(self, place: int) -> Turn:
        """Lower to a neutral turn."""
        at = ("messages", place)
        calls = tuple(Call(c.id, c.function.name, c.function.arguments, (*at, "tool_calls")) for c in self.tool_calls)
        text = self.text if "content" in self.model_fields_set else self.refusal
        return Turn("assistant", text, at, self.name, calls)


class ToolMessage(BaseMessage):
    """The result of a function call."""

    role: Literal["tool"]
    content: ReturnedContent  # type: ignore[assignment]
    tool_call_id: str

    def lower(self, place: int) -> Turn:
        """Lower to a neutral turn."""
        at = ("messages", place)
        left_out = next((i for i, part in enumerate(self.content) if isinstance(part, Attachment)), None)
        return Turn(
            "tool",
            self.text,
            (*at, "tool_call_id"),
            self.name,
            call_id=self.tool_call_id,
            left_out=None if left_out is None else (*at, "content", left_out, "type"),
        )


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionSpec(Strict):
    """A function that the model may call. `parameters` is a JSON Schema, which the model sees unchanged."""

    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="true: the arguments of calls are always valid")


class FunctionTool(Strict):
    """A tool. The model sees its JSON exactly as the client sent it, because it was trained on that text."""

    type: Literal["function"]
    function: FunctionSpec
    cache_control: dict[str, Any] | None = meaningless(None)
    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ModelWrapValidatorHandler["FunctionTool"]) -> "FunctionTool":
        tool = handler(value)
        if isinstance(value, dict):
            function = {k: v for k, v in value["function"].items() if v is not None and k != "strict"}
            tool._sent = {k: v for k, v in value.items() if k != "cache_control"} | {"function": function}
        return tool

    def lower(self, place: int) -> Tool:
        """Lower to a neutral tool. place: the tool's index in the request."""
        f = self.function
        param = f"tools[{place}].function.parameters"
        return Tool(OfferedFunction(f.name, f.parameters, param, strict=bool(f.strict)), self._sent)


def turns(messages: Sequence[BaseMessage]) -> tuple[Turn, ...]:
    """Lower the messages to neutral turns."""
    return tuple(message.lower(i) for i, message in enumerate(messages))
