"""/v1/messages/batches: Anthropic's batches, over the store and the runner of /v1/batches."""

import asyncio
import io
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from router.api.answers.batches import DeletedMessageBatch, MessageBatch, MessageBatchPage, RequestCounts
from router.api.schema import Strict
from router.batch.batches import MOST_OPEN
from router.batch.files import DEFAULT_SECONDS
from router.batch.runner import BatchRunner
from router.config import RouterConfig
from router.errors import ApiError, fault, invalid
from router.http.body import parse, read_body
from router.http.caller import caller_of
from router.http.json import encode
from router.http.query import NoQuery, json_response, read_query
from router.store import batches, files
from router.store.batches import StoredBatch, TooMany
from router.store.files import NoRoom, Page, StoredFile, new_file_id
from router.store.store import Store, now

PREFIX = "msgbatch_"
_ENDPOINT = "/v1/messages"
_WINDOW_S = 24 * 3600
_ENDED = ("completed", "expired", "cancelled", "failed")
_WITHOUT_ANSWER = {"batch_expired": "expired", "batch_cancelled": "canceled"}


class BatchEntry(Strict):
    """One message of a batch. params: the body of /v1/messages, which is validated when the message is run."""

    custom_id: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    params: dict[str, Any]


class MessageBatchRequest(Strict):
    """Body of /v1/messages/batches."""

    requests: list[BatchEntry] = Field(min_length=1, max_length=100_000)


class MessageBatchesQuery(BaseModel):
    """Query of a list of message batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after_id: str | None = None
    before_id: str | None = None
    limit: int = Field(20, ge=1, le=1000)


class MessageBatches:
    """Handlers over one store. They treat what belongs to another tenant as missing."""

    def __init__(self, store: Store, runner: BatchRunner, config: RouterConfig) -> None:
        self._store = store
        self._runner = runner
        self._config = config

    async def create(self, request: Request) -> Response:
        """Create a batch; it runs next."""
        wanted = parse(await read_body(request.scope, request.receive, self._config), MessageBatchRequest)
        _check(wanted, self._config.max_batch_lines)
        tenant, made = caller_of(request.scope).tenant, now()
        file = await self._keep(tenant, wanted, made)
        batch = StoredBatch(
            id=f"{PREFIX}{uuid.uuid4().hex}",
            tenant=tenant,
            model=self._config.served_model_name,
            endpoint=_ENDPOINT,
            input_file_id=file.id,
            completion_window="24h",
            metadata={},
            output_seconds=DEFAULT_SECONDS,
            status="in_progress",
            created_at=made,
            expires_at=made + _WINDOW_S,
            times={"in_progress_at": made},
            errors=[],
            total=len(wanted.requests),
        )
        try:
            await self._store.run(partial(batches.create, batch=batch, most=MOST_OPEN))
        except TooMany:
            await self._forget(tenant, [file.id])
            message = f"{MOST_OPEN} batches are unfinished: let some end, or cancel them"
            raise ApiError(429, message, code="too_many_batches", retry_after_s=60) from None
        self._runner.wake()
        return json_response(_shown(batch, request))

    async def page(self, request: Request) -> Response:
        """The tenant's batches, newest first."""
        query = read_query(request, MessageBatchesQuery)
        if query.after_id is not None and query.before_id is not None:
            raise invalid("'after_id' and 'before_id': send one of them", "before_id")
        newer = query.before_id is not None
        span = Page(query.before_id if newer else query.after_id, query.limit)
        tenant = caller_of(request.scope).tenant
        found = await self._store.run(partial(batches.page, tenant=tenant, span=span, prefix=PREFIX, newer=newer))
        if found is None:
            name = "before_id" if newer else "after_id"
            raise invalid(f"'{name}': there is no batch {span.after!r}", name)
        shown = [_shown(batch, request) for batch in (found[-query.limit :] if newer else found[: query.limit])]
        page: MessageBatchPage = {
            "data": shown,
            "has_more": len(found) > query.limit,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
        }
        return json_response(page)

    async def retrieve(self, request: Request) -> Response:
        """A batch's status and counts."""
        read_query(request, NoQuery)
        return json_response(_shown(await self._find(request), request))

    async def cancel(self, request: Request) -> Response:
        """Start no further request and abort those that run; answers so far are kept."""
        read_query(request, NoQuery)
        batch = await self._find(request)
        cancel = partial(batches.cancel, tenant=batch.tenant, batch_id=batch.id, now=now())
        cancelled = await self._store.run(cancel)
        self._runner.wake()
        return json_response(_shown(cancelled or batch, request))

    async def delete(self, request: Request) -> Response:
        """Delete a batch that has ended, and its results."""
        read_query(request, NoQuery)
        batch = await self._find(request)
        _ended(batch)
        await self._store.run(partial(batches.delete, tenant=batch.tenant, batch_id=batch.id))
        await self._forget(batch.tenant, [batch.input_file_id, *_results(batch)])
        deleted: DeletedMessageBatch = {"id": batch.id, "type": "message_batch_deleted"}
        return json_response(deleted)

    async def results(self, request: Request) -> Response:
        """A line for each request with its message, its error, or the reason why it has neither."""
        read_query(request, NoQuery)
        batch = await self._find(request)
        _ended(batch)
        paths = [self._store.contents.path(file_id) for file_id in _results(batch)]
        return StreamingResponse(_lines(paths), media_type="application/x-jsonl")

    async def _find(self, request: Request) -> StoredBatch:
        batch_id = request.path_params["batch_id"]
        tenant = caller_of(request.scope).tenant
        batch = await self._store.run(partial(batches.find, tenant=tenant, batch_id=batch_id))
        if batch is None or not batch.id.startswith(PREFIX):
            raise ApiError(404, f"there is no message batch {batch_id[:80]!r}", code="batch_not_found")
        return batch

    async def _keep(self, tenant: str, wanted: MessageBatchRequest, made: int) -> StoredFile:
        """Store the requests as the input of a batch."""
        content = b"".join(
            encode({"custom_id": e.custom_id, "method": "POST", "url": _ENDPOINT, "body": e.params}) + b"\n"
            for e in wanted.requests
        )
        name = f"message_batch_{made}.jsonl"
        file = StoredFile(new_file_id(), tenant, name, "batch", len(content), made, made + DEFAULT_SECONDS)
        await asyncio.to_thread(self._store.contents.keep, file.id, io.BytesIO(content))
        try:
            await self._store.run(partial(files.add, file=file, limit=self._config.max_stored_bytes))
        except NoRoom as error:
            await asyncio.to_thread(self._store.contents.delete, file.id)
            message = f"your files hold {error} bytes of at most {self._config.max_stored_bytes}: delete some"
            raise ApiError(413, message, param="requests", code="storage_full") from None
        return file

    async def _forget(self, tenant: str, file_ids: list[str]) -> None:
        for file_id in file_ids:
            await self._store.run(partial(files.delete, tenant=tenant, file_id=file_id, now=now()))
            await asyncio.to_thread(self._store.contents.delete, file_id)


