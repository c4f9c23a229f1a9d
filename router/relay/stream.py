"""Runs one sequence: puts its workers' outputs in order, and frees its slots and pages at all workers at its end."""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

from msgspec import structs

from router.errors import ApiError, invalid
from router.metrics import StreamTimes
from router.relay.choice import Choice, ServedBy
from router.relay.leg import Leg, Link, Stage
from router.relay.prefixes import Candidates
from router.relay.recovery import Cause, Enough, Loss, Setbacks
from wire.protocol import Attach, Mark, PeerRef, Prefix, SamplingParams, SeqOutput, Submit, WorkerInfo
from wire.tokens import TokenIds

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """The job that a stream is part of. live: whether a client waits for it."""

    live: bool

    def gained(self, choice: Choice) -> None:
        """A choice has something to take."""

    def landed(self, choice: Choice) -> None:
        """A choice is complete."""

    def failed(self, error: ApiError) -> None:
        """A choice failed."""


class Dispatch(Protocol):
    """The dispatcher, as a stream uses it."""

    def prepare(self, stream: SequenceStream, leg: Leg, kept_tokens: int) -> None:
        """Have another worker take what a leg's worker keeps of the sequence, then have that one give it up."""

    def again(self, stream: SequenceStream, cause: Cause, after_s: float, apart: bool) -> None:
        """Try a stream at other workers."""

    def kept(self, stream: SequenceStream, info: WorkerInfo, position: int) -> None:
        """A worker keeps the state after so many of a running sequence's tokens."""

    def progressed(self, stream: SequenceStream) -> None:
        """A retried stream gained a token, or has ended."""


