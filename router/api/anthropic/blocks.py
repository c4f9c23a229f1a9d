"""Content blocks and messages of the messages API, and the chat messages they stand for."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from router.api.schema import Strict, meaningless

# Begins a block that tells the vendor who is billed. It stands first and differs from request to request: with it no
# prompt would begin as another did.
_BILLING = "x-anthropic-billing-header:"


def _block_list(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content blocks")
    return value


def _tag(value: Any) -> str | None:
    """The type, marked so that an error's path tells it from a field."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"#{kind}" if kind is not None else None


class Block(Strict):
    """What blocks share."""

    cache_control: dict[str, Any] | None = meaningless(None)  # prompts are not cached by mark


class TextBlock(Block):
    """Text."""

    type: Literal["text"]
    text: str
    citations: list[Any] | None = meaningless(None, max_length=0)


SystemText = Annotated[list[TextBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[TextBlock])]


class ToolUseBlock(Block):
    """A call the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = meaningless(None)


class ToolResultBlock(Block):
    """What a tool returned. is_error: for the client's own use; the model reads the text."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: SystemText = Field(default_factory=list)
    is_error: bool | None = meaningless(None)


class ThinkingBlock(Strict):
    """Earlier reasoning; the family's templates leave it out."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Strict):
    """Reasoning of another vendor's model, unreadable."""

    type: Literal["redacted_thinking"]
    data: str


UserBlock = Annotated[
    Annotated[TextBlock, Tag("#text")] | Annotated[ToolResultBlock, Tag("#tool_result")], Discriminator(_tag)
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("#text")]
    | Annotated[ToolUseBlock, Tag("#tool_use")]
    | Annotated[ThinkingBlock, Tag("#thinking")]
    | Annotated[RedactedThinkingBlock, Tag("#redacted_thinking")],
    Discriminator(_tag),
]


# Chat messages, and where within the one they stand for.
Placed = list[tuple[str, dict[str, Any]]]


class SystemMessage(Strict):
    """Instructions amid a conversation."""

    role: Literal["system"]
    content: SystemText

    def as_chat(self) -> Placed:
        """The same there."""
        return [("", {"role": "system", "content": _joined(self.content)})]


class UserMessage(Strict):
    """What the user said, and what tools returned."""

    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[UserBlock])]

    def as_chat(self) -> Placed:
        """One tool message for each result, then the text."""
        out: Placed = [
            (f".content[{i}]", {"role": "tool", "tool_call_id": b.tool_use_id, "content": _joined(b.content)})
            for i, b in enumerate(self.content)
            if isinstance(b, ToolResultBlock)
        ]
        texts = [b for b in self.content if isinstance(b, TextBlock)]
        if texts or not out:
            out.append(("", {"role": "user", "content": _joined(texts)}))
        return out


class AssistantMessage(Strict):
    """What the model said or called."""

    role: Literal["assistant"]
    content: Annotated[
        list[AssistantBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[AssistantBlock])
    ]

    def as_chat(self) -> Placed:
        """Text and calls in one message."""
        texts = [b for b in self.content if isinstance(b, TextBlock)]
        calls = [
            {"id": b.id, "function": {"name": b.name, "arguments": json.dumps(b.input, ensure_ascii=False)}}
            for b in self.content
            if isinstance(b, ToolUseBlock)
        ]
        message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
        if texts or not calls:
            message["content"] = _joined(texts)
        return [("", message)]


AnyMessage = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


def _joined(texts: list[TextBlock]) -> str:
    return "\n".join(block.text for block in texts)


def system_text(blocks: list[TextBlock]) -> str:
    """The system prompt as one text."""
    return _joined([block for block in blocks if not block.text.startswith(_BILLING)])
