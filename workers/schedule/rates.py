"""Measures how long a worker's steps and tokens take, for its routers. Pure."""

from workers.schedule.builder import InFlight
from workers.schedule.step import StepResult

# The weight of a new step without prompts.
_WEIGHT = 0.1


class Rates:
    """Seconds of the latest step, `step_s`, and averages in which new steps weigh more.

    token_s: seconds of a prompt's token. decode_s: seconds for which a sequence waits for each token in steps without
    prompts. decode_rows: how many sequences those steps have.
    """

    def __init__(self, max_step_tokens: int) -> None:
        self._max_step_tokens = max_step_tokens
        self.step_s = 0.0
        self.token_s = 0.0
        self.decode_s = 0.0
        self.decode_rows = 0.0

    def took(self, step: InFlight, result: StepResult) -> list[int]:
        """Measure a step by its result. Returns the drafts of each row if it computed no prompt, else []."""
        self.step_s = seconds = result.elapsed_s
        batch, more = step.batch, step.plan.rows
        drafts = [batch.drafts] * len(batch) if batch is not None else []
        tokens = len(drafts) + sum([len(r.token_ids) for r in more])
        drafts += [r.drafts for r in more]
        rows = len(drafts)
        if tokens > rows:
            weight = 1.0 if not self.token_s else tokens / (tokens + self._max_step_tokens)
            self.token_s += weight * (seconds / tokens - self.token_s)
            return []
        if rows:
            # A sequence that gains several tokens waits less for each of them.
            each = seconds * len(result.tokens) / max(sum(map(len, result.tokens)), 1) if result.tokens else seconds
            weight = _WEIGHT if self.decode_s else 1.0
            self.decode_s += weight * (each - self.decode_s)
            self.decode_rows += weight * (rows - self.decode_rows)
        return drafts
