"""Items of the responses API, as they are stored and shown."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from router.api.answers.generated import TokenLogprobs

Status = Literal["in_progress", "completed", "incomplete"]
Nothing = Annotated[list[Any], Field(max_length=0)]


class OutputTextPart(TypedDict):
    """Text that the model wrote. logprobs: empty unless `include` asks for them."""

    type: Literal["output_text"]
    text: str
    annotations: Nothing
    logprobs: list[TokenLogprobs]


class InputTextPart(TypedDict):
    """Text that was sent to the model."""

    type: Literal["input_text"]
    text: str


class ReasoningTextPart(TypedDict):
    """Text of the model's reasoning."""

    type: Literal["reasoning_text"]
    text: str


class _Message(TypedDict):
    id: str
    type: Literal["message"]
    status: Status


class OutputMessage(_Message):
    """A message that the model wrote."""

    role: Literal["assistant"]
    content: list[OutputTextPart]


class InputMessage(_Message):
    """A message that was sent to the model."""

    role: Literal["user", "system", "developer"]
    content: list[InputTextPart]


class CallItem(TypedDict):
    """A function call. arguments: JSON as the model wrote it."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str
    namespace: NotRequired[str]


class CustomCallItem(TypedDict):
    """A call of a custom tool. input: free text."""

    id: str
    type: Literal["custom_tool_call"]
    status: Status
    call_id: str
    name: str
    input: str
    namespace: NotRequired[str]


class ShellAction(TypedDict):
    """A command for the client's shell."""

    type: Literal["exec"]
    command: list[str]
    env: dict[str, str]
    timeout_ms: int | None
    user: str | None
    working_directory: str | None


class ShellCallItem(TypedDict):
    """A call of the client's shell."""

    id: str
    type: Literal["local_shell_call"]
    status: Status
    call_id: str
    action: ShellAction


class CallOutputItem(TypedDict):
    """The result of a function call."""

    id: str
    type: Literal["function_call_output", "custom_tool_call_output", "local_shell_call_output"]
    status: Status
    call_id: str
    output: str


class _Reasoning(TypedDict):
    id: str
    type: Literal["reasoning"]
    status: Status


class OutputReasoning(_Reasoning):
    """The model's reasoning before its answer."""

    summary: Nothing
    content: list[ReasoningTextPart]


class InputReasoning(_Reasoning):
    """Earlier reasoning, as the client sent it."""

    summary: list[dict[str, Any]]
    content: list[dict[str, Any]]


ClientCall = CustomCallItem | ShellCallItem
StreamedItem = OutputMessage | CallItem | OutputReasoning  # items whose content is streamed
OutputItem = StreamedItem | ClientCall
KeptItem = OutputItem | InputMessage | CallOutputItem | InputReasoning
