"""One sequence as its client will see it: tokens in, text and what comes with it out."""

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
    """What a choice continues.

    text: a completion's prompt, where that was text. thinking: it ends within reasoning. boundaries: how many tokens
    there are up to each turn's end, of a conversation. contents: digests of what a conversation begins with.
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
    """How many seconds each stage of a choice took.

    decode_queue_s overlaps the other worker's stages: both workers take a request at once. cached_from: where the
    snapshot was that the prompt began from: "device" or "host" of the worker that computed the rest, or "peer".
    """

    queue_s: float
    prefill_s: float
    transfer_s: float
    decode_s: float
    decode_queue_s: float
    cached_from: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class ServedBy(Timings):
    """The same, and where the choice was computed."""

    prefill_worker: str
    prefill_pid: int
    decode_worker: str
    decode_pid: int

    def unnamed(self) -> Timings:
        """Without the workers."""
        stages = (self.queue_s, self.prefill_s, self.transfer_s, self.decode_s, self.decode_queue_s)
        return Timings(*stages, cached_from=self.cached_from)


@dataclass(slots=True)
class Delta:
    """What a choice gained since it was last asked. `offsets`: where each token's text begins.

    logprobs: where reasoning and calls are told from content, those of the content, token by token.
    events: in place of `text` where some of it is no plain text.
    """

    text: str
    token_ids: list[int]
    logprobs: list[ShownLogprob]
    offsets: list[int]
    events: list[Part]


class Choice:
    """One sequence of a request.

    Tokens become text as they arrive, so what waits for a slow client is bounded by its text, and a stop string
    ends the sequence however slowly the client reads. With a `reader` the text is told apart into parts.
    `keep_ids` and `keep_logprobs`: whether the client asked. `sampling.max_tokens` is at least 1; with `discard` its
    tokens are not part of the answer. reserve: tokens of an answer its key is charged for beforehand. form_field: the
    request's field that the answer's form comes from. recording: keeps what it says for the conversation's next turn.
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
        self.taken = 0  # of them, those whose text has been taken
        self.told_end = False  # its client was told how it ended
        # A client that came back has what so many tokens say: that is taken by itself, and not sent again.
        self.had = 0
        self.skipped: Delta | None = None
        self.cached_tokens = 0
        self.cached_from: str | None = None
        self.finish: FinishReason | None = None
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        self.served_by: ServedBy | None = None  # set when all of it is over
        self.started = False  # a chunk of it has left
        self.queued = False  # the stream knows it has something
        self._recording = recording
        self._detokenizer = Detokenizer(tokenizer, reader.markers if reader is not None else ())
        self._stops = StopStrings(stop) if stop else None
        # Where the sequence may end within a step, or each token's place in the text is asked for. Else parts are told
        # apart when they are asked for: much text at once costs less than each token's.
        self._singly = bool(stop) or self.keep_logprobs or (reader is not None and reader.single)
        self._content = None
        if reader is not None:
            self._content = Content(reader, self._stops, tokenizer, logprobs=self.keep_logprobs)
        self._chars = 0
        self._text: list[str] = []  # shown, or yet to be told apart
        self._ids: list[int] = []
        self._logprobs: list[ShownLogprob] = []
        self._offsets: list[int] = []

    @property
    def timings(self) -> Timings:
        """What its answer tells of how it was computed, once all of it is over."""
        assert self.served_by is not None
        return self.served_by if self._names_workers else self.served_by.unnamed()

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._stops.found if self._stops is not None else None

    def feed(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], finish: FinishReason | None) -> None:
        """The next tokens. Sets `finish` if they are the last, be it by a stop string."""
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
        """What was fed so far is what the client has."""
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
            # The token that ended the sequence is counted, and not shown.
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
        """What is new; joined, however many steps it took."""
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
        """Tell apart the text that has come since, where that was put off."""
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
        """Whether stop strings end it yet: from the last of min_tokens on."""
        return self.generated >= self.sampling.min_tokens

    def _show(self, text: str) -> bool:
        """Let text out; True if that ends the sequence."""
        if self._content is not None:
            return self._content.push(text, self._stops_count)
        stopped = False
        if self._stops is not None and self._stops_count:
            text, stopped = self._stops.push(text)
        if text:
            self._text.append(text)
        return stopped

    def _close(self, finish: FinishReason) -> None:
        """The workers are done: what still waits comes out, in which a stop string may be found yet."""
        rest = self._detokenizer.flush()
        self.finish = finish  # which the parts of the end depend on
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
