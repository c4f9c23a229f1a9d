"""Makes the outputs that routers get of a sequence: sampled tokens, or its end. Pure."""

from collections.abc import Sequence as Seq

from wire.protocol import Finish, SeqOutput, Timings, TokenLogprob
from workers.schedule.sequence import Sequence
from workers.schedule.step import StepResult


def sampled_output(seq: Sequence, result: StepResult, at: int, now: float) -> SeqOutput:
    """Append the tokens at index `at` of a step's result to their sequence; returns the output for its router.

    Tokens after the one that ends the sequence are left out.
    """
    offset, gained = seq.generated, result.tokens[at]
    finish = None
    for n, token in enumerate(gained, 1):
        seq.tokens.append(token)
        finish = _finish(seq, token)
        if finish:
            gained = gained[:n]
            break
    if finish is None and seq.first_token:  # as nearly always
        return SeqOutput(seq.request_id, offset, gained, result.logprobs[at] if result.logprobs else ())
    first = not seq.first_token
    if first:
        seq.first_token = now
        seq.prefill_s = now - seq.started
    prompt_logprobs = (None, *seq.prompt_logprobs) if first and seq.sampling.prompt_logprobs is not None else ()
    return SeqOutput(
        request_id=seq.request_id,
        offset=offset,
        token_ids=gained,
        logprobs=result.logprobs[at][: len(gained)] if result.logprobs else (),
        prompt_logprobs=prompt_logprobs,
        finish=finish,
        timings=_timings(seq, now) if finish else None,
        cached_tokens=seq.begin if first else 0,
        cached_from=seq.origin if first else None,
    )


def batch_outputs(rows: Seq[tuple[Sequence, tuple[int, ...], tuple[TokenLogprob, ...]]]) -> list[SeqOutput]:
    """Append to sequences that go on, and have sampled before, what a step gave each; returns their outputs.

    Their tokens but the last count as computed afterwards.
    """
    outputs = [SeqOutput(s.request_id, len(s.tokens) - s.prompt_tokens, gained, told) for s, gained, told in rows]
    for seq, gained, _ in rows:
        seq.tokens.extend(gained)
        seq.computed += len(gained)
    return outputs


def ended_output(seq: Sequence, finish: Finish, now: float, error: str | None, unservable: bool) -> SeqOutput:
    """The output of a sequence that ends without a token."""
    return SeqOutput(
        request_id=seq.request_id,
        offset=seq.generated,
        finish=finish,
        error=error,
        unservable=unservable,
        timings=_timings(seq, now),
    )


def _finish(seq: Sequence, token: int) -> Finish | None:
    if token in seq.sampling.stop_token_ids and seq.generated > seq.sampling.min_tokens:
        return "stop"
    return "length" if len(seq.tokens) >= seq.most else None


def _timings(seq: Sequence, now: float) -> Timings:
    return Timings(
        queue_s=seq.queue_s,
        prefill_s=seq.prefill_s,
        transfer_s=seq.transfer_s,
        decode_s=now - seq.first_token if seq.first_token and not seq.handoff else 0.0,
    )
