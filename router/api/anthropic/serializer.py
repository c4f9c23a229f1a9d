"""Writes a message as JSON, whole or as events."""

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from router.api.answers.anthropic import (
    AnthropicMessage,
    BegunMessage,
    BlockGain,
    Content,
    MessageDelta,
    MessageEvent,
    MessageHead,
    MessageStart,
    MessageUsage,
    Stopped,
    StopReason,
    TextContent,
    ThinkingContent,
    ToolUseContent,
)
from router.errors import ApiError
from router.http.dialect import ANTHROPIC
from router.http.json import encode
from router.relay.choice import Choice, Delta, FinishReason
from router.text.parts import CallEnd, CallPart, CallStart, Part, Reasoning, Text
from router.text.tools.call_json import closed

ID_PREFIX = "msg_"  # precedes the request's id
_STOP: dict[FinishReason, StopReason] = {"stop": "end_turn", "length": "max_tokens"}


class _Calls:
    """Holds a call until it is complete, because the clients of this API expect a block's input to be valid.

    A call that the token limit cut off has as much of its input as there is; by the stop reason clients know not to run
    it. A call that can't be read becomes text.
    """

    def __init__(self) -> None:
        self._name = ""
        self._arguments: list[str] = []

    def settle(self, part: CallStart | CallPart | CallEnd, *, limited: bool) -> Text | tuple[str, str] | None:
        """The name and arguments of a complete call, the text of an unreadable one, or None while it is incomplete.

        limited: the token limit ended the answer.
        """
        match part:
            case CallStart(name):
                self._name, self._arguments = name, []
            case CallPart(arguments):
                self._arguments.append(arguments)
            case CallEnd(valid, raw, cut):
                arguments = "".join(self._arguments)
                if valid:
                    return self._name, arguments
                begun = closed(arguments) if cut and limited else None
                return Text(raw) if begun is None else (self._name, encode(begun).decode())
        return None


class MessageSerializer:
    """Writes one request's answer as blocks in their order: text, calls, and reasoning if it is shown."""

    def __init__(self, answer_id: str, model: str, choice: Choice, *, shows_thinking: bool) -> None:
        self._head: MessageHead = {"id": answer_id, "type": "message", "role": "assistant", "model": model}
        self._choice = choice
        self._shows_thinking = shows_thinking
        self._calls = _Calls()
        self._called = False
        self._index = -1  # index of the latest block
        self._open: str | None = None  # its type, while it may continue

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The events for what was gained; the first ones begin the message."""
        out: list[bytes] = []
        for item in self._items(_parts(delta)):
            match item:
                case Text(text):
                    out += self._more({"type": "text", "text": ""}, {"type": "text_delta", "text": text})
                case Reasoning(text):
                    out += self._more(_thought(""), {"type": "thinking_delta", "thinking": text})
                case (name, arguments):
                    out += self._whole_call(name, arguments)
        if over:
            out += self._close()
        if not choice.started and (out or over):
            choice.started = True
            message: BegunMessage = {
                **self._head,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": self._usage(choice.generated),
            }
            begin: MessageStart = {"type": "message_start", "message": message}
            out[:0] = [_event(begin), _event({"type": "ping"})]
        return b"".join(out)

    async def settle(self, error: ApiError | None) -> None:
        """Do nothing: this API stores nothing."""

    def last(self) -> bytes:
        """The last events of a stream, which say why it ended."""
        usage = self._usage(self._choice.generated)
        delta: MessageDelta = {"type": "message_delta", "delta": self._reason(), "usage": usage}
        return _event(delta) + _event({"type": "message_stop"})

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The last event of a stream that failed."""
        return b"event: error\ndata: " + ANTHROPIC.body(error, request_id) + b"\n\n"

    def whole(self) -> bytes:
        """The body of an answer without a stream."""
        content: list[Content] = []
        for item in self._items(_parts(self._choice.take())):
            latest = content[-1] if content else None
            match item:
                case Text(text) if latest is not None and latest["type"] == "text":
                    latest["text"] += text
                case Text(text):
                    content.append({"type": "text", "text": text})
                case Reasoning(text) if latest is not None and latest["type"] == "thinking":
                    latest["thinking"] += text
                case Reasoning(text):
                    content.append(_thought(text))
                case (name, arguments):
                    content.append(_tool_use(name, msgspec.Raw(arguments.encode())))
        usage = self._usage(self._choice.generated)
        message: AnthropicMessage = {**self._head, "content": content, **self._reason(), "usage": usage}
        return encode(message)

    def _items(self, parts: Iterable[Part]) -> Iterator[Text | Reasoning | tuple[str, str]]:
        for part in parts:
            if isinstance(part, Text):
                yield part
            elif isinstance(part, Reasoning):
                if self._shows_thinking:
                    yield part
            elif (settled := self._calls.settle(part, limited=self._choice.finish == "length")) is not None:
                self._called = self._called or not isinstance(settled, Text)
                yield settled

    def _more(self, empty: TextContent | ThinkingContent, delta: BlockGain) -> Iterator[bytes]:
        if self._open != empty["type"]:
            yield from self._begin(empty)
        yield _event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _whole_call(self, name: str, arguments: str) -> Iterator[bytes]:
        yield from self._begin(_tool_use(name, {}))
        delta: BlockGain = {"type": "input_json_delta", "partial_json": arguments}
        yield _event({"type": "content_block_delta", "index": self._index, "delta": delta})
        yield from self._close()

    def _begin(self, block: Content) -> Iterator[bytes]:
        yield from self._close()
        self._index += 1
        self._open = block["type"]
        yield _event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _close(self) -> Iterator[bytes]:
        if self._open is not None:
            if self._open == "thinking":
                # Clients expect a signature; this server ignores it when it comes back.
                delta: BlockGain = {"type": "signature_delta", "signature": ""}
                yield _event({"type": "content_block_delta", "index": self._index, "delta": delta})
            self._open = None
            yield _event({"type": "content_block_stop", "index": self._index})

    def _reason(self) -> Stopped:
        choice = self._choice
        if choice.stop_string is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_string}
        assert choice.finish is not None
        called = self._called and choice.finish == "stop"
        return {"stop_reason": "tool_use" if called else _STOP[choice.finish], "stop_sequence": None}

    def _usage(self, generated: int) -> MessageUsage:
        cached = self._choice.cached_tokens
        return {
            "input_tokens": len(self._choice.prompt.token_ids) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": generated,
        }


def _parts(delta: Delta) -> list[Part]:
    return [Text(delta.text), *delta.events] if delta.text else delta.events


def _thought(text: str) -> ThinkingContent:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(name: str, arguments: Any) -> ToolUseContent:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": arguments}


def _event(content: MessageEvent) -> bytes:
    kind = content["type"]
    return f"event: {kind}\ndata: ".encode() + encode(content) + b"\n\n"
