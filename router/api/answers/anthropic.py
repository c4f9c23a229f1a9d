"""Answers and events of /v1/messages."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(TypedDict):
    """What the model said."""

    type: Literal["text"]
    text: str


class ThinkingContent(TypedDict):
    """What it thought before. signature: always empty."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseContent(TypedDict):
    """A call. input: empty where a stream's block begins, as its JSON follows."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class MessageUsage(TypedDict):
    """Tokens. input_tokens: without those of the prompt that were not computed anew (cache_read_input_tokens)."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class Stopped(TypedDict):
    """Why a message ended. stop_sequence: the one that ended it."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageHead(TypedDict):
    """What is known of a message from the first."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str


class AnthropicMessage(MessageHead, Stopped):
    """A message that is whole."""

    content: list[Content]
    usage: MessageUsage


class BegunMessage(MessageHead):
    """A message with nothing in it yet."""

    content: list[Content]
    stop_reason: None
    stop_sequence: None
    usage: MessageUsage


class MessageStart(TypedDict):
    """A stream's first event."""

    type: Literal["message_start"]
    message: BegunMessage


class Ping(TypedDict):
    """To be passed over."""

    type: Literal["ping"]


class BlockStart(TypedDict):
    """A content block begins. index: its place in the content."""

    type: Literal["content_block_start"]
    index: int
    content_block: Content


class TextDelta(TypedDict):
    """More of a text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(TypedDict):
    """More of what is thought."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    """The end of what was thought; always empty."""

    type: Literal["signature_delta"]
    signature: str


class InputDelta(TypedDict):
    """A call's input as JSON."""

    type: Literal["input_json_delta"]
    partial_json: str


BlockGain = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockDelta(TypedDict):
    """What a content block gained."""

    type: Literal["content_block_delta"]
    index: int
    delta: BlockGain


class BlockStop(TypedDict):
    """A content block is whole."""

    type: Literal["content_block_stop"]
    index: int


class MessageDelta(TypedDict):
    """Why the message ended, and what it took."""

    type: Literal["message_delta"]
    delta: Stopped
    usage: MessageUsage


class MessageStop(TypedDict):
    """A stream's last event."""

    type: Literal["message_stop"]


class AnthropicDetails(TypedDict):
    """For programs."""

    error_code: str


class AnthropicFault(TypedDict):
    """What went wrong."""

    type: str
    message: str
    details: NotRequired[AnthropicDetails]


class AnthropicError(TypedDict):
    """An answer that failed, or the last event of a stream that did."""

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
    """It alone."""

    data: list[AnthropicModel]
    first_id: str
    last_id: str
    has_more: Literal[False]


class TokenCount(TypedDict):
    """Of a message's prompt."""

    input_tokens: int
