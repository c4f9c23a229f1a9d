"""Turns a router's `Submit` into a sequence, and checks it. Pure."""

import numpy as np

from wire.protocol import Submit
from workers.schedule.limits import Limits
from workers.schedule.sequence import Sequence, Source


def sequence_of(message: Submit, now: float) -> Sequence:
    """Make the sequence of a request. The scheduler decides its order among the others."""
    source, prefix = message.source, message.prefix
    position, kept = len(message.token_ids), False
    if source is None and prefix.source is not None and 0 < prefix.kept_tokens < position:
        source, position, kept = prefix.source, prefix.kept_tokens, True
    return Sequence(
        request_id=message.request_id,
        tokens=message.token_ids.array(),
        prompt_tokens=len(message.token_ids) - message.generated,
        sampling=message.sampling,
        priority=message.priority,
        behind=message.behind,
        order=0,
        handoff=message.handoff,
        source=Source(source.worker_id, position, kept) if source else None,
        arrived=now,
        scope=prefix.scope,
        warm=message.warm,
        boundaries=prefix.boundaries,
        foreign=prefix.foreign_tokens,
        rewritten=prefix.rewritten_tokens,
    )


def refusal(seq: Sequence, limits: Limits, vocab: int) -> str | None:
    """The reason why a worker with these limits can't compute a request; None if it can."""
    longest = limits.max_model_len
    if not (seq.prompt_tokens > 0 and len(seq.tokens) < longest):
        return f"a prompt of {len(seq.tokens)} tokens: this worker takes 1 to {longest - 1}"
    if seq.generated and (seq.handoff or (seq.source is not None and not seq.source.kept)):
        return "a snapshot of tokens that were generated elsewhere can't be handed on; compute them here"
    if not 0 <= seq.generated < seq.sampling.max_tokens:
        return f"{seq.generated} tokens are generated of at most {seq.sampling.max_tokens}"
    ids = np.frombuffer(seq.tokens, np.int32)
    if ids.min() < 0 or ids.max() >= vocab:
        return f"a token id is outside the vocabulary of {vocab}"
    return None
