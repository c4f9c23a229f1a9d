"""Writes a response as JSON, whole or as events."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable

from router.api.generate import HEAVY
from router.api.logprobs import chat_logprobs
from router.api.responses.answers import Response, ResponseUsage
from router.api.responses.events import closing
from router.api.responses.output import Output
from router.api.responses.resource import failure
from router.api.responses.tools import origins
from router.errors import ApiError
from router.http.json import encode
from router.relay.choice import Choice, Delta
from router.text.parts import Part, Text
from router.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class ResponseSerializer:
    """Writes one response.

    body: the response in its current state. keep: stores the final body; if it fails, the answer says that the response
    is not stored.
    """

    def __init__(
        self, body: Response, choice: Choice, tokenizer: Tokenizer, keep: Callable[[Response], Awaitable[None]] | None
    ) -> None:
        self.body = body
        self._choice = choice
        self._tokenizer = tokenizer
        self._keep = keep
        self._output = Output(body["id"], origins(body["tools"]))
        self._told = 0  # events, if another router told what the choice had then

    @property
    def sequence(self) -> int:
        """The number of the next event."""
        return self._output.sequence

    def begin(self) -> bytes:
        """The first events of a stream."""
        self._choice.started = True
        return b"".join(self._output.begin(self.body))

    def resume(self, told: int) -> None:
        """Continue after the events that another router sent, which cover the choice's first `had` tokens."""
        self._told = told
        if told:
            self.begin()
            self._output.resume(told)

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The events for what was gained; the first ones begin the response."""
        out: list[bytes] = []
        parts: list[Part] = [Text(delta.text), *delta.events] if delta.text else delta.events
        limited = choice.finish == "length"
        if choice.keep_logprobs:
            self._output.hold(chat_logprobs(delta.logprobs, self._tokenizer)["content"])
        if (parts or over) and not choice.started:
            out.append(self.begin())
        for part in parts:
            out += self._output.add(part, limited=limited)
        if delta is choice.skipped:
            self._output.resume(self._told)
        if over:
            out += self._output.end(limited=limited)
        return b"".join(out)

    async def settle(self, error: ApiError | None) -> None:
        """Make the body final, and store it."""
        if error is not None:
            self.body = {**self.body, "output": self._output.so_far(), **failure(error)}
        else:
            choice = self._choice
            if not choice.started:  # no stream: the whole output is still to be read
                delta = choice.take()
                if len(delta.logprobs) < HEAVY:
                    self.chunk(choice, delta, True)
                else:
                    await asyncio.to_thread(self.chunk, choice, delta, True)
            cut = choice.finish == "length"
            self.body = {
                **self.body,
                "status": "incomplete" if cut else "completed",
                "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
                "completed_at": None if cut else int(time.time()),
                "output": self._output.items,
                "usage": await self._usage(),
            }
        if self._keep is not None:
            try:
                await self._keep(self.body)
            except (sqlite3.Error, OSError):
                _log.exception("the response %s could not be kept", self.body["id"])
                self.body = {**self.body, "store": False}

    def last(self) -> bytes:
        """The last events of a stream."""
        return closing(self.body, self.sequence)

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The last event of a stream that failed."""
        return self.last()

    def whole(self) -> bytes:
        """The body of an answer without a stream."""
        return encode(self.body)

    async def _usage(self) -> ResponseUsage:
        choice = self._choice
        asked, said = len(choice.prompt.token_ids), choice.generated
        thought = 0
        for item in self._output.items:
            if item["type"] == "reasoning":
                # Counted by encoding the text again, because tokens do not say which part of the answer they became.
                text = item["content"][0]["text"]
                thought += len(await asyncio.to_thread(self._tokenizer.encode, text, False))
        return {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": choice.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": min(thought, said)},
            "total_tokens": asked + said,
        }
