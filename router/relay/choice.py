"""One sequence as its client sees it: takes tokens and returns text with its details."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from router.relay.content import Content
from router.relay.joined import ShownLogprob
from router.relay.recording import Recording
from router.text.detokenizer import Detokenizer, StopStrings
from router.text.parts import Part, Text
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from wire.protocol import SamplingParams, TokenLogprob
from wire.tokens import TokenIds

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a choice.

    text: a completion's prompt, if it was text. thinking: whether it ends within reasoning. boundaries: the number of
    tokens up to the end of each turn of a conversation. contents: digests of what a conversation begins with.
    rewritten: how many tokens the longest of these that was seen before was rendered to then, if to others than now.
    """

    token_ids: TokenIds
    text: str | None = None
    thinking: bool = False
    boundaries: tuple[int, ...] = ()
    contents: tuple[bytes, ...] = ()
    rewritten: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """The seconds that each stage of a choice took.

    decode_queue_s overlaps the prefill worker's stages, because both workers get a request at once. cached_from: where
    the snapshot was from which the prompt continued: "device" or "host" of the worker that computed the rest, or
    "peer".
    """

    queue_s: float
    prefill_s: float
    transfer_s: float
    decode_s: float
    decode_queue_s: float
    cached_from: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class ServedBy(Timings):
    """The timings of a choice, and the workers and processes that computed it."""

    prefill_worker: str
    prefill_pid: int
    decode_worker: str
    decode_pid: int

    def unnamed(self) -> Timings:
        """The timings without the workers."""
        stages = (self.queue_s, self.prefill_s, self.transfer_s, self.decode_s, self.decode_queue_s)
        return Timings(*stages, cached_from=self.cached_from)


@dataclass(slots=True)
class Delta:
    """What a choice gained since the last call of `take`.

    offsets: where each token's text begins. logprobs: if reasoning and calls are separated from content, those of the
    content's tokens. events: the parts, instead of `text`, if some of them are no plain text.
    """

    text: str
    token_ids: list[int]
    logprobs: list[ShownLogprob]
    offsets: list[int]
    events: list[Part]


