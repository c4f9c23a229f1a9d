"""The planner's error."""


class PlanError(ValueError):
    """The planner can't answer a question; the message says what to change, by its flag."""
