"""What the planner refuses."""


class PlanError(ValueError):
    """A question that has no plan; the message says what to change."""
