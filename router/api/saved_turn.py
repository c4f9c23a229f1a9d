"""Checks what a snapshot file says of its request, as the APIs check a client's: workers trust what routers send."""

from collections.abc import Iterator

from router.relay.fleet import Limits
from wire.protocol import SamplingParams
from wire.tokens import TokenIds

_INT = 2**31


def unfit(token_ids: TokenIds, sampling: SamplingParams, limits: Limits) -> str | None:
    """Why no request can be like this; None if it can. Its grammar is not looked at."""
    ids = token_ids.array()
    if not ids:
        return "it has no tokens"
    if min(ids) < 0 or max(ids) >= limits.vocab_size:
        return f"a token id is outside the vocabulary of {limits.vocab_size}"
    return next(
        (f"its sampling's {name} can't be" for name, good in _checked(sampling, limits.vocab_size) if not good), None
    )


def _checked(sampling: SamplingParams, vocab: int) -> Iterator[tuple[str, bool]]:
    # A comparison with NaN is false.
    yield "max_tokens", 1 <= sampling.max_tokens < _INT
    yield "min_tokens", 0 <= sampling.min_tokens < _INT
    yield "seed", 0 <= sampling.seed < 2**63
    yield "temperature", 0 <= sampling.temperature <= 2
    yield "top_p", 0 < sampling.top_p <= 1
    yield "min_p", 0 <= sampling.min_p <= 1
    yield "top_k", 0 <= sampling.top_k < _INT
    yield "repetition_penalty", 0 < sampling.repetition_penalty <= 10
    yield "presence_penalty", -2 <= sampling.presence_penalty <= 2
    yield "frequency_penalty", -2 <= sampling.frequency_penalty <= 2
    yield (
        "logit_bias",
        len(sampling.logit_bias) <= 1024
        and all(0 <= token < vocab and -100 <= bias <= 100 for token, bias in sampling.logit_bias),
    )
    yield (
        "stop_token_ids",
        len(sampling.stop_token_ids) <= 1024 and all(0 <= t < vocab for t in sampling.stop_token_ids),
    )
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(sampling, name)
        yield name, value is None or 0 <= value <= 20
