"""Answers about stored objects: files, batches, pages of them, and deletions."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from typing_extensions import TypedDict

from router.api.answers.generated import CachedTokens, OutputTokens
from router.store.batches import BatchFault, Status


class Identified(TypedDict):
    """An object with an id."""

    id: str


R = TypeVar("R", bound=Identified)


class Page(TypedDict, Generic[R]):
    """One page of a list. last_id: the value of `after` for the next page."""

    object: Literal["list"]
    data: Sequence[R]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileRecord(TypedDict):
    """A file. Times are Unix time in seconds."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None


class Deleted(TypedDict):
    """The object was deleted."""

    id: str
    object: Literal["file", "response", "session"]
    deleted: Literal[True]


class BatchFaults(TypedDict):
    """The reasons why a batch failed."""

    object: Literal["list"]
    data: list[BatchFault]


class LineCounts(TypedDict):
    """The numbers of all lines, of those answered, and of those failed."""

    total: int
    completed: int
    failed: int


class BatchUsage(TypedDict):
    """Token counts of all lines answered so far."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class BatchRecord(TypedDict):
    """A batch and its progress. Times are Unix time in seconds; null if the event did not happen."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: LineCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
