"""Response headers that state a key's remaining limits, in each API's format."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from router.access.limits import Standing

Headers = list[tuple[bytes, bytes]]
_KINDS = ("requests", "tokens")
_VALUES = ("limit", "remaining", "reset")
LIMIT_HEADERS = (
    *(f"x-ratelimit-{value}-{kind}" for kind in _KINDS for value in _VALUES),
    *(f"anthropic-ratelimit-{kind}-{value}" for kind in _KINDS for value in _VALUES),
)


def openai_headers(standing: Iterable[Standing]) -> Headers:
    """`x-ratelimit-remaining-tokens: 1999`, `x-ratelimit-reset-tokens: 30ms` and so on."""
    out: Headers = []
    for item in standing:
        values = (("limit", str(item.limit)), ("remaining", str(item.remaining)), ("reset", _duration(item.reset_s)))
        out += [(f"x-ratelimit-{name}-{item.kind}".encode(), value.encode()) for name, value in values]
    return out


def anthropic_headers(standing: Iterable[Standing], clock: float) -> Headers:
    """`anthropic-ratelimit-tokens-remaining: 1999` and so on; a reset is a time, counted from `clock` (Unix, s)."""
    out: Headers = []
    for item in standing:
        reset = datetime.fromtimestamp(math.ceil(clock + item.reset_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        values = (("limit", str(item.limit)), ("remaining", str(item.remaining)), ("reset", reset))
        out += [(f"anthropic-ratelimit-{item.kind}-{name}".encode(), value.encode()) for name, value in values]
    return out


def _duration(seconds: float) -> str:
    """A duration as Go writes it: 30ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
