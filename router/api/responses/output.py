"""Builds a response's output items as its text arrives, and the events that report them."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Literal

from router.api.answers.generated import TokenLogprobs
from router.api.answers.items import (
    CallItem,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputTextPart,
    ReasoningTextPart,
    Status,
    StreamedItem,
)
from router.api.responses.answers import (
    ArgumentsDelta,
    ArgumentsDone,
    InputDelta,
    InputDone,
    ItemAdded,
    ItemDone,
    OutputTextDelta,
    OutputTextDone,
    PartAdded,
    PartDone,
    PartPlace,
    Place,
    ReasoningTextDelta,
    ReasoningTextDone,
    Response,
)
from router.api.responses.calls import client_call
from router.api.responses.events import event
from router.api.responses.ids import ItemIds
from router.api.responses.items import output_message, output_text
from router.api.responses.tools import Origin
from router.text.parts import CallEnd, CallPart, CallStart, Part, Reasoning, Text

Logprobs = list[TokenLogprobs]


class Output:
    """The output of one response. items: the complete ones. sequence: the number of the next event."""

    def __init__(self, response_id: str, origins: Mapping[str, Origin]) -> None:
        """origins: the client's tool behind each function of the model."""
        self._new_id = ItemIds(response_id)
        self._origins = origins
        self._call: tuple[Origin, list[str]] | None = None  # an open call of a tool that is no function to the client
        self.items: list[OutputItem] = []
        self.sequence = 0
        self._item: StreamedItem | None = None  # the open item
        self._said: list[str] = []
        self._waiting: deque[TokenLogprobs] = deque()  # log-probabilities of tokens whose text has not come yet
        self._uncovered = 0  # bytes of text whose log-probabilities have not come yet
        self._logprobs: Logprobs = []

    def begin(self, body: Response) -> Iterator[bytes]:
        """The first events of a stream."""
        yield event({"type": "response.created", "sequence_number": self._next(), "response": body})
        yield event({"type": "response.in_progress", "sequence_number": self._next(), "response": body})

    def resume(self, sequence: int) -> None:
        """Continue after so many events, which have reported all output so far."""
        self.sequence = sequence
        self._uncovered = 0

    def so_far(self) -> list[OutputItem]:
        """All items, with the open one marked as incomplete."""
        if self._call is not None:
            return [*self.items, client_call(self._call[0], "".join(self._call[1]), "incomplete", self._new_id)]
        return self.items if self._item is None else [*self.items, self._whole("incomplete")]

    def hold(self, logprobs: Logprobs) -> None:
        """Hold log-probabilities of the message's tokens until its next text is sent."""
        self._waiting += logprobs

    def add(self, part: Part, *, limited: bool) -> Iterator[bytes]:
        """Add output. limited: the token limit ended the answer, so that a cut item is incomplete."""
        match part:
            case Text(text):
                if self._item is None and self.items:
                    said = text.lstrip()  # white space between a call and this text
                    self._cover(text[: len(text) - len(said)])
                    text = said
                if text:
                    yield from self._begin("message")
                    yield self._say_text(text)
            case Reasoning(text):
                yield from self._begin("reasoning")
                yield self._say_thought(text)
            case CallStart(name):
                yield from self.close("completed")
                origin = self._origins.get(name, Origin("function", name))
                if origin.kind == "function":
                    yield from self._begin("function_call", origin)
                else:
                    self._call = origin, []
            case CallPart(arguments) if self._call is not None:
                self._call[1].append(arguments)
            case CallPart(arguments):
                yield self._say_arguments(arguments)
            case CallEnd(cut=cut):
                yield from self.close("incomplete" if limited and cut else "completed")

    def end(self, *, limited: bool) -> Iterator[bytes]:
        """End the output. If there was none at all, it is one empty message."""
        if not self.items and self._item is None and self._call is None:
            yield from self._begin("message")
        yield from self.close("incomplete" if limited else "completed")

    def close(self, status: Status) -> Iterator[bytes]:
        """Complete the open item, if there is one."""
        if self._call is not None:
            yield from self._client_call(status)
        if self._item is None:
            return
        item, place = self._whole(status), self._place()
        if item["type"] == "function_call":
            called: ArgumentsDone = {
                "type": "response.function_call_arguments.done",
                "sequence_number": self._next(),
                **place,
                "name": item["name"],
                "arguments": item["arguments"],
            }
            yield event(called)
        else:
            yield from self._close_part(item)
        done: ItemDone = {
            "type": "response.output_item.done",
            "sequence_number": self._next(),
            "output_index": len(self.items),
            "item": item,
        }
        yield event(done)
        self.items.append(item)
        self._item = None

    def _client_call(self, status: Status) -> Iterator[bytes]:
        """The item of a call that can be made only when its arguments are complete."""
        assert self._call is not None
        item = client_call(self._call[0], "".join(self._call[1]), status, self._new_id)
        self._call = None
        index = len(self.items)
        begun = item.copy()
        begun["status"] = "in_progress"
        if begun["type"] == "custom_tool_call":
            begun["input"] = ""
        added: ItemAdded = {
            "type": "response.output_item.added",
            "sequence_number": self._next(),
            "output_index": index,
            "item": begun,
        }
        yield event(added)
        if item["type"] == "custom_tool_call":
            place: Place = {"item_id": item["id"], "output_index": index}
            number = self._next()
            delta: InputDelta = {
                "type": "response.custom_tool_call_input.delta",
                "sequence_number": number,
                **place,
                "delta": item["input"],
            }
            yield event(delta)
            whole: InputDone = {
                "type": "response.custom_tool_call_input.done",
                "sequence_number": self._next(),
                **place,
                "input": item["input"],
            }
            yield event(whole)
        done: ItemDone = {
            "type": "response.output_item.done",
            "sequence_number": self._next(),
            "output_index": index,
            "item": item,
        }
        yield event(done)
        self.items.append(item)

    def _close_part(self, item: OutputMessage | OutputReasoning) -> Iterator[bytes]:
        place, part = self._part_place(), item["content"][0]
        if part["type"] == "output_text":
            said: OutputTextDone = {
                "type": "response.output_text.done",
                "sequence_number": self._next(),
                **place,
                "text": part["text"],
                "logprobs": part["logprobs"],
            }
            yield event(said)
        else:
            thought: ReasoningTextDone = {
                "type": "response.reasoning_text.done",
                "sequence_number": self._next(),
                **place,
                "text": part["text"],
            }
            yield event(thought)
        done: PartDone = {
            "type": "response.content_part.done",
            "sequence_number": self._next(),
            **place,
            "part": part,
        }
        yield event(done)

    def _begin(
        self, kind: Literal["message", "reasoning", "function_call"], called: Origin | None = None
    ) -> Iterator[bytes]:
        if self._item is not None and self._item["type"] == kind != "function_call":
            return
        yield from self.close("completed")
        self._said, self._logprobs = [], []
        self._item = _empty(kind, called, self._new_id)
        added: ItemAdded = {
            "type": "response.output_item.added",
            "sequence_number": self._next(),
            "output_index": len(self.items),
            "item": self._item,
        }
        yield event(added)
        if kind != "function_call":
            part: PartAdded = {
                "type": "response.content_part.added",
                "sequence_number": self._next(),
                **self._part_place(),
                "part": output_text("") if kind == "message" else _thought(""),
            }
            yield event(part)

    def _say_text(self, text: str) -> bytes:
        self._said.append(text)
        logprobs = self._cover(text)
        self._logprobs += logprobs
        delta: OutputTextDelta = {
            "type": "response.output_text.delta",
            "sequence_number": self._next(),
            **self._part_place(),
            "logprobs": logprobs,
            "delta": text,
        }
        return event(delta)

    def _say_thought(self, text: str) -> bytes:
        self._said.append(text)
        delta: ReasoningTextDelta = {
            "type": "response.reasoning_text.delta",
            "sequence_number": self._next(),
            **self._part_place(),
            "delta": text,
        }
        return event(delta)

    def _say_arguments(self, text: str) -> bytes:
        self._said.append(text)
        delta: ArgumentsDelta = {
            "type": "response.function_call_arguments.delta",
            "sequence_number": self._next(),
            **self._place(),
            "delta": text,
        }
        return event(delta)

    def _cover(self, text: str) -> Logprobs:
        """Take the log-probabilities of this text, and of earlier text that lacks them, as far as they are there."""
        self._uncovered += len(text.encode())
        covered: Logprobs = []
        while self._waiting and self._uncovered > 0:
            covered.append(self._waiting.popleft())
            self._uncovered -= len(covered[-1]["bytes"])
        return covered

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence - 1

    def _place(self) -> Place:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.items)}

    def _part_place(self) -> PartPlace:
        return {**self._place(), "content_index": 0}

    def _whole(self, status: Status) -> StreamedItem:
        assert self._item is not None
        item, text = self._item, "".join(self._said)
        if item["type"] == "function_call":
            return {**item, "status": status, "arguments": text}
        if item["type"] == "reasoning":
            return {**item, "status": status, "content": [_thought(text)]}
        part: OutputTextPart = {**output_text(text), "logprobs": self._logprobs + self._cover("")}
        return {**item, "status": status, "content": [part]}


def _empty(
    kind: Literal["message", "reasoning", "function_call"], called: Origin | None, new_id: ItemIds
) -> StreamedItem:
    match kind:
        case "message":
            return output_message(new_id("msg"), [], "in_progress")
        case "reasoning":
            return {"id": new_id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []}
        case "function_call":
            assert called is not None
            item: CallItem = {
                "id": new_id("fc"),
                "type": kind,
                "status": "in_progress",
                "call_id": new_id("call"),
                "name": called.name,
                "arguments": "",
            }
            if called.namespace is not None:
                item["namespace"] = called.namespace
            return item


def _thought(text: str) -> ReasoningTextPart:
    return {"type": "reasoning_text", "text": text}
