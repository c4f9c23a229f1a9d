"""Items of the responses API: what a client may send, and the plain form in which they are kept and read again.

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
    """The type, marked so that an error's path tells it from a field."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"#{kind}" if kind is not None else None


class InputText(Strict):
    """Text sent to the model."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = meaningless(None)  # prompts are not cached by mark

    def said(self) -> str:
        """Its text."""
        return self.text


class OutputText(Strict):
    """Text of the model."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = meaningless(None)
    logprobs: list[Any] | None = meaningless(None)
    parsed: Any = meaningless(None)  # the text, as an SDK adds it

    def said(self) -> str:
        """Its text."""
        return self.text


class Refusal(Strict):
    """A refusal in the model's words."""

    type: Literal["refusal"]
    refusal: str

    def said(self) -> str:
        """Its text."""
        return self.refusal


class Attachment(BaseModel):
    """An image or a file that a function returned: a note to the model that it was left out."""

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
        """As kept."""
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
    """A call the model made. One that is `incomplete` and without an output was never made, and is left out."""

    type: Literal["function_call"]
    call_id: Short
    name: str
    arguments: str
    parsed_arguments: Any = meaningless(None)  # as an SDK adds them
    namespace: Short | None = None
    id: Short | None = None
    status: Status = "completed"

    def plain(self) -> CallItem:
        """As kept."""
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
        """As kept."""
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
        """As kept."""
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
        """As kept."""
        return {
            "id": self.id or new_id("fco"),
            "type": self.type,
            "status": self.status,
            # A shell's output names its call by `id` alone in some clients.
            "call_id": self.call_id or self.id or "",
            "output": "\n".join(part.said() for part in self.output),
        }


class ItemReference(Strict):
    """An item that is kept: of a stored response, or of what one was asked with."""

    type: Literal["item_reference"]
    id: Short


class ReasoningItem(Strict):
    """Earlier reasoning, which the family's templates leave out."""

    type: Literal["reasoning"]
    id: Short | None = None
    summary: list[dict[str, Any]] = Field(default_factory=list, max_length=64)
    content: list[dict[str, Any]] = Field(default_factory=list, max_length=64)
    encrypted_content: str | None = meaningless(None)
    status: Status = "completed"

    def plain(self) -> InputReasoning:
        """As kept."""
        return {
            "id": self.id or new_id("rs"),
            "type": "reasoning",
            "status": self.status,
            "summary": self.summary,
            "content": self.content,
        }


def _item_tag(value: Any) -> str | None:
    """A message need not name its type."""
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
    """The plain form of a message of the model's."""
    head = item_id or new_id("msg")
    return {"id": head, "type": "message", "status": status, "role": "assistant", "content": content}


def output_text(text: str) -> OutputTextPart:
    """A part of what the model said."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
