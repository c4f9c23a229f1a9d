"""The tokens of a request, off its key's account."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from router.errors import too_many
from router.relay.job import Job


@contextmanager
def token_quota(job: Job) -> Iterator[None]:
    """Charges prompts and longest answers, and in the end settles for what there was; 429 if that is too much."""
    account = job.account
    if account is None:
        yield
        return
    charge = job.tokens[0] + sum(choice.reserve for choice in job.choices)
    if (denied := account.charge(charge, time.monotonic())) is not None:
        raise too_many(denied, job.length_field)
    try:
        yield
    finally:
        # What never left for a worker cost nothing.
        used = sum(job.tokens) if job.streams else 0
        account.settle(charge, used, time.monotonic())
