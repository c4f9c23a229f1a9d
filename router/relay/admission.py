"""Whether a request may enter. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.relay.policy import Plan
from wire.protocol import Role

# A worker gets its next prompt once so little is before it: enough that it never waits for one.
_AHEAD_S = 0.02


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not now. status: HTTP status, 429 or 503; both come with Retry-After."""

    status: int
    message: str


class Permit:
    """A request's room among what is in flight, given back once, by whoever comes first."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Give it back; later calls do nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


def missing(live: Mapping[Role, int], split: bool) -> str | None:
    """Which pools have no live worker, in words; None if each has one."""
    wanted: tuple[Role, ...] = ("prefill", "decode") if split else ("decode",)
    empty = [role for role in wanted if not live.get(role)]
    return f"no {' and no '.join(empty)} worker is live; try again soon" if empty else None


def admit(in_flight: int, asked: int, max_queue: int) -> Refusal | None:
    """None if `asked` more choices may enter beside `in_flight` ones."""
    if in_flight + asked > max_queue:
        return Refusal(
            429, f"{in_flight} choices are in flight of at most {max_queue}, {asked} more do not fit; try again soon"
        )
    return None


def roomy(plan: Plan) -> bool:
    """Whether a sequence may go to the workers now: they have places, and few prompts before it.

    Beyond that it would only wait there, where nobody takes turns.
    """
    return not plan.waits and plan.ahead_s <= _AHEAD_S
