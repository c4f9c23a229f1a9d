"""Content blocks and messages of the messages API, and the chat messages they stand for."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from router.api.schema import Strict, meaningless


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


class UserMessage(Strict):
    """What the user said, and what tools returned."""

    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[UserBlock])]

    def as_chat(self) -> list[dict[str, Any]]:
        """One tool message for each result, then the text."""
        results = [b for b in self.content if isinstance(b, ToolResultBlock)]
        out = [{"role": "tool", "tool_call_id": b.tool_use_id, "content": _joined(b.content)} for b in results]
        texts = [b for b in self.content if isinstance(b, TextBlock)]
        if texts or not results:
            out.append({"role": "user", "content": _joined(texts)})
        return out


class AssistantMessage(Strict):
    """What the model said or called."""

    role: Literal["assistant"]
    content: Annotated[
        list[AssistantBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[AssistantBlock])
    ]

    def as_chat(self) -> list[dict[str, Any]]:
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
        return [message]


AnyMessage = Annotated[UserMessage | AssistantMessage, Field(discriminator="role")]


def _joined(texts: list[TextBlock]) -> str:
    return "\n".join(block.text for block in texts)


def system_text(blocks: list[TextBlock]) -> str:
    """The system prompt as one text."""
    return _joined(blocks)
