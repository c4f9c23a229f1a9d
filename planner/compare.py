"""Compares a plan with a running cluster's `/status`: slots, pages and ranks."""

from dataclasses import dataclass
from typing import Any

from planner.errors import PlanError
from planner.plan import Plan

# A worker sizes its pages by the card's free memory at its start, so a difference up to this share counts as none.
PAGES_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of a running worker beside the plan's. same: whether they agree within the tolerance."""

    worker: str
    figure: str
    planned: int
    running: int
    same: bool


def compare(plan: Plan, status: dict[str, Any]) -> tuple[Compared, ...]:
    """Compare ranks, slots, tokens in pages and longest sequence of every running worker with the plan's.

    PlanError if no worker runs, or the status lacks one of these figures.
    """
    try:
        workers = [
            (f"{role} {worker['id']}", worker)
            for role, pool in status["pools"].items()
            for worker in pool["workers"]
            if "ranks" in worker
        ]
        found = tuple(figure for name, worker in workers for figure in _worker(plan, name, worker))
    except (KeyError, TypeError) as error:
        raise PlanError(f"--check: the status is of another version: {error!r}") from None
    if not found:
        raise PlanError("--check: no worker of the cluster runs yet")
    return found


def _worker(plan: Plan, name: str, worker: dict[str, Any]) -> tuple[Compared, ...]:
    held, layout = plan.capacity, plan.layout
    planned, running = held.pages * held.page_size, worker["pages"] * worker["page_size"]
    return (
        Compared(name, "ranks", layout.tp, len(worker["ranks"]), layout.tp == len(worker["ranks"])),
        Compared(name, "slots", held.slots, worker["slots"], held.slots == worker["slots"]),
        Compared(name, "tokens in pages", planned, running, abs(running - planned) <= PAGES_TOLERANCE * planned),
        Compared(
            name,
            "longest sequence",
            layout.context,
            worker["max_model_len"],
            layout.context == worker["max_model_len"],
        ),
    )
