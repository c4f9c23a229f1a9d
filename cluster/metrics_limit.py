"""Compares a worker's steps with the planner's limit for its card."""

from planner.cards import Card, find_card
from planner.errors import PlanError
from planner.model import Model, load_model
from planner.speed import fraction_of_limit, step_time
from planner.work import Step
from workers.leader.figures import StepTotals


class Limit:
    """Compares the steps between two calls with the planner's shortest time for their mean."""

    def __init__(self, model: Model, card: Card, tp: int) -> None:
        self._model, self._card, self._tp = model, card, tp
        self._before = StepTotals(0, 0.0, 0, 0, 0, 0)

    def reached(self, totals: StepTotals) -> float | None:
        """The share of the limit since the last call, 1 for all of it; None if there were no steps."""
        before, self._before = self._before, totals
        steps, seconds = totals.steps - before.steps, totals.seconds - before.seconds
        if not steps or seconds <= 0:
            return None
        sequences = totals.sequences - before.sequences
        mean = Step(
            sequences=max(1, round(sequences / steps)),
            tokens=max(1, round((totals.tokens - before.tokens) / sequences)),
            past=round((totals.past - before.past) / sequences),
            sampled=round((totals.sampled - before.sampled) / steps),
        )
        return fraction_of_limit(seconds / steps, step_time(self._model, self._card, self._tp, mean).seconds)


def limit_of(model: str, card: str | None, tp: int) -> Limit | None:
    """The comparison for a checkpoint and a card's name; None without a name. ValueError if either is unknown."""
    if card is None:
        return None
    try:
        return Limit(load_model(model), find_card(card), tp)
    except PlanError as error:
        raise ValueError(str(error).split(": ", 1)[-1]) from None
