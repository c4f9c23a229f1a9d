"""Computes a worker's load for routers. Pure."""

from collections.abc import Sequence as Seq

from wire.protocol import Load
from workers.schedule.places import Places
from workers.schedule.rates import Rates
from workers.schedule.roster import Roster
from workers.schedule.sequence import Sequence, State


def load_of(roster: Roster, places: Places, rates: Rates) -> Load:
    """The present load. It is sent with each step, and costs only what differs from a step in which all decode."""
    cache, totals, waiting = places.cache, places.cache.totals, roster.queue
    # Those that go on from step to step are answered here, and have no more than a token to compute.
    all_go_on = places.batch is not None and places.batch.present == len(roster.active)
    others: Seq[Sequence] = () if all_go_on else roster.active
    prompts = [s for s in others if s.pending > 1]
    return Load(
        queued=len(waiting),
        queued_tokens=sum(s.pending for s in waiting if s.source is None) + sum(s.pending for s in prompts),
        running=len(roster.active),
        free_pages=places.pages.free + places.pages.reclaimable,
        free_slots=places.slots.free,
        transferring=sum(s.state is State.PULLING for s in roster.pulling.values()) + roster.sending,
        step_s=rates.step_s,
        token_s=rates.token_s,
        kept=len(cache.index),
        hit_tokens=sum(totals.hit_tokens.values()),
        missed_tokens=sum(totals.missed_tokens.values()),
        decode_s=rates.decode_s,
        decode_rows=rates.decode_rows,
        answering=len(roster.active) - sum(s.handoff for s in others),
        behind=sum(s.behind for s in waiting) + sum(s.behind for s in prompts),
        hits=sum(totals.hits.values()),
        misses=tuple(totals.misses.values()),
        tiers=tuple(cache.held.values()),
        saved_s=totals.saved_s,
    )
