"""Answers and events of /v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import GetPydanticSchema
from typing_extensions import TypedDict

from router.api.answers.generated import CachedTokens, OutputTokens, TokenLogprobs
from router.api.answers.items import OutputItem, OutputTextPart, ReasoningTextPart
from router.api.responses.schema import Format
from router.api.responses.tools import ShownTool, ToolChoice

# Objects that the answer repeats from its request, as pydantic dumps them.
DumpedFormat = Annotated[dict[str, Any], GetPydanticSchema(lambda _, handler: handler.generate_schema(Format))]
DumpedTool = Annotated[dict[str, Any], GetPydanticSchema(lambda _, handler: handler.generate_schema(ShownTool))]
DumpedChoice = Annotated[
    str | dict[str, Any], GetPydanticSchema(lambda _, handler: handler.generate_schema(ToolChoice))
]


class ResponseError(TypedDict):
    """Why a response failed."""

    code: str
    message: str


class Failure(TypedDict):
    """The fields that a failed response changes."""

    status: Literal["failed"]
    error: ResponseError


class IncompleteDetails(TypedDict):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class PromptTokens(CachedTokens):
    """The number of a prompt's tokens that were reused instead of computed."""

    cache_write_tokens: int


class ResponseUsage(TypedDict):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: PromptTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class ShownReasoning(TypedDict):
    """The request's settings for reasoning."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    summary: None


class ShownText(TypedDict):
    """The request's settings for the text."""

    format: DumpedFormat
    verbosity: Literal["medium"]


class Response(TypedDict):
    """A response in its current state. The fields after `usage` repeat the request."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    safety_identifier: str | None
    store: bool
    temperature: float
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    user: str | None
    reasoning: ShownReasoning
    service_tier: Literal["default"]
    text: ShownText
    tool_choice: DumpedChoice
    tools: list[DumpedTool]


class _Event(TypedDict):
    sequence_number: int


class ResponseCreated(_Event):
    """The first event of a stream."""

    type: Literal["response.created"]
    response: Response


class ResponseInProgress(_Event):
    """The second event of a stream."""

    type: Literal["response.in_progress"]
    response: Response


class ItemAdded(_Event):
    """An output item begins; it is still empty."""

    type: Literal["response.output_item.added"]
    output_index: int
    item: OutputItem


class ItemDone(_Event):
    """An output item is complete."""

    type: Literal["response.output_item.done"]
    output_index: int
    item: OutputItem


class Place(TypedDict):
    """The item that an event is about."""

    item_id: str
    output_index: int


class PartPlace(Place):
    """The part of an item that an event is about."""

    content_index: int


class PartAdded(_Event, PartPlace):
    """A content part begins; it is still empty."""

    type: Literal["response.content_part.added"]
    part: OutputTextPart | ReasoningTextPart


class PartDone(_Event, PartPlace):
    """A content part is complete."""

    type: Literal["response.content_part.done"]
    part: OutputTextPart | ReasoningTextPart


class OutputTextDelta(_Event, PartPlace):
    """The next piece of the answer's text."""

    type: Literal["response.output_text.delta"]
    logprobs: list[TokenLogprobs]
    delta: str


class OutputTextDone(_Event, PartPlace):
    """The complete text of a part."""

    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprobs]


class ReasoningTextDelta(_Event, PartPlace):
    """The next piece of the reasoning."""

    type: Literal["response.reasoning_text.delta"]
    delta: str


class ReasoningTextDone(_Event, PartPlace):
    """The complete reasoning of a part."""

    type: Literal["response.reasoning_text.done"]
    text: str


class ArgumentsDelta(_Event, Place):
    """The next piece of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(_Event, Place):
    """The complete arguments of a call."""

    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class InputDelta(_Event, Place):
    """The next piece of a custom tool's input."""

    type: Literal["response.custom_tool_call_input.delta"]
    delta: str


class InputDone(_Event, Place):
    """The complete input of a custom tool."""

    type: Literal["response.custom_tool_call_input.done"]
    input: str


class ResponseClosed(_Event):
    """The last event of a stream, with the final response."""

    type: Literal["response.completed", "response.incomplete", "response.failed"]
    response: Response


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | ItemAdded
    | PartAdded
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | PartDone
    | ArgumentsDelta
    | ArgumentsDone
    | InputDelta
    | InputDone
    | ItemDone
    | ResponseClosed
)
