"""Decides whether a request may enter, and whether a sequence may go to workers. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.relay.policy import Plan
from wire.protocol import Role

# A worker gets its next prompt when less than this is before it: enough that it never waits for a prompt.
_AHEAD_S = 0.02


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request is refused for now. status: the HTTP status, 429 or 503; both come with Retry-After."""

    status: int
    message: str


class Permit:
    """A request's share of the choices in flight. Several parties may release it, and the first one counts."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def __enter__(self) -> "Permit":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the share; later calls do nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


def missing(live: Mapping[Role, int], split: bool) -> str | None:
    """The message that names the pools without a live worker; None if each pool has one."""
    wanted: tuple[Role, ...] = ("prefill", "decode") if split else ("decode",)
    empty = [role for role in wanted if not live.get(role)]
    return f"no {' and no '.join(empty)} worker is live; try again soon" if empty else None


def admit(in_flight: int, asked: int, max_queue: int) -> Refusal | None:
    """Decide whether `asked` choices may enter beside the `in_flight` ones; None if they may."""
    if in_flight + asked > max_queue:
        return Refusal(
            429, f"{in_flight} choices are in flight of at most {max_queue}, {asked} more do not fit; try again soon"
        )
    return None


def roomy(plan: Plan) -> bool:
    """Whether a sequence may go to the workers now: they have places, and few prompts before it.

    Otherwise it would only wait at the worker, where tenants do not take turns.
    """
    return not plan.waits and plan.ahead_s <= _AHEAD_S
