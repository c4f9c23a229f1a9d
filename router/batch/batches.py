"""/v1/batches: files of requests that are answered when no live request needs the workers."""

import uuid
from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.records import BatchRecord
from router.api.schema import Strict
from router.batch.files import DEFAULT_SECONDS, Keeping, no_file
from router.batch.runner import BatchRunner
from router.config import RouterConfig
from router.errors import ApiError, invalid
from router.http.body import parse, read_body
from router.http.caller import caller_of
from router.http.query import NoQuery, json_response, listed, read_query
from router.store import batches, files
from router.store.batches import StoredBatch, TooMany
from router.store.files import Page
from router.store.store import Store, now

_WINDOW_S = {"24h": 24 * 3600}
# Unfinished batches that a tenant may have.
MOST_OPEN = 1000
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]


class BatchRequest(Strict):
    """Body of /v1/batches."""

    input_file_id: str = Field(max_length=128)
    endpoint: Endpoint
    completion_window: Literal["24h"] = Field(description="lines that are not answered by then are listed as expired")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16
    )
    output_expires_after: Keeping | None = Field(None, description="30 days if it is not sent")


class BatchesQuery(BaseModel):
    """Query of a list of batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    limit: int = Field(20, ge=1, le=100)


class Batches:
    """Handlers over one store. They treat what belongs to another tenant as missing."""

    def __init__(self, store: Store, runner: BatchRunner, config: RouterConfig) -> None:
        self._store = store
        self._runner = runner
        self._config = config

    async def create(self, request: Request) -> Response:
        """Create a batch; its input is validated next."""
        read_query(request, NoQuery)
        wanted = parse(await read_body(request.scope, request.receive, self._config), BatchRequest)
        tenant, made = caller_of(request.scope).tenant, now()
        find = partial(files.find, tenant=tenant, file_id=wanted.input_file_id, now=made)
        file = await self._store.run(find)
        if file is None:
            raise no_file(wanted.input_file_id, "input_file_id")
        if file.purpose != "batch":
            raise invalid(f"'input_file_id': the file's purpose is {file.purpose!r}, not 'batch'", "input_file_id")
        keeping = wanted.output_expires_after
        batch = StoredBatch(
            id=f"batch_{uuid.uuid4().hex}",
            tenant=tenant,
            model=self._config.served_model_name,
            endpoint=wanted.endpoint,
            input_file_id=file.id,
            completion_window=wanted.completion_window,
            metadata=wanted.metadata,
            output_seconds=keeping.seconds if keeping is not None else DEFAULT_SECONDS,
            status="validating",
            created_at=made,
            expires_at=made + _WINDOW_S[wanted.completion_window],
            times={},
            errors=[],
        )
        try:
            await self._store.run(partial(batches.create, batch=batch, most=MOST_OPEN))
        except TooMany:
            message = f"{MOST_OPEN} batches are unfinished: let some end, or cancel them"
            raise ApiError(429, message, code="too_many_batches", retry_after_s=60) from None
        self._runner.wake()
        return json_response(_shown(batch))

    async def page(self, request: Request) -> Response:
        """The tenant's batches, newest first."""
        query = read_query(request, BatchesQuery)
        span = Page(query.after, query.limit)
        found = await self._store.run(
            partial(batches.page, tenant=caller_of(request.scope).tenant, span=span, prefix="batch_")
        )
        if found is None:
            raise invalid(f"'after': there is no batch {query.after!r}", "after")
        return listed([_shown(batch) for batch in found], query.limit)

    async def retrieve(self, request: Request) -> Response:
        """A batch's status and counts."""
        read_query(request, NoQuery)
        batch_id = request.path_params["batch_id"]
        find = partial(batches.find, tenant=caller_of(request.scope).tenant, batch_id=batch_id)
        return self._answer(batch_id, await self._store.run(find))

    async def cancel(self, request: Request) -> Response:
        """Start no further line and abort those that run; answers so far are kept."""
        read_query(request, NoQuery)
        batch_id = request.path_params["batch_id"]
        cancel = partial(batches.cancel, tenant=caller_of(request.scope).tenant, batch_id=batch_id, now=now())
        batch = await self._store.run(cancel)
        self._runner.wake()
        return self._answer(batch_id, batch)

    def _answer(self, batch_id: str, batch: StoredBatch | None) -> Response:
        if batch is None:
            raise ApiError(404, f"there is no batch {batch_id[:80]!r}", code="batch_not_found")
        return json_response(_shown(batch))


def _shown(batch: StoredBatch) -> BatchRecord:
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        "in_progress_at": batch.times.get("in_progress_at"),
        "finalizing_at": batch.times.get("finalizing_at"),
        "completed_at": batch.times.get("completed_at"),
        "failed_at": batch.times.get("failed_at"),
        "expired_at": batch.times.get("expired_at"),
        "cancelling_at": batch.times.get("cancelling_at"),
        "cancelled_at": batch.times.get("cancelled_at"),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": batch.cached_tokens},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": batch.metadata or None,
    }
