"""One sequence as its client will see it: tokens in, text and what comes with it out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from router.text.detokenizer import Detokenizer, StopStrings
from router.text.parts import Part, Text
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from wire.protocol import SamplingParams, TokenLogprob

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a choice continues. `text` where there was one: the client's, or a rendered conversation.

    boundaries: how many tokens there are up to the end of the system prompt with its tools, and of each turn.
    """

    token_ids: tuple[int, ...]
    text: str | None = None
    boundaries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Where a choice was computed, and how many seconds each stage took there.

    decode_queue_s overlaps the other worker's stages: both workers take a request at once. cached_from: where the
    snapshot was that the prompt began from: "device" or "host" of the worker that computed the rest, or "peer".
    """

    queue_s: float
    prefill_s: float
    transfer_s: float
    decode_s: float
    decode_queue_s: float
    prefill_worker: str
    prefill_pid: int
    decode_worker: str
    decode_pid: int
    cached_from: str | None = None


@dataclass(slots=True)
class Delta:
    """What a choice gained since it was last asked. `offsets`: where each token's text begins.

    events: in place of `text` where some of it is no plain text.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    offsets: list[int]
    events: list[Part]


class Choice:
    """One sequence of a request.

    Tokens become text as they arrive, so what waits for a slow client is bounded by its text, and a stop string
    ends the sequence however slowly the client reads. `keep_ids` and `keep_logprobs`: whether the client asked.
    `sampling.max_tokens` is at least 1; with `discard` its tokens are not part of the answer. With a `reader` its
    text is told apart into parts. reserve: tokens of an answer its key is charged for beforehand.
    """

    __slots__ = (
        "_chars",
        "_detokenizer",
        "_events",
        "_ids",
        "_logprobs",
        "_offsets",
        "_reader",
        "_singly",
        "_stops",
        "_text",
        "cached_from",
        "cached_tokens",
        "discard",
        "error",
        "finish",
        "generated",
        "index",
        "keep_ids",
        "keep_logprobs",
        "prompt",
        "prompt_logprobs",
        "queued",
        "reserve",
        "sampling",
        "served_by",
        "started",
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
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.sampling = sampling
        self.keep_ids = keep_ids
        self.keep_logprobs = sampling.logprobs is not None
        self.discard = discard
        self.reserve = reserve
        self.generated = 0
        self.cached_tokens = 0
        self.cached_from: str | None = None
        self.finish: FinishReason | None = None
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        self.served_by: ServedBy | None = None  # set when all of it is over
        self.started = False  # a chunk of it has left
        self.queued = False  # the stream knows it has something
        self._reader = reader
        self._detokenizer = Detokenizer(tokenizer, reader.markers if reader is not None else ())
        self._stops = StopStrings(stop) if stop else None
        # Where the sequence may end within a step, or each token's place in the text is asked for.
        self._singly = bool(stop) or self.keep_logprobs or (reader is not None and reader.single)
        self._chars = 0
        self._text: list[str] = []
        self._events: list[Part] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._offsets: list[int] = []

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._stops.found if self._stops is not None else None

    def feed(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], finish: FinishReason | None) -> None:
        """The next tokens. Sets `finish` if they are the last, be it by a stop string."""
        if self.discard:
            self.finish = finish
            return
        if not self._singly:
            self.generated += len(token_ids)
            if self.keep_ids:
                self._ids.extend(token_ids)
            # The token that ended the sequence is counted, and not shown.
            text = self._detokenizer.push(token_ids[:-1] if finish == "stop" else token_ids)
            if text:
                self._out(text)
        else:
            self._feed_singly(token_ids, logprobs, finish)
            if self.finish is not None:
                return
        if finish is not None:
            self._close(finish)

    def take(self) -> Delta:
        """What is new; joined, however many steps it took."""
        self._read()
        events, self._events = self._events, []
        texts = [part.text for part in events if type(part) is Text]
        if len(texts) == len(events):
            self._text, events = texts or self._text, []
        delta = Delta("".join(self._text), self._ids, self._logprobs, self._offsets, events)
        self._text, self._ids, self._logprobs, self._offsets = [], [], [], []
        return delta

    def _feed_singly(
        self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], finish: FinishReason | None
    ) -> None:
        last = len(token_ids) - 1
        for i, token_id in enumerate(token_ids):
            self.generated += 1
            if self.keep_ids:
                self._ids.append(token_id)
            if logprobs:
                self._logprobs.append(logprobs[i])
                self._offsets.append(self._chars)
            if finish == "stop" and i == last:
                return
            text = self._detokenizer.push((token_id,))
            self._chars += len(text)
            if self._show(text):
                self.finish = "stop"
                return

    def _show(self, text: str) -> bool:
        """Lets text out; True if that ends the sequence. Tokens before the last of min_tokens hold no stop string."""
        stopped = False
        if self._stops is not None and self.generated >= self.sampling.min_tokens:
            text, stopped = self._stops.push(text)
        ended = bool(text) and self._out(text)
        if stopped and not ended:
            self._flush_reader()
        return stopped or ended

    def _out(self, text: str) -> bool:
        """True if nothing after it counts."""
        self._text.append(text)
        if self._reader is None or not self._reader.single:
            return False
        self._read()
        return self._reader.ended

    def _read(self) -> None:
        """Tells apart the text that has come since; only now, as much text at once costs less than each token's."""
        if self._reader is not None and self._text:
            self._events += self._reader.push("".join(self._text))
            self._text = []

    def _flush_reader(self) -> None:
        self._read()
        if self._reader is not None:
            self._events += self._reader.flush()

    def _close(self, finish: FinishReason) -> None:
        self.finish = finish
        if self._show(self._detokenizer.flush()):
            self.finish = "stop"
            return
        if self._stops is not None and self._out(self._stops.flush()):
            self.finish = "stop"
            return
        self._flush_reader()
