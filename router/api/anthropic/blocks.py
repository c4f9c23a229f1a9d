"""Content blocks and messages of the messages API, and the turns of a neutral request they stand for."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from router.api.request import Call, Turn
from router.api.schema import Strict, meaningless
from router.errors import Path

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
    """Fields that all blocks have."""

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
    """The result of a tool call. is_error: for the client's own use; the model reads the text."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: SystemText = Field(default_factory=list)
    is_error: bool | None = meaningless(None)


class ThinkingBlock(Strict):
    """Earlier reasoning, which the family's templates leave out."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Strict):
    """Encrypted reasoning of another vendor's model."""

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


class SystemMessage(Strict):
    """Instructions amid a conversation."""

    role: Literal["system"]
    content: SystemText

    def turns(self, at: Path) -> list[Turn]:
        """In neutral form. at: its place in the request."""
        return [Turn("system", joined(self.content), at)]


class UserMessage(Strict):
    """A message of the user, with the results of tool calls."""

    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[UserBlock])]

    def turns(self, at: Path) -> list[Turn]:
        """One tool's turn for each result, then the text."""
        out = [
            Turn("tool", joined(b.content), (*at, "content", i, "tool_use_id"), call_id=b.tool_use_id)
            for i, b in enumerate(self.content)
            if isinstance(b, ToolResultBlock)
        ]
        texts = [b for b in self.content if isinstance(b, TextBlock)]
        if texts or not out:
            out.append(Turn("user", joined(texts), at))
        return out


class AssistantMessage(Strict):
    """An earlier answer of the model: text, calls or both."""

    role: Literal["assistant"]
    content: Annotated[
        list[AssistantBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[AssistantBlock])
    ]

    def turns(self, at: Path) -> list[Turn]:
        """Text and calls in one turn."""
        texts = [b for b in self.content if isinstance(b, TextBlock)]
        calls = tuple(
            Call(b.id, b.name, json.dumps(b.input, ensure_ascii=False), (*at, "content"))
            for b in self.content
            if isinstance(b, ToolUseBlock)
        )
        return [Turn("assistant", joined(texts) if texts or not calls else None, at, calls=calls)]


AnyMessage = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


def joined(texts: list[TextBlock]) -> str:
    """Blocks as one text."""
    return "\n".join(block.text for block in texts)


def system_text(blocks: list[TextBlock]) -> str:
    """The system prompt as one text."""
    return joined([block for block in blocks if not block.text.startswith(_BILLING)])
