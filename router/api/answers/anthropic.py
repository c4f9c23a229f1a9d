"""Answers and events of /v1/messages."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(TypedDict):
    """A block of text."""

    type: Literal["text"]
    text: str


class ThinkingContent(TypedDict):
    """A block of reasoning. signature: always empty."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseContent(TypedDict):
    """A tool call. input: empty where a streamed block begins; its JSON follows."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class MessageUsage(TypedDict):
    """Token counts. input_tokens: without the reused ones, which are cache_read_input_tokens."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class Stopped(TypedDict):
    """Why a message ended. stop_sequence: the sequence that ended it."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageHead(TypedDict):
    """Fields of a message that are known before it begins."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str


class AnthropicMessage(MessageHead, Stopped):
    """A complete message."""

    content: list[Content]
    usage: MessageUsage


class BegunMessage(MessageHead):
    """A message that begins; it is still empty."""

    content: list[Content]
    stop_reason: None
    stop_sequence: None
    usage: MessageUsage


class MessageStart(TypedDict):
    """The first event of a stream."""

    type: Literal["message_start"]
    message: BegunMessage


class Ping(TypedDict):
    """An event that keeps the connection alive; clients ignore it."""

    type: Literal["ping"]


class BlockStart(TypedDict):
    """A content block begins. index: its place in the content."""

    type: Literal["content_block_start"]
    index: int
    content_block: Content


class TextDelta(TypedDict):
    """The next piece of a text block's text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    """The next piece of a reasoning block."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    """The end of a reasoning block; the signature is always empty."""

    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    """The input of a call as JSON text."""

    type: Literal["input_json_delta"]
    partial_json: str


BlockGain = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockDelta(TypedDict):
    """The next piece of a content block."""

    type: Literal["content_block_delta"]
    index: int
    delta: BlockGain


class BlockStop(TypedDict):
    """A content block is complete."""

    type: Literal["content_block_stop"]
    index: int


class MessageDelta(TypedDict):
    """Why the message ended, and its token counts."""

    type: Literal["message_delta"]
    delta: Stopped
    usage: MessageUsage


class MessageStop(TypedDict):
    """The last event of a stream."""

    type: Literal["message_stop"]


class AnthropicDetails(TypedDict):
    """The error's code, for programs."""

    error_code: str


class AnthropicFault(TypedDict):
    """What went wrong."""

    type: str
    message: str
    details: NotRequired[AnthropicDetails]


class AnthropicError(TypedDict):
    """The answer to a failed request, or the last event of a failed stream."""

    type: Literal["error"]
    error: AnthropicFault
    request_id: str | None


MessageEvent = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | AnthropicError


class AnthropicModel(TypedDict):
    """The served model. created_at: RFC 3339. max_input_tokens, max_tokens: null while no worker is live."""

    id: str
    type: Literal["model"]
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelList(TypedDict):
    """A list that holds the served model alone."""

    data: list[AnthropicModel]
    first_id: str
    last_id: str
    has_more: Literal[False]


class TokenCount(TypedDict):
    """The number of tokens of a prompt."""

    input_tokens: int
