"""The planner's error."""


class PlanError(ValueError):
    """A question that has no plan; the message says what to change."""
