"""Separates a choice's text into parts, and handles the stop strings and log-probabilities of its content."""

from collections.abc import Sequence

from router.relay.joined import ContentLogprobs, ShownLogprob
from router.text.detokenizer import StopStrings
from router.text.parts import Part, Text
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from wire.protocol import TokenLogprob


class Content:
    """The content of one sequence.

    Stop strings count only in the content: not in reasoning, and not in a call that has begun. events, logprobs: new
    ones, which the choice takes.
    """

    __slots__ = ("_figures", "_reader", "_shown", "_stops", "events", "logprobs")

    def __init__(self, reader: Reader, stops: StopStrings | None, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self.events: list[Part] = []
        self.logprobs: list[ShownLogprob] = []
        self._reader = reader
        self._stops = stops
        self._figures = ContentLogprobs(tokenizer) if logprobs else None
        self._shown = 0  # characters of content shown

    @property
    def over(self) -> bool:
        """Whether the only call that is allowed is complete."""
        return self._reader.ended

    def token(self, item: TokenLogprob, text: str) -> None:
        """Add a token's log-probability, before its text is pushed."""
        if self._figures is not None:
            self._figures.token(item, text)

    def push(self, text: str, stops_count: bool) -> bool:
        """Add text; True if it ends the sequence. stops_count: whether a stop string may end it."""
        return self._tell(self._reader.push(text), stops_count) or self._reader.ended

    def close(self, rest: str, stops_count: bool) -> bool:
        """Add the last text, which belongs to no token; True if a stop string or a call in it ended the sequence."""
        if self._figures is not None:
            self._figures.text(rest)
        if self.push(rest, stops_count) or self._tell(self._reader.flush(), stops_count):
            return True
        self._release()
        return False

    def end(self) -> None:
        """End the content: log-probabilities that waited for further text are certain now."""
        if self._figures is not None:
            self.logprobs += self._figures.close(self._shown)

    def _tell(self, parts: Sequence[Part], stops_count: bool) -> bool:
        """Pass parts on; True if a stop string ends them."""
        if self._stops is None and self._figures is None:
            self.events += parts
            return False
        for part in parts:
            if type(part) is not Text:
                self._release()
                self.events.append(part)
                continue
            if self._figures is not None:
                self._figures.content(part.at, len(part.text))
            text, stopped = part.text, False
            if self._stops is not None and stops_count:
                text, stopped = self._stops.push(text)
            self._say(text)
            if stopped:
                return True
        if self._figures is not None:
            self.logprobs += self._figures.take(self._shown)
        return False

    def _release(self) -> None:
        """Show held text that turned out not to begin a stop string."""
        if self._stops is not None:
            self._say(self._stops.flush())

    def _say(self, text: str) -> None:
        if text:
            self.events.append(Text(text))
            self._shown += len(text)
