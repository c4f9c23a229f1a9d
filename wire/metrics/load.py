"""Records a worker's load as gauges: in the worker itself, and in each router from the worker's messages."""

from wire.metrics import table
from wire.metrics.recorder import Recorder
from wire.protocol import Load, WorkerInfo

LOAD = tuple(metric for metric in table.TABLE if metric.source == "both")


def record_load(recorder: Recorder, info: WorkerInfo, load: Load) -> None:
    """Set all gauges of a worker."""
    for metric, value in (
        (table.QUEUED, load.queued),
        (table.QUEUED_TOKENS, load.queued_tokens),
        (table.RUNNING, load.running),
        (table.ANSWERING, load.answering),
        (table.FREE_PAGES, load.free_pages),
        (table.PAGES, info.pages),
        (table.FREE_SLOTS, load.free_slots),
        (table.SLOTS, info.slots),
        (table.TRANSFERRING, load.transferring),
        (table.STEP_TIME, load.step_s),
    ):
        recorder.value(metric, info.worker_id, info.role).put(value)
