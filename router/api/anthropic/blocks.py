"""Content blocks and messages of the messages API, and the turns of a neutral request they stand for."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from router.api.request import Call, Turn, note
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


class PlainSource(Strict):
    """A document's text."""

    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str

    @property
    def text(self) -> str:
        """The text."""
        return self.data


class ContentSource(Strict):
    """A document's text in blocks."""

    type: Literal["content"]
    content: SystemText

    @property
    def text(self) -> str:
        """The text."""
        return joined(self.content)


TextSource = Annotated[PlainSource | ContentSource, Field(discriminator="type")]


class BytesSource(BaseModel):
    """A file, or where one lies: the model can't read it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["base64", "url", "file"]

    @property
    def text(self) -> str:
        """A note that it was left out."""
        return note("file")


class Document(Block):
    """A document, of text alone."""

    type: Literal["document"]
    source: TextSource
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = meaningless(None)

    @property
    def text(self) -> str:
        """Title, context and text."""
        return "\n".join(part for part in (self.title, self.context, self.source.text) if part)


class ReturnedDocument(Document):
    """A document that a tool returned. A file of bytes becomes a note to the model that it was left out."""

    source: Annotated[PlainSource | ContentSource | BytesSource, Field(discriminator="type")]  # type: ignore[assignment]


class SearchResult(Block):
    """A result of a search."""

    type: Literal["search_result"]
    source: str
    title: str
    content: SystemText
    citations: dict[str, Any] | None = meaningless(None)

    @property
    def text(self) -> str:
        """Title, source and text."""
        return "\n".join((self.title, self.source, joined(self.content)))


class Image(BaseModel):
    """An image that a tool returned: a note to the model that it was left out."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["image"]

    @property
    def text(self) -> str:
        """The note."""
        return note("image")


ReturnedBlock = Annotated[
    Annotated[TextBlock, Tag("#text")]
    | Annotated[Image, Tag("#image")]
    | Annotated[ReturnedDocument, Tag("#document")]
    | Annotated[SearchResult, Tag("#search_result")],
    Discriminator(_tag),
]
Returned = Annotated[
    list[ReturnedBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[ReturnedBlock])
]


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
    content: Returned = Field(default_factory=list)
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
    Annotated[TextBlock, Tag("#text")]
    | Annotated[Document, Tag("#document")]
    | Annotated[SearchResult, Tag("#search_result")]
    | Annotated[ToolResultBlock, Tag("#tool_result")],
    Discriminator(_tag),
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
            Turn(
                "tool",
                joined(b.content),
                (*at, "content", i, "tool_use_id"),
                call_id=b.tool_use_id,
                left_out=_left_out(b, (*at, "content", i)),
            )
            for i, b in enumerate(self.content)
            if isinstance(b, ToolResultBlock)
        ]
        texts = [b for b in self.content if not isinstance(b, ToolResultBlock)]
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


def _left_out(block: ToolResultBlock, at: Path) -> Path | None:
    for i, inner in enumerate(block.content):
        if isinstance(inner, Image) or (isinstance(inner, Document) and isinstance(inner.source, BytesSource)):
            return (*at, "content", i, "type")
    return None


class _Text(Protocol):
    @property
    def text(self) -> str:
        """What the model reads."""


def joined(texts: Sequence[_Text]) -> str:
    """Blocks as one text."""
    return "\n".join(block.text for block in texts)


def system_text(blocks: list[TextBlock]) -> str:
    """The system prompt as one text."""
    return joined([block for block in blocks if not block.text.startswith(_BILLING)])