class Choice:
    """One sequence of a request.

    Tokens become text as they arrive, so that a slow client only delays text, and a stop string ends the sequence
    however slowly the client reads. A `reader` separates the text into parts. `keep_ids` and `keep_logprobs`: whether
    the client asked. `sampling.max_tokens` is at least 1; with `discard` its tokens are not part of the answer.
    reserve: tokens that its key is charged for in advance. form_field: the request's field that constrains the answer.
    recording: stores the answer for the conversation's next turn.
    """

    __slots__ = (
        "_chars",
        "_content",
        "_detokenizer",
        "_ids",
        "_logprobs",
        "_names_workers",
        "_offsets",
        "_recording",
        "_singly",
        "_stops",
        "_text",
        "cached_from",
        "cached_tokens",
        "discard",
        "error",
        "finish",
        "form_field",
        "generated",
        "had",
        "index",
        "keep_ids",
        "keep_logprobs",
        "prompt",
        "prompt_logprobs",
        "queued",
        "reserve",
        "sampling",
        "served_by",
        "skipped",
        "started",
        "taken",
        "told_end",
    )

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        reader: Reader | None = None,
        keep_ids: bool = False,
        discard: bool = False,
        reserve: int = 0,
        names_workers: bool = False,
        form_field: str | None = None,
        recording: Recording | None = None,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.sampling = sampling
        self.keep_ids = keep_ids
        self.keep_logprobs = sampling.logprobs is not None
        self.discard = discard
        self.reserve = reserve
        self._names_workers = names_workers
        self.form_field = form_field
        self.generated = 0
        self.taken = 0  # tokens whose text has been taken
        self.told_end = False  # the client was told how it ended
        # A client that came back has the text of this many tokens: it is taken separately and not sent again.
        self.had = 0
        self.skipped: Delta | None = None
        self.cached_tokens = 0
        self.cached_from: str | None = None
        self.finish: FinishReason | None = None
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        self.served_by: ServedBy | None = None  # set when the choice is over
        self.started = False  # a chunk of it was sent
        self.queued = False  # the job has it in its queue of choices with gains
        self._recording = recording
        self._detokenizer = Detokenizer(tokenizer, reader.markers if reader is not None else ())
        self._stops = StopStrings(stop) if stop else None
        # Text is read with each token if the sequence may end within a step, or if the offset of each token is asked
        # for. Otherwise it is read when it is taken, which costs less.
        self._singly = bool(stop) or self.keep_logprobs or (reader is not None and reader.single)
        self._content = None
        if reader is not None:
            self._content = Content(reader, self._stops, tokenizer, logprobs=self.keep_logprobs)
        self._chars = 0
        self._text: list[str] = []  # text to show, or to be read yet
        self._ids: list[int] = []
        self._logprobs: list[ShownLogprob] = []
        self._offsets: list[int] = []

    @property
    def timings(self) -> Timings:
        """The timings and workers to report once the choice is over."""
        assert self.served_by is not None
        return self.served_by if self._names_workers else self.served_by.unnamed()

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the sequence."""
        return self._stops.found if self._stops is not None else None

    def feed(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], finish: FinishReason | None) -> None:
        """Add the next tokens. Sets `finish` if they are the last ones, also because of a stop string."""
        if self.discard:
            self.finish = finish
            return
        count = self.had - self.generated
        if 0 < count < len(token_ids):
            self._feed(token_ids[:count], logprobs[:count], None)
            self._skip()
            if self.finish is None:
                self._feed(token_ids[count:], logprobs[count:], finish)
            return
        self._feed(token_ids, logprobs, finish)
        if 0 < count == len(token_ids):
            self._skip()

    def _skip(self) -> None:
        """Mark everything fed so far as text that the client has already."""
        self.had = 0
        self.skipped = self.take()

    def _feed(
        self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], finish: FinishReason | None
    ) -> None:
        if not self._singly:
            self.generated += len(token_ids)
            if self._recording is not None:
                self._recording.ids.extend(token_ids)
            if self.keep_ids:
                self._ids.extend(token_ids)
            # The token that ended the sequence counts, but is not shown.
            text = self._detokenizer.push(token_ids[:-1] if finish == "stop" else token_ids)
            if text:
                self._text.append(text)
        else:
            self._feed_singly(token_ids, logprobs, finish)
            if self.finish is not None:
                return
        if finish is not None:
            self._close(finish)

    def take(self) -> Delta:
        """Take everything that is new, joined over all steps."""
        self.taken = self.generated
        events: list[Part] = []
        if self._content is not None:
            self._read(self._content)
            events, self._content.events = self._content.events, []
            self._logprobs, self._content.logprobs = self._content.logprobs, []
            texts = [part.text for part in events if type(part) is Text]
            if len(texts) == len(events):
                self._text, events = texts, []
        delta = Delta("".join(self._text), self._ids, self._logprobs, self._offsets, events)
        self._text, self._ids, self._logprobs, self._offsets = [], [], [], []
        if self._recording is not None:
            self._recording.took(delta.text, delta.events)
            if self.finish is not None:
                cut = self.stop_string is not None or (self._content is not None and self._content.over)
                self._recording.end(stopped=self.finish == "stop", cut=cut)
        return delta

    def _read(self, content: Content) -> None:
        """Read the buffered text. Reading it lazily is cheaper than reading it with each token."""
        if self._text:
            content.push("".join(self._text), stops_count=False)
            self._text = []

    def _feed_singly(
        self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], finish: FinishReason | None
    ) -> None:
        last = len(token_ids) - 1
        for i, token_id in enumerate(token_ids):
            self.generated += 1
            if self._recording is not None:
                self._recording.ids.append(token_id)
            if self.keep_ids:
                self._ids.append(token_id)
            ends = finish == "stop" and i == last
            text = "" if ends else self._detokenizer.push((token_id,))
            if logprobs:
                self._keep_logprob(logprobs[i], text, ends)
            if ends:
                return
            self._chars += len(text)
            if self._show(text):
                self._end("stop")
                return

    def _keep_logprob(self, item: TokenLogprob, text: str, ends: bool) -> None:
        if self._content is None:
            self._logprobs.append(ShownLogprob(item))
            self._offsets.append(self._chars)
        elif not ends and self._detokenizer.shows(item.token_id):
            self._content.token(item, text)

    @property
    def _stops_count(self) -> bool:
        """Whether stop strings count yet: from token `min_tokens` on."""
        return self.generated >= self.sampling.min_tokens

    def _show(self, text: str) -> bool:
        """Show text; True if that ends the sequence."""
        if self._content is not None:
            return self._content.push(text, self._stops_count)
        stopped = False
        if self._stops is not None and self._stops_count:
            text, stopped = self._stops.push(text)
        if text:
            self._text.append(text)
        return stopped

    def _close(self, finish: FinishReason) -> None:
        """The workers are done: show the held text, in which a stop string may still be found."""
        rest = self._detokenizer.flush()
        self.finish = finish  # the last parts depend on it
        if self._content is not None:
            self._read(self._content)
            stopped = self._content.close(rest, self._stops_count)
        else:
            stopped = self._show(rest)
            if not stopped and self._stops is not None and (held := self._stops.flush()):
                self._text.append(held)
        self._end("stop" if stopped else finish)

    def _end(self, finish: FinishReason) -> None:
        self.finish = finish
        if self._content is not None:
            self._content.end()
