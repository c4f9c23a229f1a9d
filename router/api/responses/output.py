"""A response's output items as they form, and the events that tell of it."""

from collections.abc import Iterator
from typing import Any

from router.api.responses.events import event
from router.api.responses.items import Item, message, new_id, output_text
from router.parts import CallEnd, CallPart, CallStart, Part, Reasoning, Text

Logprobs = list[dict[str, Any]]


class Output:
    """One response's. items: those that are whole. sequence: the number of the next event."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.sequence = 0
        self._item: Item | None = None  # the one under way
        self._said: list[str] = []
        self._waiting: Logprobs = []  # of tokens whose text has not come yet
        self._logprobs: Logprobs = []

    def event(self, kind: str, **content: Any) -> bytes:
        """The next event."""
        self.sequence += 1
        return event(kind, self.sequence - 1, content)

    def so_far(self) -> list[Item]:
        """The items, the one under way as incomplete."""
        return self.items if self._item is None else [*self.items, self._whole("incomplete")]

    def hold(self, logprobs: Logprobs) -> None:
        """Log-probabilities of the message's tokens, which leave with its next text."""
        self._waiting += logprobs

    def add(self, part: Part, *, limited: bool) -> Iterator[bytes]:
        """More of it. limited: the token limit ended the answer, so what is cut is incomplete."""
        match part:
            case Text(text):
                if self._item is None and self.items:
                    text = text.lstrip()  # what stood between a call and this
                if text:
                    yield from self._begin("message")
                    yield from self._say("response.output_text.delta", text)
            case Reasoning(text):
                yield from self._begin("reasoning")
                yield from self._say("response.reasoning_text.delta", text)
            case CallStart(name):
                yield from self.close("completed")
                yield from self._begin("function_call", name)
            case CallPart(arguments):
                yield from self._say("response.function_call_arguments.delta", arguments)
            case CallEnd(cut=cut):
                yield from self.close("incomplete" if limited and cut else "completed")

    def end(self, *, limited: bool) -> Iterator[bytes]:
        """Nothing more comes. Where nothing came at all there is an empty message."""
        if not self.items and self._item is None:
            yield from self._begin("message")
        yield from self.close("incomplete" if limited else "completed")

    def close(self, status: str) -> Iterator[bytes]:
        """The item under way, if there is one, is whole."""
        if self._item is None:
            return
        item = self._whole(status)
        place: dict[str, Any] = {"item_id": item["id"], "output_index": len(self.items)}
        text = "".join(self._said)
        if item["type"] == "function_call":
            yield self.event("response.function_call_arguments.done", **place, name=item["name"], arguments=text)
        else:
            place["content_index"] = 0
            part = item["content"][0]
            if item["type"] == "message":
                yield self.event("response.output_text.done", **place, text=text, logprobs=part["logprobs"])
            else:
                yield self.event("response.reasoning_text.done", **place, text=text)
            yield self.event("response.content_part.done", **place, part=part)
        yield self.event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._item = None

    def _begin(self, kind: str, name: str = "") -> Iterator[bytes]:
        if self._item is not None and self._item["type"] == kind != "function_call":
            return
        yield from self.close("completed")
        self._said, self._logprobs = [], []
        self._item = _empty(kind, name)
        index = len(self.items)
        yield self.event("response.output_item.added", output_index=index, item=self._item)
        if kind != "function_call":
            place = {"item_id": self._item["id"], "output_index": index, "content_index": 0}
            yield self.event("response.content_part.added", **place, part=_part(kind, ""))

    def _say(self, kind: str, text: str) -> Iterator[bytes]:
        assert self._item is not None
        self._said.append(text)
        more: dict[str, Any] = {"item_id": self._item["id"], "output_index": len(self.items)}
        if self._item["type"] != "function_call":
            more["content_index"] = 0
        if self._item["type"] == "message":
            more["logprobs"], self._waiting = self._waiting, []
            self._logprobs += more["logprobs"]
        yield self.event(kind, **more, delta=text)

    def _whole(self, status: str) -> Item:
        assert self._item is not None
        item, text = {**self._item, "status": status}, "".join(self._said)
        if item["type"] == "function_call":
            return {**item, "arguments": text}
        part = _part(item["type"], text)
        if item["type"] == "message":
            part["logprobs"] = self._logprobs + self._waiting
        return {**item, "content": [part]}


def _empty(kind: str, name: str) -> Item:
    match kind:
        case "message":
            return message(None, "assistant", [], "in_progress")
        case "reasoning":
            return {"id": new_id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []}
    call = {"call_id": new_id("call"), "name": name, "arguments": ""}
    return {"id": new_id("fc"), "type": kind, "status": "in_progress", **call}


def _part(kind: str, text: str) -> Item:
    return output_text(text) if kind == "message" else {"type": "reasoning_text", "text": text}
