"""Runs background responses, which continue without their clients."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress

from router.api.generate import chunks
from router.api.responses.answers import Response
from router.api.responses.events import split
from router.api.responses.serializer import ResponseSerializer
from router.api.responses.store import ResponseStore
from router.errors import ApiError
from router.relay.job import Job

_log = logging.getLogger(__name__)
# Seconds until a router notices that another one cancelled a response, or stored further events of it.
_POLL_S = 0.2
_CLOSING_S = 5.0


class _Run:
    """One running response. holds: what is released at its end. told: events that another router has stored."""

    def __init__(self, job: Job, shape: ResponseSerializer, holds: ExitStack, *, streamed: bool, told: int) -> None:
        self.job = job
        self.shape = shape
        self.holds = holds
        self.streamed = streamed
        self.told = told
        self.news = asyncio.Event()

    def tell(self) -> None:
        """Wake those that follow it."""
        self.news.set()
        self.news = asyncio.Event()


class Background:
    """The background responses of one router.

    A response stops when its row is deleted or no longer active, whichever router changed that.
    """

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._runs: dict[str, _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    def start(self, job: Job, shape: ResponseSerializer, holds: ExitStack, *, streamed: bool, told: int = 0) -> None:
        """Run a response that the store already holds, behind so many events that are stored too."""
        run = _Run(job, shape, holds, streamed=streamed, told=told)
        self._runs[shape.body["id"]] = run
        task = asyncio.create_task(self._run(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    def stop(self, response_id: str) -> None:
        """Stop a response and free its places at the workers, if it runs here."""
        if (run := self._runs.get(response_id)) is not None:
            run.job.leave()
            run.tell()

    async def follow(self, tenant: str, response_id: str, after: int) -> AsyncIterator[bytes]:
        """A response's events after the one with number `after`, up to its end, whichever router runs it."""
        while True:
            run = self._runs.get(response_id)
            news = run.news if run is not None else asyncio.Event()
            pieces, active = await self._store.events(tenant, response_id, after)
            for first, data in pieces:
                events = split(data)
                yield b"".join(events[max(0, after + 1 - first) :])
                after = first + len(events) - 1
            if not active:
                return
            try:
                await asyncio.wait_for(news.wait(), _POLL_S)
            except TimeoutError:
                continue

    async def ended(self, tenant: str, body: Response) -> Response:
        """A response once it has ended, whichever router runs it; 404 if it is deleted before.

        body: the response as it is now.
        """
        while body["status"] == "in_progress":
            run = self._runs.get(body["id"])
            with suppress(TimeoutError):
                await asyncio.wait_for((run.news if run is not None else asyncio.Event()).wait(), _POLL_S)
            if (kept := await self._store.get(tenant, body["id"])) is None:
                raise ApiError(404, f"the response {body['id']!r} was deleted while it ran", code="response_not_found")
            body = kept.body
        return body

    async def close(self) -> None:
        """Return once all have ended. The connections to workers must be closed before."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)
        for task in [*self._tasks, *([self._renewing] if self._renewing is not None else [])]:
            task.cancel()

    async def _run(self, run: _Run) -> None:
        response_id = run.shape.body["id"]
        try:
            with run.holds:
                await self._drive(run)
        except Exception:
            _log.exception("the response %s failed", response_id)
            await self._end(run, ApiError(500, "internal error", code="internal_error"), b"", run.shape.sequence)
        finally:
            del self._runs[response_id]
            run.tell()

    async def _drive(self, run: _Run) -> None:
        job, shape = run.job, run.shape
        first, data = run.told, shape.begin() if run.streamed and not run.told else b""
        if run.streamed:
            shape.resume(run.told)
        while True:
            if data:
                if not await self._store.append(shape.body["id"], first, shape.sequence, data, job.choices[0].taken):
                    job.leave()
                run.tell()
                first = shape.sequence
            await job.wait()
            end = job.over
            data = await chunks(job, shape) if run.streamed and job.error is None else b""
            if end:
                break
        if not job.gone:
            await self._end(run, job.error, data, first)

    async def _end(self, run: _Run, error: ApiError | None, data: bytes, first: int) -> None:
        shape = run.shape
        await run.job.settle()
        await shape.settle(error)
        if run.streamed:
            data += shape.last()
        await self._store.finish(shape.body, first, first + len(split(data)), data)

    async def _renew(self) -> None:
        while self._runs:
            await asyncio.sleep(_POLL_S)
            ids = list(self._runs)
            try:
                wanted = await self._store.renew(ids)
            except Exception:
                _log.exception("leases of %d responses were not renewed", len(ids))
                continue
            for response_id in set(ids) - wanted:
                self.stop(response_id)
