"""One sequence under way: puts the outputs of its workers in order, and ends at all of them whatever happens."""

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
from router.relay.recovery import Cause, Enough, Setbacks
from wire.protocol import Attach, PeerRef, Prefix, SamplingParams, SeqOutput, Submit
from wire.tokens import TokenIds

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """The request a stream is part of. live: whether somebody waits for it."""

    live: bool

    def gained(self, choice: Choice) -> None:
        """The choice has something to take."""

    def landed(self, choice: Choice) -> None:
        """The choice is whole."""

    def failed(self, error: ApiError) -> None:
        """The choice can't be finished."""


class Dispatch(Protocol):
    """Who finds workers for a stream."""

    def again(self, stream: SequenceStream, cause: Cause, after_s: float, apart: bool) -> None:
        """Try it elsewhere."""

    def progressed(self, stream: SequenceStream) -> None:
        """It gained a token after a failure, or has ended."""


class SequenceStream:
    """A choice and its legs: one for each worker that had a part in it, in the order in which they began.

    When a worker fails it, it goes on at another: from the prompt and the tokens it has, so that its transcript is the
    undisturbed one's, as sampling depends on seed and position alone. Nothing comes twice, as outputs are numbered.
    """

    __slots__ = (
        "_dispatch",
        "_first_at",
        "_ids",
        "_last_at",
        "_metrics",
        "_owner",
        "_parked",
        "_set_back_since",
        "_setbacks",
        "_submitted_at",
        "_tries",
        "body",
        "choice",
        "key",
        "legs",
        "moved",
        "names",
        "over",
        "prefix_scope",
        "priority",
        "request_id",
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
        """key, body: under which its client may come back for it, and what that asked; see `wire.protocol.Submit`."""
        self.request_id = request_id
        self.choice = choice
        self.legs: list[Leg] = []
        self.names: Candidates | None = None  # of the prompt's beginnings, once they have been looked for
        self.over = False  # nothing more is to be computed
        self.moved: tuple[PeerRef, int] | None = None  # who keeps its state, of how many tokens, for the next worker
        self._owner = owner
        self._metrics = metrics
        self._dispatch = dispatch
        self.priority = priority
        self.prefix_scope = prefix_scope
        self.key = key
        self.body = body
        self._ids: list[int] = []  # generated so far
        self._parked: dict[int, SeqOutput] = {}  # outputs that overtook others, by index of their first token
        self._setbacks = Setbacks()
        self._set_back_since = False  # its last token
        self._tries = 0
        self._submitted_at = 0.0
        self._first_at = 0.0
        self._last_at = 0.0

    @property
    def live(self) -> bool:
        """Whether somebody waits for it."""
        return self._owner.live

    @property
    def workers(self) -> tuple[str, str] | None:
        """Ids of the latest prefill and decode worker, the same where there is one; None while it waits for any."""
        return (self._at("prefill").info.worker_id, self._at("decode").info.worker_id) if self.legs else None

    @property
    def known(self) -> int:
        """Tokens it has: the prompt's and those generated."""
        return len(self.choice.prompt.token_ids) + len(self._ids)

    @property
    def token_ids(self) -> TokenIds:
        """All tokens it has; without the one that an answer of no tokens takes to end."""
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
        """Its client waits from now on."""
        self._submitted_at = now

    def start(self, prefill: Link | None, decode: Link, prefix: Prefix, work: int = 0) -> None:
        """Submit to both workers at once: the decode worker may pull the first chunks while later ones compute.

        Without `prefill` the decode worker computes all tokens there are. work: of these, those that are not kept.
        """
        request_id = f"{self.request_id}.{self._tries}" if self._tries else self.request_id
        self._tries += 1
        self.moved = None
        ids, sampling = self.choice.prompt.token_ids, self._sampling()
        if self._ids:
            ids = TokenIds(ids.packed + TokenIds.of(self._ids).packed)
        source = None
        both = partial(Submit, request_id, ids, sampling, self.priority, key=self.key, body=self.body)
        if prefill is not None:
            info = prefill.info
            source = PeerRef(info.worker_id, info.host, info.port)
            self.legs.append(Leg(self, prefill, both(handoff=True, prefix=prefix), work))
            prefix = structs.replace(prefix, kept_tokens=0, source=None)
        submit = both(source=source, generated=len(self._ids), prefix=prefix)
        self.legs.append(Leg(self, decode, submit, work if source is None else 0))

    def attach(self, decode: Link, request_id: str) -> None:
        """Take over what another router had computed; all its tokens come again, from the first on."""
        self.legs.append(Leg(self, decode, Attach(request_id), 0))

    def receive(self, leg: Leg, output: SeqOutput, now: float) -> None:
        """An output of one of the legs."""
        if output.timings is not None:
            leg.timings = output.timings
        if output.cached_tokens and not self._ids:
            self.choice.cached_tokens, self.choice.cached_from = output.cached_tokens, output.cached_from
        if output.finish is not None:
            leg.close()
            if output.finish == "handoff":
                self._handed_off(leg, now)
                return
            if output.finish == "error":
                self._failed(leg, output)
                return
            if output.finish == "moved":
                self._moved(leg, output)
                return
            if output.finish == "abort":  # another leg's worker says how it ended
                return
        if output.offset == len(self._ids):
            self._apply(output, now)
            while self.choice.finish is None and self._parked and (later := self._parked.pop(len(self._ids), None)):
                self._apply(later, now)
        elif output.offset > len(self._ids):
            self._parked[output.offset] = output
        else:
            self.abandon(leg.failed(f"it sent token {output.offset} twice"))

    def lost(self, leg: Leg, now: float, *, alone: bool = False, silent: bool = False) -> None:
        """A leg's worker ended, or is silent. alone: with no other sequence of this router."""
        if self.choice.finish is not None:
            self._land(now)  # only the lost worker's figures are missing
        elif leg.stage == "decode" or len(self._ids) <= 1:  # else the snapshot had left it
            how = "fell silent" if silent else "ended"
            error = ApiError(503, f"{leg.name} {how} while serving the request", code="worker_lost")
            self._set_back("silence" if silent else "death", error, alone)

    def broke(self, error: Exception) -> None:
        """The router itself failed over an output."""
        self.abandon(ApiError(500, f"internal error: {type(error).__name__}", code="internal_error"))

    def cancel(self) -> None:
        """Nobody wants it any more: free whatever the workers hold of it."""
        self.over = True
        self._leave_workers()

    def abandon(self, error: ApiError) -> None:
        """It can't be finished."""
        self.cancel()
        self._owner.failed(error)

    def _leave_workers(self) -> None:
        for leg in self.legs:
            leg.cancel()
        self._parked.clear()

    def _moved(self, leg: Leg, output: SeqOutput) -> None:
        """The worker is to end: go on at another one, from the state that this one keeps for it."""
        info = leg.info
        leg.moved()
        if output.kept_tokens and output.offset == len(self._ids):
            self.moved = (PeerRef(info.worker_id, info.host, info.port), output.kept_tokens)
        self._leave_workers()
        self._dispatch.again(self, "moved", 0.0, apart=False)

    def _set_back(self, cause: Cause, error: ApiError, alone: bool = False) -> None:
        """Workers failed it: go on at others, or give up with the error."""
        self._leave_workers()
        self._set_back_since = True
        verdict = self._setbacks.add(cause, alone)
        if not isinstance(verdict, Enough):
            _log.info("request %s goes on elsewhere behind %d tokens: %s", self.request_id, len(self._ids), error)
            self._dispatch.again(self, cause, verdict.after_s, verdict.apart)
            return
        if verdict.quarantined:
            deaths = self._setbacks.deaths
            _log.error("request %s is quarantined: %d workers ended while they computed it", self.request_id, deaths)
            # Not a status that clients try again by themselves: each try may cost a worker.
            error = ApiError(
                422,
                f"the request is quarantined: {deaths} workers in a row ended while they computed it, with no token "
                f"between; it is not tried again (the last: {error.message})",
                code="request_quarantined",
            )
        self.abandon(error)

    def _sampling(self) -> SamplingParams:
        """The client's; log-probabilities of the prompt are computed once."""
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
            if self._set_back_since:
                self._set_back_since = False
                self._setbacks.clear()
                self._dispatch.progressed(self)
        finish = output.finish
        choice.feed(tokens, output.logprobs, finish if finish in ("stop", "length") else None)
        if choice.finish is None:
            self._owner.gained(choice)
        elif finish is not None and any(leg.open and leg.stage == "prefill" for leg in self.legs):
            self._owner.gained(choice)  # the prefill worker has yet to report its figures
        else:
            # Workers do not know of a stop string, and after the prompt's own token a decode worker waits for nothing.
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
        """The request contradicts itself: 400, as no other try could succeed."""
        field = self.choice.form_field or "the answer's form"
        message = f"'{field}' can't be kept beside the request's other fields (min_tokens, stop_token_ids, logit_bias)"
        return invalid(f"{message}: {reason}", self.choice.form_field, "unsatisfiable_form")

    def _at(self, stage: Stage) -> Leg:
        """The latest leg of a stage; where no prefill worker had a part, the decode worker computed the prompt."""
        return next((leg for leg in reversed(self.legs) if leg.stage == stage), self.legs[-1])
