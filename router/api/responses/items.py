"""Items of the responses API: what a client may send, and the plain form in which items are stored and read again.

An item's plain form is what the API shows: a dict with `id`, `type` and `status`, its content a list of parts.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from router.api.answers.items import (
    CallItem,
    CallOutputItem,
    CustomCallItem,
    InputMessage,
    InputReasoning,
    OutputMessage,
    OutputTextPart,
    ShellCallItem,
    Status,
)
from router.api.request import note
from router.api.responses.ids import new_id
from router.api.schema import Short, Strict, meaningless


def _part_list(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    return value


def tag(value: Any) -> str | None:
    """The discriminator: the object's type, marked so that it can be told from a field in an error's path."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"#{kind}" if kind is not None else None


class InputText(Strict):
    """Text that was sent to the model."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = meaningless(None)  # prefixes are cached without marks

    def said(self) -> str:
        """The part's text."""
        return self.text


class OutputText(Strict):
    """Text that the model wrote."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = meaningless(None)
    logprobs: list[Any] | None = meaningless(None)
    parsed: Any = meaningless(None)  # the parsed text, added by an SDK

    def said(self) -> str:
        """The part's text."""
        return self.text


class Refusal(Strict):
    """A part in which the model refused to answer."""

    type: Literal["refusal"]
    refusal: str

    def said(self) -> str:
        """The part's text."""
        return self.refusal


class Attachment(BaseModel):
    """An image or a file that a function returned. The model gets a note that it was left out."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["input_image", "input_file"]

    def said(self) -> str:
        """The note."""
        return note(self.type.removeprefix("input_"))


ReturnedPart = Annotated[
    Annotated[InputText, Tag("#input_text")]
    | Annotated[OutputText, Tag("#output_text")]
    | Annotated[Attachment, Tag("#input_image")],
    Discriminator(lambda value: "#input_image" if tag(value) == "#input_file" else tag(value)),
]
Returned = Annotated[list[ReturnedPart], BeforeValidator(_part_list, json_schema_input_type=str | list[ReturnedPart])]
Part = Annotated[
    Annotated[InputText, Tag("#input_text")]
    | Annotated[OutputText, Tag("#output_text")]
    | Annotated[Refusal, Tag("#refusal")],
    Discriminator(tag),
]
Parts = Annotated[list[Part], BeforeValidator(_part_list, json_schema_input_type=str | list[Part])]


class Message(Strict):
    """A message of any role."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: Short | None = None
    status: Status = "completed"
    phase: Literal["commentary", "final_answer"] | None = meaningless(None)

    def plain(self) -> OutputMessage | InputMessage:
        """The item's plain form."""
        if self.role == "assistant":
            return output_message(self.id, [output_text(part.said()) for part in self.content], self.status)
        return {
            "id": self.id or new_id("msg"),
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [{"type": "input_text", "text": part.said()} for part in self.content],
        }


class FunctionCall(Strict):
    """A function call that the model made.

    A call that is `incomplete` and has no output is left out: it was cut off and never run.
    """

    type: Literal["function_call"]
    call_id: Short
    name: str
    arguments: str
    parsed_arguments: Any = meaningless(None)  # added by an SDK
    namespace: Short | None = None
    id: Short | None = None
    status: Status = "completed"

    def plain(self) -> CallItem:
        """The item's plain form."""
        item: CallItem = {
            "id": self.id or new_id("fc"),
            "type": "function_call",
            "status": self.status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }
        if self.namespace is not None:
            item["namespace"] = self.namespace
        return item


class CustomToolCall(Strict):
    """A call of a custom tool that the model made."""

    type: Literal["custom_tool_call"]
    call_id: Short
    name: str
    input: str
    namespace: Short | None = None
    id: Short | None = None
    status: Status = "completed"

    def plain(self) -> CustomCallItem:
        """The item's plain form."""
        item: CustomCallItem = {
            "id": self.id or new_id("ctc"),
            "type": "custom_tool_call",
            "status": self.status,
            "call_id": self.call_id,
            "name": self.name,
            "input": self.input,
        }
        if self.namespace is not None:
            item["namespace"] = self.namespace
        return item


class ShellExec(Strict):
    """A command for the client's shell."""

    type: Literal["exec"]
    command: list[str]
    env: dict[str, str] = Field(default_factory=dict)
    timeout_ms: int | None = None
    user: str | None = None
    working_directory: str | None = None


class LocalShellCall(Strict):
    """A call of the client's shell that the model made."""

    type: Literal["local_shell_call"]
    call_id: Short
    action: ShellExec
    id: Short | None = None
    status: Status = "completed"

    def plain(self) -> ShellCallItem:
        """The item's plain form."""
        a = self.action
        return {
            "id": self.id or new_id("lsh"),
            "type": "local_shell_call",
            "status": self.status,
            "call_id": self.call_id,
            "action": {
                "type": "exec",
                "command": a.command,
                "env": a.env,
                "timeout_ms": a.timeout_ms,
                "user": a.user,
                "working_directory": a.working_directory,
            },
        }


class FunctionCallOutput(Strict):
    """The result of a function call."""

    type: Literal["function_call_output", "custom_tool_call_output", "local_shell_call_output"]
    call_id: Short = ""
    output: Returned
    id: Short | None = None
    status: Status = "completed"
    name: str | None = meaningless(None)

    def plain(self) -> CallOutputItem:
        """The item's plain form."""
        return {
            "id": self.id or new_id("fco"),
            "type": self.type,
            "status": self.status,
            # In some clients a shell's output names its call by `id` alone.
            "call_id": self.call_id or self.id or "",
            "output": "\n".join(part.said() for part in self.output),
        }


class ItemReference(Strict):
    """A reference to a stored item: one of a stored response or of its input."""

    type: Literal["item_reference"]
    id: Short


class ReasoningItem(Strict):
    """Earlier reasoning. The model family's templates leave it out of prompts."""

    type: Literal["reasoning"]
    id: Short | None = None
    summary: list[dict[str, Any]] = Field(default_factory=list, max_length=64)
    content: list[dict[str, Any]] = Field(default_factory=list, max_length=64)
    encrypted_content: str | None = meaningless(None)
    status: Status = "completed"

    def plain(self) -> InputReasoning:
        """The item's plain form."""
        return {
            "id": self.id or new_id("rs"),
            "type": "reasoning",
            "status": self.status,
            "summary": self.summary,
            "content": self.content,
        }


def _item_tag(value: Any) -> str | None:
    """The discriminator: the item's type; an item without a type is a message."""
    found = tag(value) or ("#message" if isinstance(value, dict) and "role" in value else None)
    return "#function_call_output" if found in ("#custom_tool_call_output", "#local_shell_call_output") else found


InputItem = Annotated[
    Annotated[Message, Tag("#message")]
    | Annotated[FunctionCall, Tag("#function_call")]
    | Annotated[CustomToolCall, Tag("#custom_tool_call")]
    | Annotated[LocalShellCall, Tag("#local_shell_call")]
    | Annotated[FunctionCallOutput, Tag("#function_call_output")]
    | Annotated[ReasoningItem, Tag("#reasoning")]
    | Annotated[ItemReference, Tag("#item_reference")],
    Discriminator(_item_tag),
]


def output_message(item_id: str | None, content: list[OutputTextPart], status: Status) -> OutputMessage:
    """The plain form of a message that the model wrote."""
    head = item_id or new_id("msg")
    return {"id": head, "type": "message", "status": status, "role": "assistant", "content": content}


def output_text(text: str) -> OutputTextPart:
    """The plain form of a text part that the model wrote."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
