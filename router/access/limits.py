"""Limits of a key: requests and tokens a minute, and concurrent requests. Pure: time is passed in."""

import math
from dataclasses import dataclass

_MINUTE_S = 60.0
# Retry hint in seconds: when a concurrent request will end can't be predicted.
_CONCURRENT_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """requests, tokens: per minute. concurrent: requests under way at once. None: unlimited."""

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None

    def share(self, replicas: int) -> "KeyLimits":
        """The limits that each of so many routers grants by itself; rounded up, so that none grants nothing."""

        def part(limit: int | None) -> int | None:
            return None if limit is None else math.ceil(limit / replicas)

        return KeyLimits(part(self.requests), part(self.tokens), part(self.concurrent))


@dataclass(frozen=True, slots=True)
class Denied:
    """A refusal. wait_s: seconds until a retry may succeed; None if it never can."""

    message: str
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit as response headers state it. remaining: left now. reset_s: seconds until it is full again."""

    kind: str
    limit: int
    remaining: int
    reset_s: float


class Bucket:
    """A token bucket that holds up to `limit` and refills evenly within a minute. Overuse becomes a debt."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._at = now

    def level(self, now: float) -> float:
        """The amount in the bucket; a negative amount is a debt."""
        self._level = min(self._level + (now - self._at) * self.limit / _MINUTE_S, float(self.limit))
        self._at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until the bucket holds `amount`, which is at most `limit`."""
        return max(0.0, (amount - self.level(now)) * _MINUTE_S / self.limit)

    def take(self, amount: int, now: float) -> None:
        """Take an amount out; a negative one puts it back."""
        self._level = min(self.level(now) - amount, float(self.limit))


class Account:
    """The use under one set of limits: that of all keys of a tenant, or of one key with limits of its own."""

    def __init__(self, limits: KeyLimits, now: float) -> None:
        self.running = 0
        self.change(limits, now)

    def change(self, limits: KeyLimits, now: float) -> None:
        """Apply other limits from now on; running requests stay counted."""
        self.limits = limits
        self._requests = None if limits.requests is None else Bucket(limits.requests, now)
        self._tokens = None if limits.tokens is None else Bucket(limits.tokens, now)

    def enter(self, now: float) -> Denied | None:
        """Count a request that begins. Call `leave` at its end, unless it is denied."""
        at_once = self.limits.concurrent
        if at_once is not None and self.running >= at_once:
            return Denied(f"{self.running} requests of this key are under way of at most {at_once}", _CONCURRENT_WAIT_S)
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None and (wait := bucket.wait_s(1, now)):
                return Denied(f"this key's {bucket.limit} {what} a minute are used up", wait)
        if self._requests is not None:
            self._requests.take(1, now)
        self.running += 1
        return None

    def leave(self) -> None:
        """Count a request's end."""
        self.running -= 1

    def charge(self, tokens: int, now: float) -> Denied | None:
        """Reserve the most tokens that a request may use; `settle` returns the unused part."""
        bucket = self._tokens
        if bucket is None:
            return None
        if tokens > bucket.limit:
            return Denied(
                f"prompt and longest answer come to {tokens} tokens and this key has {bucket.limit} a minute: "
                "send less or ask for a shorter answer",
                None,
            )
        if wait := bucket.wait_s(tokens, now):
            left = max(0, int(bucket.level(now)))
            return Denied(f"prompt and longest answer come to {tokens} tokens and this key has {left} left now", wait)
        bucket.take(tokens, now)
        return None

    def settle(self, charged: int, used: int, now: float) -> None:
        """Replace the `charged` tokens that were reserved by the `used` ones, which may be more."""
        if self._tokens is not None:
            self._tokens.take(used - charged, now)

    def standing(self, now: float) -> list[Standing]:
        """The state of each per-minute limit now."""
        return [
            Standing(kind, bucket.limit, max(0, int(bucket.level(now))), bucket.wait_s(bucket.limit, now))
            for kind, bucket in (("requests", self._requests), ("tokens", self._tokens))
            if bucket is not None
        ]
