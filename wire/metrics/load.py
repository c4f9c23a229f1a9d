"""A worker's room and load as gauges: recorded by the worker itself, and by each router from what it was told."""

from wire.metrics import table
from wire.metrics.recorder import Recorder
from wire.protocol import Load, WorkerInfo

LOAD = tuple(metric for metric in table.TABLE if metric.source == "both")


def record_load(recorder: Recorder, info: WorkerInfo, load: Load) -> None:
    """Put all of a worker's."""
    for metric, value in (
        (table.QUEUED, load.queued),
        (table.QUEUED_TOKENS, load.queued_tokens),
        (table.RUNNING, load.running),
        (table.FREE_PAGES, load.free_pages),
        (table.PAGES, info.pages),
        (table.FREE_SLOTS, load.free_slots),
        (table.SLOTS, info.slots),
        (table.TRANSFERRING, load.transferring),
        (table.STEP_TIME, load.step_s),
    ):
        recorder.value(metric, info.worker_id, info.role).put(value)
