"""The planner's error."""


class PlanError(ValueError):
    """There is no plan for a question; the message says what to change."""