def _check(wanted: MessageBatchRequest, most: int) -> None:
    if len(wanted.requests) > most:
        raise invalid(f"'requests': at most {most} are taken", "requests", "too_many_lines")
    seen: set[str] = set()
    for i, entry in enumerate(wanted.requests):
        if entry.custom_id in seen:
            reason = f"{entry.custom_id!r} is already the id of an earlier request"
            raise fault(("requests", i, "custom_id"), reason, "duplicate_custom_id")
        seen.add(entry.custom_id)


def _ended(batch: StoredBatch) -> None:
    if batch.status not in _ENDED:
        raise invalid(f"batch {batch.id!r} has not ended: wait for it, or cancel it", code="batch_not_ended")


def _results(batch: StoredBatch) -> list[str]:
    return [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id is not None]


def _lines(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                entry = msgspec.json.decode(line)
                yield encode({"custom_id": entry["custom_id"], "result": _result(entry)}) + b"\n"


def _result(entry: dict[str, Any]) -> dict[str, Any]:
    if entry["error"] is not None:
        return {"type": _WITHOUT_ANSWER[entry["error"]["code"]]}
    response = entry["response"]
    if response["status_code"] == 200:
        return {"type": "succeeded", "message": response["body"]}
    return {"type": "errored", "error": response["body"]}


def _shown(batch: StoredBatch, request: Request) -> MessageBatch:
    over = batch.status in _ENDED
    ended = next((batch.times[f"{status}_at"] for status in _ENDED if f"{status}_at" in batch.times), None)
    path = f"/v1/messages/batches/{batch.id}/results"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if over else "canceling" if batch.status == "cancelling" else "in_progress",
        "request_counts": _counts(batch, over=over),
        "created_at": _time(batch.created_at),
        "expires_at": _time(batch.expires_at),
        "ended_at": _time(ended) if over and ended is not None else None,
        "cancel_initiated_at": _time(batch.times["cancelling_at"]) if "cancelling_at" in batch.times else None,
        "archived_at": None,
        "results_url": f"{request.base_url}{path[1:]}" if over else None,
    }


def _counts(batch: StoredBatch, *, over: bool) -> RequestCounts:
    """Count requests as Anthropic does: until the batch ends, every request counts as processing."""
    rest = batch.total - batch.completed - batch.failed
    lost = rest if batch.status == "failed" else 0
    return {
        "processing": 0 if over else batch.total,
        "succeeded": batch.completed if over else 0,
        "errored": batch.failed + lost if over else 0,
        "canceled": rest if batch.status == "cancelled" else 0,
        "expired": rest if batch.status == "expired" else 0,
    }


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
