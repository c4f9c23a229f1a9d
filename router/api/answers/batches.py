"""Answers of /v1/messages/batches."""

from typing import Literal

from typing_extensions import TypedDict


class RequestCounts(TypedDict):
    """The number of requests by their results; all count as `processing` until the batch has ended."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(TypedDict):
    """A batch and its progress. Times are RFC 3339; null if the event did not happen."""

    id: str
    type: Literal["message_batch"]
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: RequestCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    archived_at: None
    results_url: str | None


class MessageBatchPage(TypedDict):
    """One page of a list of batches, newest first."""

    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(TypedDict):
    """The batch was deleted."""

    id: str
    type: Literal["message_batch_deleted"]
