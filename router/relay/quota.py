"""Charges a request's tokens to the account of its key."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from router.errors import too_many
from router.relay.job import Job


@contextmanager
def token_quota(job: Job) -> Iterator[None]:
    """Charge the prompts and longest answers, and settle for the tokens used in the end; 429 if the key has too few."""
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
        # A choice that was never sent to a worker costs nothing.
        used = sum(job.tokens) if job.streams else 0
        account.settle(charge, used, time.monotonic())
