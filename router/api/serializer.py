"""Writes answers as JSON: the part that OpenAI's chat and completions APIs share.

A stream's usual chunk is put together from prepared bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

from router.api.answers.generated import Facts, Head, OneChoice, Rest, Usage
from router.api.request import Request
from router.errors import ApiError
from router.http.json import encode
from router.relay.choice import Choice, Delta
from router.text.tokenizer import Tokenizer

# The type of one item of `choices`, in a whole answer and in a chunk.
WholeChoice = TypeVar("WholeChoice", bound=OneChoice)
ChunkChoice = TypeVar("ChunkChoice", bound=OneChoice)
Finish = Literal["stop", "length", "tool_calls"]
DONE = b"data: [DONE]\n\n"
MARK = "\x00text\x00"  # marks the place of the text in prepared bytes


def event(payload: Any) -> bytes:
    """Encode one server-sent event."""
    return b"data: " + encode(payload) + b"\n\n"


class Serializer(ABC, Generic[WholeChoice, ChunkChoice]):
    """Writes one request's answer.

    Facts about each sequence (`timings`, `prompt_token_ids`) are beside `choices` if there is one choice, and inside
    each choice if there are several.
    """

    def __init__(self, head: Head, request: Request, choices: list[Choice], tokenizer: Tokenizer) -> None:
        self._head = head
        self._ids = request.token_ids
        self._usage = request.include_usage
        self._continuous = request.continuous_usage
        self._choices = choices
        self._tokenizer = tokenizer
        self._fast = [self._around_text(i) for i in range(len(choices))] if request.stream else []

    @abstractmethod
    def _whole(self, items: list[WholeChoice], usage: Usage, beside: Facts) -> Mapping[str, Any]:
        """Make an answer without a stream."""

    @abstractmethod
    def _chunk(self, items: list[ChunkChoice], rest: Rest) -> Mapping[str, Any]:
        """Make an event of a stream."""

    @abstractmethod
    def _chunk_choice(self, choice: Choice, delta: Delta, over: bool) -> ChunkChoice:
        """Make a stream's `choices[0]`."""

    @abstractmethod
    def _whole_choice(self, choice: Choice, delta: Delta) -> WholeChoice:
        """Make an item of `choices`."""

    @abstractmethod
    def _bare_choice(self, index: int, text: str) -> ChunkChoice:
        """Make the `choices[0]` of a later chunk that has nothing but text."""

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The event for what a choice gained. over: it gains nothing more. b"" if there is nothing to show yet."""
        plain = choice.started and not (over or delta.token_ids or delta.logprobs or delta.events)
        if plain and not (self._continuous and delta.text):
            if not delta.text:
                return b""
            before, after = self._fast[choice.index]
            return before + encode(delta.text) + after
        if not (over or delta.text or delta.token_ids or delta.logprobs or delta.events):
            return b""
        item = self._chunk_choice(choice, delta, over)
        if self._ids:
            item["token_ids"] = delta.token_ids
        beside: Facts = {}
        facts = self._place(item, beside)
        if self._ids and not choice.started:
            facts["prompt_token_ids"] = list(choice.prompt.token_ids)
        if over:
            facts["timings"] = choice.timings
        choice.started = True
        return event(self._payload(item, beside))

    async def settle(self, error: ApiError | None) -> None:
        """Do nothing: these APIs store nothing."""

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The last event of a stream that failed."""
        return event(error.payload()) + DONE

    def last(self) -> bytes:
        """The last events of a stream: usage if it was asked for, and `[DONE]`."""
        if not self._usage:
            return DONE
        return event(self._chunk([], {"usage": self._usage_of_all()})) + DONE

    def whole(self) -> bytes:
        """The body of an answer without a stream."""
        items: list[WholeChoice] = []
        beside: Facts = {}
        for choice in self._choices:
            delta = choice.take()
            item = self._whole_choice(choice, delta)
            facts = self._place(item, beside)
            facts["timings"] = choice.timings
            if self._ids:
                item["token_ids"] = delta.token_ids
                facts["prompt_token_ids"] = list(choice.prompt.token_ids)
            items.append(item)
        return encode(self._whole(items, self._usage_of_all(), beside))

    def _place(self, item: OneChoice, beside: Facts) -> Facts:
        """The dict that takes the facts about one choice."""
        return item if len(self._choices) > 1 else beside

    def _payload(self, item: ChunkChoice, beside: Facts) -> Mapping[str, Any]:
        rest: Rest = {}
        if self._usage:
            rest["usage"] = self._usage_of_all() if self._continuous else None
        return self._chunk([item], {**rest, **beside})

    def _around_text(self, index: int) -> tuple[bytes, bytes]:
        return self._around_mark(self._bare_choice(index, MARK))

    def _around_mark(self, item: ChunkChoice) -> tuple[bytes, bytes]:
        """The bytes before and after the text of a choice's later chunks."""
        before, _, after = event(self._payload(item, {})).partition(encode(MARK))
        return before, after

    def _usage_of_all(self) -> Usage:
        # The n choices of one prompt share the prompt, so it counts once.
        prompts = {id(c.prompt): c for c in self._choices}.values()
        prompt_tokens = sum(len(c.prompt.token_ids) for c in prompts)
        generated = sum(c.generated for c in self._choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": sum(c.cached_tokens for c in prompts)},
        }
