"""Answers as JSON: what OpenAI's two APIs share. A stream's usual chunk is put together from bytes made once."""

from abc import ABC, abstractmethod
from typing import Any

import msgspec

from router.api.schema import GenerationRequest
from router.choice import Choice, Delta
from router.errors import ApiError
from router.tokens import Tokenizer

encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
MARK = "\x00text\x00"  # where a text goes, in what is made once


def event(payload: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(payload) + b"\n\n"


class Shape(ABC):
    """One request's answer.

    What is known of each sequence alone (`timings`, `prompt_token_ids`) stands beside `choices` where there is one
    choice, and inside each where there are several.
    """

    object_whole: str
    object_chunk: str

    def __init__(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: GenerationRequest,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> None:
        self._head = {"id": answer_id, "object": self.object_chunk, "created": created, "model": model}
        self._ids = request.return_token_ids
        self._usage = request.include_usage
        self._choices = choices
        self._tokenizer = tokenizer
        self._fast = [self._around_text(i) for i in range(len(choices))] if request.stream else []

    @abstractmethod
    def _chunk_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """A stream's `choices[0]` without its index and finish_reason."""

    @abstractmethod
    def _whole_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """An item of `choices` without its index and finish_reason."""

    @abstractmethod
    def _bare_choice(self, text: str) -> dict[str, Any]:
        """`_chunk_choice` of a later chunk with nothing but text."""

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The event for what a choice gained, its last if `over`; b"" if there is nothing to show yet."""
        if choice.started and not over and not delta.token_ids and not delta.logprobs and not delta.said:
            if not delta.text:
                return b""
            before, after = self._fast[choice.index]
            return before + encode(delta.text) + after
        if not (over or delta.text or delta.token_ids or delta.logprobs or delta.said):
            return b""
        item = {"index": choice.index, **self._chunk_choice(choice, delta)}
        item["finish_reason"] = self._finish(choice) if over else None
        if self._ids:
            item["token_ids"] = delta.token_ids
        facts: dict[str, Any] = {}
        if self._ids and not choice.started:
            facts["prompt_token_ids"] = choice.prompt.token_ids
        if over:
            facts["timings"] = choice.served_by
        choice.started = True
        return event(self._payload(item, facts))

    def _finish(self, choice: Choice) -> str | None:
        return choice.finish

    async def settle(self, error: ApiError | None) -> None:  # noqa: B027 - to do nothing is usual
        """Nothing is to be done."""

    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that fails."""
        return event(error.payload()) + DONE

    def last(self) -> bytes:
        """The end of a stream: usage if it was asked for, and the end mark."""
        if not self._usage:
            return DONE
        return event({**self._head, "choices": [], "usage": self._usage_of_all()}) + DONE

    def whole(self) -> bytes:
        """The body of an answer that is no stream."""
        items: list[dict[str, Any]] = []
        facts: dict[str, Any] = {}
        for choice in self._choices:
            delta = choice.take()
            item = {"index": choice.index, **self._whole_choice(choice, delta)}
            item["finish_reason"] = self._finish(choice)
            facts = {"timings": choice.served_by}
            if self._ids:
                item["token_ids"] = delta.token_ids
                facts["prompt_token_ids"] = choice.prompt.token_ids
            if len(self._choices) > 1:
                item.update(facts)
                facts = {}
            items.append(item)
        head = {**self._head, "object": self.object_whole}
        return encode({**head, "choices": items, "usage": self._usage_of_all(), **facts})

    def _payload(self, item: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        if len(self._choices) > 1:
            item |= facts
            facts = {}
        usage = {"usage": None} if self._usage else {}
        return {**self._head, "choices": [item], **usage, **facts}

    def _around_text(self, index: int) -> tuple[bytes, bytes]:
        return self._around_mark(index, self._bare_choice(MARK))

    def _around_mark(self, index: int, content: dict[str, Any]) -> tuple[bytes, bytes]:
        """A later chunk of a choice, but for the mark in it."""
        item = {"index": index, **content, "finish_reason": None}
        before, _, after = event(self._payload(item, {})).partition(encode(MARK))
        return before, after

    def _usage_of_all(self) -> dict[str, Any]:
        # The n choices of one prompt share it: it counts once.
        prompts = {id(c.prompt): c for c in self._choices}.values()
        prompt_tokens = sum(len(c.prompt.token_ids) for c in prompts)
        generated = sum(c.generated for c in self._choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": sum(c.cached_tokens for c in prompts)},
        }