class SequenceStream:
    """A choice and its legs: one for each worker that had a part in it, in the order in which they began.

    When its worker fails, the sequence continues at another, from the prompt and the tokens so far. Its transcript is
    the same as without the failure, because sampling depends only on seed and position. No token comes twice, because
    outputs are numbered.
    """

    __slots__ = (
        "_dispatch",
        "_first_at",
        "_ids",
        "_last_at",
        "_metrics",
        "_owner",
        "_parked",
        "_setbacks",
        "_submitted_at",
        "_tries",
        "behind",
        "body",
        "choice",
        "copied",
        "key",
        "legs",
        "moved",
        "names",
        "over",
        "prefix_scope",
        "prepared",
        "priority",
        "request_id",
        "set_back",
    )

    def __init__(
        self,
        request_id: str,
        choice: Choice,
        owner: Owner,
        metrics: StreamTimes,
        dispatch: Dispatch,
        priority: int,
        prefix_scope: str = "",
        key: bytes = b"",
        body: bytes = b"",
    ) -> None:
        """key, body: by which its client may come back, and the request's digest; see `wire.protocol.Submit`."""
        self.request_id = request_id
        self.choice = choice
        self.legs: list[Leg] = []
        self.names: Candidates | None = None  # names of the prompt's prefixes, once needed
        self.over = False  # whether nothing more is to be computed
        # The worker that keeps its state for the next one, and the state's tokens.
        self.moved: tuple[PeerRef, int] | None = None
        self.behind = False  # whether its tenant has more than its share
        self.prepared: str | None = None  # the worker that has taken its first tokens' state meanwhile
        self.copied: Mark | None = None  # the latest snapshot of it that another worker keeps
        self._owner = owner
        self._metrics = metrics
        self._dispatch = dispatch
        self.priority = priority
        self.prefix_scope = prefix_scope
        self.key = key
        self.body = body
        self._ids: list[int] = []  # the tokens generated so far
        self._parked: dict[int, SeqOutput] = {}  # outputs that overtook earlier ones, by the index of their first token
        self._setbacks = Setbacks()
        self.set_back = False  # a failure since its last token
        self._tries = 0
        self._submitted_at = 0.0
        self._first_at = 0.0
        self._last_at = 0.0

    @property
    def live(self) -> bool:
        """Whether a client waits for it."""
        return self._owner.live

    @property
    def workers(self) -> tuple[str, str] | None:
        """The ids of the latest prefill and decode worker, which may be the same; None while it has none."""
        return (self._at("prefill").info.worker_id, self._at("decode").info.worker_id) if self.legs else None

    @property
    def known(self) -> int:
        """The number of tokens so far: the prompt's and those generated."""
        return len(self.choice.prompt.token_ids) + len(self._ids)

    @property
    def token_ids(self) -> TokenIds:
        """All tokens so far, without the one that an answer of no tokens needs to end."""
        prompt = self.choice.prompt.token_ids
        return prompt if self.choice.discard else TokenIds(prompt.packed + TokenIds.of(self._ids).packed)

    @property
    def left(self) -> int:
        """Tokens it may still generate."""
        return self.choice.sampling.max_tokens - len(self._ids)

    @property
    def begun_with(self) -> str | None:
        """The id of the weights that generated its tokens; None if it has none yet."""
        return self.legs[0].info.weights_id if self._ids else None

    def begun(self, now: float) -> None:
        """Note the time at which its client begins to wait."""
        self._submitted_at = now

    def start(self, prefill: Link | None, decode: Link, prefix: Prefix, work: int = 0) -> None:
        """Submit to both workers at once: the decode worker may pull early chunks while later ones are computed.

        Without `prefill` the decode worker computes all tokens. With it the prefill worker gives the first token, so
        that a sequence of one token needs no decode worker. work: tokens that are not kept anywhere.
        """
        request_id = f"{self.request_id}.{self._tries}" if self._tries else self.request_id
        self._tries += 1
        self.moved = None
        ids, sampling = self.choice.prompt.token_ids, self._sampling()
        if self._ids:
            ids = TokenIds(ids.packed + TokenIds.of(self._ids).packed)
        source = None
        both = partial(
            Submit, request_id, ids, sampling, self.priority, key=self.key, body=self.body, behind=self.behind
        )
        if prefill is not None:
            info = prefill.info
            source = PeerRef(info.worker_id, info.host, info.port)
            self.legs.append(Leg(self, prefill, both(handoff=True, prefix=prefix), work))
            if self.left == 1:
                return
            prefix = structs.replace(prefix, kept_tokens=0, source=None)
        submit = both(source=source, generated=len(self._ids), prefix=prefix)
        self.legs.append(Leg(self, decode, submit, work if source is None else 0))

    def attach(self, decode: Link, request_id: str) -> None:
        """Take over a request of another router. The worker sends all its tokens again, from the first on."""
        self.legs.append(Leg(self, decode, Attach(request_id), 0))

    def receive(self, leg: Leg, output: SeqOutput, now: float) -> None:
        """Take an output of one of the legs."""
        if output.timings is not None:
            leg.timings = output.timings
        if output.cached_tokens and not self._ids:
            self.choice.cached_tokens, self.choice.cached_from = output.cached_tokens, output.cached_from
        if output.finish is not None:
            leg.close()
            if self._left(leg, output, now):
                return
        elif output.leaving:
            leg.moved()
            self._dispatch.prepare(self, leg, output.kept_tokens)
            return
        if output.offset == len(self._ids):
            self._apply(output, now)
            if output.kept_tokens and not self.over:
                self._dispatch.kept(self, leg.info, output.kept_tokens)
            while self.choice.finish is None and self._parked and (later := self._parked.pop(len(self._ids), None)):
                self._apply(later, now)
        elif output.offset > len(self._ids):
            self._parked[output.offset] = output
        else:
            self.abandon(leg.failed(f"it sent token {output.offset} twice"))

    def _left(self, leg: Leg, output: SeqOutput, now: float) -> bool:
        """Handle an output that ends a leg and not the sequence; False for any other."""
        if output.finish == "handoff":
            self._handed_off(leg, now)
        elif output.finish == "error":
            self._failed(leg, output)
        elif output.finish == "moved":
            self._moved(leg, output)
        # After an abort another leg's worker reports how the request ended.
        return output.finish in ("handoff", "error", "moved", "abort")

    def lost(self, leg: Leg, now: float, how: Loss, *, alone: bool) -> None:
        """A leg's worker ended, or is silent. alone: with no other sequence of this router."""
        if self.choice.finish is not None:
            self._land(now)  # only the lost worker's timings are missing
        elif leg.stage == "decode" or len(self._ids) <= 1:  # otherwise the snapshot had left the worker before
            what = "fell silent" if how == "silence" else "ended"
            error = ApiError(503, f"{leg.name} {what} while serving the request", code="worker_lost")
            self._set_back(how, error, alone)

    def broke(self, error: Exception) -> None:
        """The router failed while it handled an output."""
        self.abandon(ApiError(500, f"internal error: {type(error).__name__}", code="internal_error"))

    def cancel(self) -> None:
        """Give the sequence up and free its places at the workers."""
        self.over = True
        self._leave_workers()

    def abandon(self, error: ApiError) -> None:
        """End the sequence with an error."""
        self.cancel()
        self._owner.failed(error)

    def _leave_workers(self) -> None:
        for leg in self.legs:
            leg.cancel()
        self._parked.clear()

    def _moved(self, leg: Leg, output: SeqOutput) -> None:
        """The worker is about to end: continue at another one, from the state that this one keeps."""
        info = leg.info
        leg.moved()
        if output.kept_tokens and output.offset == len(self._ids):
            self.moved = (PeerRef(info.worker_id, info.host, info.port), output.kept_tokens)
        self._leave_workers()
        self._dispatch.again(self, "moved", 0.0, apart=False)

    def _set_back(self, cause: Cause, error: ApiError, alone: bool = False) -> None:
        """Its worker failed: continue at others, or give up with the error."""
        self._leave_workers()
        self.set_back = True
        verdict = self._setbacks.add(cause, alone)
        if not isinstance(verdict, Enough):
            _log.info(
                "request %s continues at another worker after %d tokens: %s", self.request_id, len(self._ids), error
            )
            self._dispatch.again(self, cause, verdict.after_s, verdict.apart)
            return
        if verdict.quarantined:
            deaths = self._setbacks.deaths
            _log.error(
                "request %s is quarantined: %d workers in a row ended while they computed it", self.request_id, deaths
            )
            # The status must not be one that clients retry by themselves, because each try may end a worker.
            error = ApiError(
                422,
                f"the request is quarantined: {deaths} workers in a row ended while they computed it, with no token "
                f"between; it is not tried again (the last: {error.message}); `ling snapshot save --request ID FILE`, "
                "with the x-request-id of this answer, saves it for a look at it",
                code="request_quarantined",
            )
        self.abandon(error)

    def _sampling(self) -> SamplingParams:
        """The client's sampling parameters, with log-probabilities of the prompt only the first time."""
        sampling = self.choice.sampling
        if sampling.prompt_logprobs is None or not self.choice.prompt_logprobs:
            return sampling
        return structs.replace(sampling, prompt_logprobs=None)

    def _handed_off(self, leg: Leg, now: float) -> None:
        if self.choice.finish is not None:
            self._land(now)
        elif not self._ids:
            self.abandon(leg.failed("it handed the request off without its first token"))

    def _apply(self, output: SeqOutput, now: float) -> None:
        choice, tokens = self.choice, output.token_ids
        if output.prompt_logprobs:
            choice.prompt_logprobs = output.prompt_logprobs
        if tokens:
            if self._ids:
                self._metrics.token_gap(now - self._last_at, len(tokens))
            else:
                self._first_at = now
                self._metrics.first_token(now - self._submitted_at, len(tokens))
            self._last_at = now
            self._ids += tokens
            if self.set_back:
                self.set_back = False
                self._setbacks.clear()
                self._dispatch.progressed(self)
        finish = output.finish
        choice.feed(tokens, output.logprobs, finish if finish in ("stop", "length") else None)
        if choice.finish is None:
            self._owner.gained(choice)
        elif finish is not None and any(leg.open and leg.stage == "prefill" for leg in self.legs):
            self._owner.gained(choice)  # the prefill worker still has to report its timings
        else:
            # Workers do not know stop strings, and after the first token a decode worker waits for nothing.
            self._leave_workers()
            self._land(now)

    def _land(self, now: float) -> None:
        self.over = True
        first, last = self._at("prefill"), self._at("decode")
        self.choice.served_by = ServedBy(
            queue_s=first.timings.queue_s,
            prefill_s=first.timings.prefill_s,
            transfer_s=last.timings.transfer_s or first.timings.transfer_s,
            decode_s=last.timings.decode_s or max(0.0, now - self._first_at if self._first_at else 0.0),
            decode_queue_s=last.timings.queue_s,
            prefill_worker=first.info.worker_id,
            prefill_pid=first.info.pid,
            decode_worker=last.info.worker_id,
            decode_pid=last.info.pid,
            cached_from=self.choice.cached_from,
        )
        self._owner.landed(self.choice)

    def _failed(self, leg: Leg, output: SeqOutput) -> None:
        reason = output.error or "it gave no reason"
        if output.unservable:
            self.abandon(self._unservable(reason))
        elif output.retry:
            self._set_back("transfer", leg.failed(reason))
        else:
            self.abandon(leg.failed(reason))

    def _unservable(self, reason: str) -> ApiError:
        """Make the 400 for a request that contradicts itself, so that no retry could succeed."""
        field = self.choice.form_field or "the answer's form"
        message = f"'{field}' can't be kept beside the request's other fields (min_tokens, stop_token_ids, logit_bias)"
        return invalid(f"{message}: {reason}", self.choice.form_field, "unsatisfiable_form")

    def _at(self, stage: Stage) -> Leg:
        """The latest leg of a stage. Without a leg at a prefill worker, the decode worker computed the prompt."""
        return next((leg for leg in reversed(self.legs) if leg.stage == stage), self.legs[-1])
