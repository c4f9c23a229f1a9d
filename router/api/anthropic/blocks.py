"""Content blocks and messages of the messages API, and their lowering to the turns of a neutral request."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from router.api.request import Call, Turn, note
from router.api.schema import Strict, meaningless
from router.errors import Path

# The start of a block that tells the vendor whom to bill. Clients send it first in the prompt and with a different text
# in each request. With it, no two prompts would share a prefix.
_BILLING = "x-anthropic-billing-header:"


def _block_list(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content blocks")
    return value


def _tag(value: Any) -> str | None:
    """The discriminator: the object's type, marked so that it can be told from a field in an error's path."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"#{kind}" if kind is not None else None


class Block(Strict):
    """The fields that all blocks have."""

    cache_control: dict[str, Any] | None = meaningless(None)  # prefixes are cached without marks


class TextBlock(Block):
    """A block of text."""

    type: Literal["text"]
    text: str
    citations: list[Any] | None = meaningless(None)


SystemText = Annotated[list[TextBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[TextBlock])]


class PlainSource(Strict):
    """A document's text."""

    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str

    @property
    def text(self) -> str:
        """The document's text."""
        return self.data


class ContentSource(Strict):
    """A document's text as content blocks."""

    type: Literal["content"]
    content: SystemText

    @property
    def text(self) -> str:
        """The document's text."""
        return joined(self.content)


TextSource = Annotated[PlainSource | ContentSource, Field(discriminator="type")]


class BytesSource(BaseModel):
    """A file, or an address of one. The model can't read it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["base64", "url", "file"]

    @property
    def text(self) -> str:
        """The note that tells the model that it was left out."""
        return note("file")


class Document(Block):
    """A document that consists of text."""

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
    """A document that a tool returned. If it is no text, the model gets a note that it was left out."""

    source: Annotated[PlainSource | ContentSource | BytesSource, Field(discriminator="type")]  # type: ignore[assignment]


class SearchResult(Block):
    """One result of a search."""

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
    """An image that a tool returned. The model gets a note that it was left out."""

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
    """A tool call that the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = meaningless(None)


class ToolResultBlock(Block):
    """The result of a tool call. The model sees its text, but not `is_error`."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Returned = Field(default_factory=list)
    is_error: bool | None = meaningless(None)


class ThinkingBlock(Strict):
    """Earlier reasoning. The model family's templates leave it out of prompts."""

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
    """Instructions within a conversation."""

    role: Literal["system"]
    content: SystemText

    def turns(self, at: Path) -> list[Turn]:
        """Lower to neutral turns. at: the message's path in the request."""
        return [Turn("system", joined(self.content), at)]


class UserMessage(Strict):
    """A message from the user, which also carries the results of tool calls."""

    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[UserBlock])]

    def turns(self, at: Path) -> list[Turn]:
        """A tool's turn for each result, then a user's turn with the text."""
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
    """An earlier answer of the model, with text, tool calls or both."""

    role: Literal["assistant"]
    content: Annotated[
        list[AssistantBlock], BeforeValidator(_block_list, json_schema_input_type=str | list[AssistantBlock])
    ]

    def turns(self, at: Path) -> list[Turn]:
        """One turn with the text and the calls."""
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
        """The text that the model reads."""


def joined(texts: Sequence[_Text]) -> str:
    """Join the blocks' texts."""
    return "\n".join(block.text for block in texts)


def system_text(blocks: list[TextBlock]) -> str:
    """The system prompt as one text."""
    return joined([block for block in blocks if not block.text.startswith(_BILLING)])
